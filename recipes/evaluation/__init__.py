"""Downstream evaluation of a checkpoint: one task a file, and what they share."""
