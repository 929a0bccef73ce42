"""Curation: filters learn from a few trusted clips what belongs together, and weigh every pair of a data set."""
