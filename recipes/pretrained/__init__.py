"""Weights that others have published, as checkpoints of this project."""
