"""A long run under faults: damaged data, processes that are killed, and the checks afterwards."""
