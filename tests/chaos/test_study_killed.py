"""kill -9 in the shared stages and in the trials of a study; the same command ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "integration" / "toy.yaml"
SETTINGS = [
    "name=study",
    "evaluation.supports=[random, seen_penalty]",
    "sweep.over={supports.expand_by: [0, 1, 2], supports.window_size: [2, 3]}",
    "sweep.parallel=1",
]


def start(output: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "selfshot.cli", "run", str(TOY)]
    for setting in [f"output={output}", *SETTINGS]:
        command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def kill_when(output: Path, log: Path, when: Callable[[], bool]) -> None:
    process = start(output, log)
    while not when():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_study_that_is_killed_goes_on(tmp_path: Path) -> None:
    output, log = tmp_path / "runs", tmp_path / "log"

    def trials() -> dict[Path, int]:
        found = (output / "study" / "trials").glob("*.json")
        return {path: path.stat().st_mtime_ns for path in found}

    def made() -> dict[Path, int]:
        found = output.glob("store/*/*/manifest.json")
        return {p: p.stat().st_mtime_ns for p in found if "." not in p.parent.name}

    kill_when(output, log, lambda: bool(list(output.glob("store/encoder/*.partial"))))
    kill_when(output, log, lambda: len(trials()) >= 2)
    some, stages = trials(), made()
    process = start(output, log)
    assert process.wait(timeout=600) == 0, log.read_text()
    assert len(trials()) == 6 and some.items() <= trials().items()
    assert stages.items() <= made().items()
    counts = [path.parts[-3] for path in made()]
    # Predicted rows are kept by their supports: those of trials that chose the same are one. At
    # least the random ones are the same in all: two rows of two folds.
    rows = counts.count("evaluated_rows")
    assert 8 <= rows <= 4 + 6 * 4
    counts = [stage for stage in counts if stage != "evaluated_rows"]
    assert {stage: counts.count(stage) for stage in counts} == {
        "benchmark": 1, "backbone": 1, "encoder": 1, "embeddings": 1, "index": 1, "seen": 1,
        "vis": 1, "supports": 6, "evaluation": 6,
    }  # fmt: skip
    summary = json.loads((output / "study" / "report" / "results.json").read_text())
    assert len(summary["trials"]) == 6 and summary["unfinished"] == []

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    found = client.get_experiment_by_name("selfshot")
    runs = client.search_runs([found.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = sorted(run.info.run_name for run in runs)
    assert names == sorted(["study", *(trial["label"] for trial in summary["trials"])])
