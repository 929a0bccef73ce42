"""The truth about clips: which pairs belong together, as corpora and benchmarks tell it."""
