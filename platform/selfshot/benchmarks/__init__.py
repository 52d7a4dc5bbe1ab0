"""Builders that turn a dataset into a benchmark folder with a manifest."""
