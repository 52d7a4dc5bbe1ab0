"""A database of MLflow is whole or not there, whenever its making is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfshot.distributed import mlflow_database
from selfshot.distributed.mlflow_database import make_database

MAKE = """
import sys
from selfshot.distributed.mlflow_database import make_database
make_database(sys.argv[1])
"""


def started(uri: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, uri], stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(mlflow_database.__file__).parents[2])},
    )  # fmt: skip


def tables(path: Path) -> set[str]:
    found = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    return {name for (name,) in found.execute("SELECT name FROM sqlite_master")}


def test_a_killed_making_leaves_nothing_that_is_in_the_way(tmp_path: Path) -> None:
    path, uri = tmp_path / "mlflow.db", f"sqlite:///{tmp_path / 'mlflow.db'}"
    making = tmp_path / ".mlflow.db.making"
    process = started(uri)
    # Some of its tables are there, others are not.
    while not (making.exists() and making.stat().st_size > 0 and "runs" in tables(making)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()

    first, second = started(uri), started(uri)
    assert first.wait(120) == second.wait(120) == 0
    assert {"runs", "experiments", "alembic_version"} <= tables(path)
    assert {one.name for one in tmp_path.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("paper"))
    make_database(uri)
    assert client.get_run(run.info.run_id).info.status == "RUNNING"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "postgresql://somewhere/mlflow"])
def test_a_server_is_left_alone(uri: str) -> None:
    make_database(uri)
