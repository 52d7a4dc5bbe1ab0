"""Experiment files: YAML in, frozen and validated objects out."""
