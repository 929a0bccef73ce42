"""Figures, the gallery and the report of runs."""
