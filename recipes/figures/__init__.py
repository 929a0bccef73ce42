"""Figures, the gallery, the labelling page and the report of runs."""
