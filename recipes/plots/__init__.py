"""Drawings for the documentation."""
