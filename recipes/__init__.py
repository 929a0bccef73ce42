"""Tri-modal pre-training on video, audio and text: its data, models, runs and figures."""
