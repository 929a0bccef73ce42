"""Tests of the realignments: properties, with explicit gradients behind every Gram block."""
