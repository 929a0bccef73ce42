"""Data sets as they are distributed, one file per layout: each reads its lists into rows of an index."""
