"""Scoring a data set by agreement: measure, write, resume, keep."""
