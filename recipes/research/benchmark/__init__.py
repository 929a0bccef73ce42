"""The benchmark: suites that race steps, realignments and loaders, and what they share."""
