"""The words that a person types: `app.py` has the program, the others its commands.

Nothing heavy is imported at the top: `selfshot validate` answers before Ray or torch would have
been loaded.
"""

from selfshot.cli import (
    benchmarks,
    cluster,
    corpus,
    encoders,
    experiments,
    index,
    predict,
    scores,
    search,
    show,
    track,
)
from selfshot.cli.app import app, main

__all__ = [
    "app",
    "benchmarks",
    "cluster",
    "corpus",
    "encoders",
    "experiments",
    "index",
    "main",
    "predict",
    "scores",
    "search",
    "show",
    "track",
]
