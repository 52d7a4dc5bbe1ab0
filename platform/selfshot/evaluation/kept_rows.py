"""Rows of a fold that were predicted before, by whatever experiment: scores and result files.

A row depends on the network, the fold's queries and its own supports, and on nothing else of an
experiment. The trials of a study that changes the corpus ask for the same labelled supports again
and again; their rows are predicted once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LEFT_S = 3600.0


class KeptRows:
    """A folder of rows, each named by a hash of what it depends on.

    A row is two files, <hash>.predictions.json and, written after it, <hash>.json with the row's
    scores and the SHA-256 of the first. What does not agree with its hash is not there.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any]) -> None:
        """Nothing is read yet.

        Args:
            folder: of the rows; none: nothing is kept.
            facts: JSON values that all rows of this fold depend on: keys of the networks and of
                the benchmark, the fold, how clips are read.
        """
        self.folder, self.facts = folder, dict(facts)

    def key(self, row: Mapping[str, Any], asked: Sequence[Any]) -> str:
        """Hash of a row's facts; `asked` has what each query of the fold is given."""
        told = json.dumps([self.facts, dict(row), list(asked)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def find(self, key: str, predictions: Path) -> dict[str, Any] | None:
        """The row's scores, if it was kept; its result file is then copied to `predictions`."""
        if self.folder is None:
            return None
        try:
            kept = json.loads((self.folder / f"{key}.json").read_text())
            content = (self.folder / f"{key}.predictions.json").read_bytes()
            right = kept["sha256"] == hashlib.sha256(content).hexdigest()
            scores: dict[str, Any] = kept["scores"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if not right:
            return None
        _write(predictions, content)
        return scores

    def keep(self, key: str, scores: Mapping[str, Any], predictions: Path) -> None:
        """Keep a row that was just predicted."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _sweep(self.folder)
        content = predictions.read_bytes()
        _write(self.folder / f"{key}.predictions.json", content)
        kept = {"scores": dict(scores), "sha256": hashlib.sha256(content).hexdigest()}
        _write(self.folder / f"{key}.json", json.dumps(kept).encode())


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half written; nobody writes a row for an hour."""
    for left in folder.glob(".*.partial"):
        with contextlib.suppress(FileNotFoundError):  # Another trial sweeps as well.
            if time.time() - left.stat().st_mtime > LEFT_S:
                left.unlink()


def _write(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds all of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
