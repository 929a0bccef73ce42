"""The parts of the benchmark: workloads, contestants, timing, memory, variants of the agreement, tables and plots."""
