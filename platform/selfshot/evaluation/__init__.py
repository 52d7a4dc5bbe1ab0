"""Scores and pictures of what a model predicted."""
