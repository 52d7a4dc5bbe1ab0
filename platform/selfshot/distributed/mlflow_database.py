"""MLflow's SQLite database, which is there whole or not at all."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from selfshot.files import atomic_file, file_lock

PREFIX = "sqlite:///"


def make_database(uri: str) -> None:
    """Make the tables of a database that is not there yet.

    MLflow makes them in dozens of steps and notes each step after it: a process that is killed in
    between leaves a database that MLflow refuses for ever. So they are made in another file,
    which then takes the database's name. Processes that want the same one wait for each other.

    Args:
        uri: of a tracking server; what is no SQLite file is left alone.
    """
    if not uri.startswith(PREFIX):
        return
    path = Path(uri.removeprefix(PREFIX))
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f".{path.name}.lock"), lambda text: None, path.name):
        if path.exists():
            return
        making = path.with_name(f".{path.name}.making")
        for left in path.parent.glob(f"{making.name}*"):
            left.unlink()
        _fill(making)
        # MLflow keeps its file open; the copy has everything, and nobody has it open.
        with (
            atomic_file(path) as made,
            contextlib.closing(sqlite3.connect(making)) as source,
            contextlib.closing(sqlite3.connect(made)) as target,
        ):
            source.backup(target)
        for left in path.parent.glob(f"{making.name}*"):
            left.unlink()


def _fill(path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"{PREFIX}{path}"
    MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
