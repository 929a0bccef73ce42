"""Data sets: one file or package per layout, and the procedural corpus of the demo."""
