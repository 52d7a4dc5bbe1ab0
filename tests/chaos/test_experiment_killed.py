"""kill -9 in one stage of an experiment after another; the same command ends as if undisturbed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "integration" / "toy.yaml"
# Long enough to be killed in the middle.
LONGER = """
benchmark.corpus_clips=40 embedding.clips_per_shard=4
backbone.optimiser.steps=90 vis.optimiser.steps=30 compute.checkpoint_every=5 compute.log_every=1
evaluation.folds=3 compute.parallel_trials=1
"""
STAGES = ("benchmark", "backbone", "encoder", "embeddings", "index", "seen", "supports", "vis",
          "vis_no_fuser", "evaluation")  # fmt: skip
GONE_S = 90.0
"""Two agents of a killed Ray try for a minute to tell its server, which is dead as well."""

When = Callable[[Path], bool]


def start(output: Path, log: Path) -> subprocess.Popen[bytes]:
    """`selfshot run`, at the head of a process group of its own, writing into `log`."""
    settings = [f"output={output}", *LONGER.split()]
    command = [sys.executable, "-m", "selfshot.cli", "run", str(TOY)]
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def run_to_the_end(output: Path, log: Path) -> dict[str, str]:
    """Statuses of the stages of a run that nobody disturbs."""
    process = start(output, log)
    assert process.wait(timeout=400) == 0, log.read_text()
    return statuses(log)


def statuses(log: Path) -> dict[str, str]:
    return dict(re.findall(r"\[\d+/\d+\] (\w+): (started|going on|reused)", log.read_text()))


def kill_when(
    output: Path, log: Path, stage: str, when: When, *, whole_group: bool
) -> list[psutil.Process]:
    """Start, and kill -9 as soon as `stage` is being made and `when` says so of its folder.

    Returns:
        the processes that the killed one had started; not all of them are of its group.
    """
    process = start(output, log)
    while True:
        made = statuses(log).get(stage) in ("started", "going on")
        partial = next((output / "store" / stage).glob("*.partial"), None) if made else None
        if partial is not None and when(partial):
            break
        assert process.poll() is None, log.read_text()
        assert f"{stage} made in" not in log.read_text(), "killed too late"
        time.sleep(0.005)
    below = psutil.Process(process.pid).children(recursive=True)
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return below


def assert_gone(processes: list[psutil.Process]) -> None:
    """Nobody was left to end Ray's processes, so they must have ended themselves."""
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    left = [" ".join(one.info["cmdline"] or [])[:100] for one in with_commands(alive)]
    assert not left, f"{len(left)} processes outlive the run: {left}"


def with_commands(processes: list[psutil.Process]) -> list[Any]:
    """Those that still run, with their command lines; a zombie is no process any more."""
    known = {process.pid for process in processes}
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.pid in known and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def after(seconds: float) -> When:
    """So long after it was first asked."""
    asked: list[float] = []

    def when(folder: Path) -> bool:
        asked.append(time.monotonic())
        return asked[-1] - asked[0] >= seconds

    return when


def lines(count: int) -> When:
    """When a training has logged so many steps."""

    def when(folder: Path) -> bool:
        history = folder / "history.jsonl"
        return history.exists() and history.read_bytes().count(b"\n") >= count

    return when


def files(pattern: str, count: int) -> When:
    """When so many files are there."""
    return lambda folder: len(list(folder.glob(pattern))) >= count


def finished(output: Path) -> dict[Path, int]:
    """Manifests of finished stages and when they were written; rows that are kept are none."""
    return {path: path.stat().st_mtime_ns for path in output.glob("store/*/*/manifest.json")
            if "." not in path.parent.name and path.parts[-3] != "evaluated_rows"}  # fmt: skip


def test_an_experiment_that_is_killed_in_many_stages(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_to_the_end(whole, tmp_path / "whole.log")
    kills: list[tuple[str, When]] = [
        ("benchmark", after(random.uniform(0, 0.5))),
        ("backbone", lines(random.randint(8, 40))),
        ("backbone", lines(random.randint(45, 80))),
        ("encoder", after(random.uniform(0, 3))),
        ("embeddings", files("shard-*.parquet", 1)),
        ("supports", after(random.uniform(0, 0.05))),
        ("vis", lines(random.randint(1, 20))),
        ("evaluation", after(random.uniform(0, 2))),
        ("evaluation", files("trials/fold_*.json", 1)),
    ]
    done: dict[Path, int] = {}
    started: list[psutil.Process] = []
    for number, (stage, when) in enumerate(kills):
        log = tmp_path / f"killed-{number}.log"
        # A person kills the process they see; a machine that runs out of memory may kill any.
        started += kill_when(killed, log, stage, when, whole_group=number % 2 == 0)
        now = finished(killed)
        assert done.items() <= now.items()
        done = now
        assert stage not in {path.parts[-3] for path in done}
    last = run_to_the_end(killed, tmp_path / "last.log")
    assert last["evaluation"] in ("started", "going on")
    assert {name for name, status in last.items() if status == "reused"} == set(STAGES[:-1])

    assert done.items() <= finished(killed).items()
    assert sorted(path.parts[-3] for path in finished(killed)) == sorted(STAGES)
    left = [path for path in (killed / "store").glob("*/*") if path.is_dir() and "." in path.name]
    assert not left
    for pattern in (
        "toy/report/results.json",
        "store/benchmark/*/annotations.json",
        "store/*/*/export/*.safetensors",
        "store/index/*/index.faiss",
        "store/supports/*/supports.json",
        "store/evaluation/*/predictions/*.json",
    ):
        ours, theirs = ({p.relative_to(o): p.read_bytes() for p in o.glob(pattern)}
                        for o in (killed, whole))  # fmt: skip
        assert ours and ours == theirs, pattern
    assert (killed / "toy" / "report" / "report.html").stat().st_size > 0
    rows = json.loads((killed / "toy" / "report" / "results.json").read_text())
    assert len(rows) == 9
    assert_one_run_in_mlflow(killed)
    assert_gone(started)


def assert_one_run_in_mlflow(output: Path) -> None:
    """Ten starts are one run with ten stages and three trials, and all of them ended."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    found = client.get_experiment_by_name("selfshot")
    runs = client.search_runs([found.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = sorted(run.info.run_name for run in runs)
    assert names == sorted(["toy", *STAGES, *(f"evaluation.fold_{fold}" for fold in range(3))])
