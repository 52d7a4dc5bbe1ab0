"""Ctrl-C or SIGTERM in one stage after another; the same command then ends as if undisturbed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "integration" / "toy.yaml"
# Long enough to be stopped in the middle.
LONGER = [
    "benchmark.corpus_clips=40",
    "embedding.clips_per_shard=4",
    "backbone.optimiser.steps=60",
    "vis.optimiser.steps=20",
    "compute.log_every=1",
]
STAGES = ("benchmark", "backbone", "encoder", "embeddings", "index", "seen", "supports", "vis",
          "vis_no_fuser", "evaluation")  # fmt: skip
WAYS = ((signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True))
"""A terminal signals all of a process group, as `timeout` does; Slurm and docker one process."""
STOPPED = "stopped; run the same command to go on"
GONE_S = 10.0
"""A decoder looks for its parent every two seconds."""


class Command:
    """`selfshot …` as a terminal starts it: at the head of a process group of its own."""

    def __init__(self, folder: Path, *words: object) -> None:
        self.log, self.err = folder / "out.log", folder / "err.log"
        # Short: Ray's sockets lie below.
        self.temporary = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "platform"),
            "RAY_TMPDIR": str(self.temporary),
        }
        with self.log.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "selfshot.cli", *map(str, words)],
                stdout=out, stderr=err, env=environment, start_new_session=True,
            )  # fmt: skip
        self.below: list[psutil.Process] = []

    def wait_for(self, pattern: str) -> None:
        """Until its output has a match."""
        while not re.search(pattern, self.log.read_text()):
            assert self.process.poll() is None, self.log.read_text() + self.err.read_text()
            time.sleep(0.01)

    def wait_for_handlers(self) -> None:
        """Until Python has loaded the program."""
        status = Path(f"/proc/{self.process.pid}/status")
        while not int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) >> 14 & 1:
            time.sleep(0.01)

    def send(self, number: signal.Signals, *, group: bool) -> None:
        """To all of its process group, or to it alone."""
        self.below = psutil.Process(self.process.pid).children(recursive=True)
        (os.killpg if group else os.kill)(self.process.pid, number)

    def assert_stopped(self, number: signal.Signals) -> None:
        """It says so in one line, and nothing of it is left."""
        code = self.process.wait()
        said = self.err.read_text()
        assert (code, said.splitlines()) == (128 + number, [STOPPED]), self.log.read_text() + said
        _, alive = psutil.wait_procs(self.below, timeout=GONE_S)
        assert not [one.name() for one in alive if one.status() != psutil.STATUS_ZOMBIE]
        self.temporary.rmdir()

    def assert_ended(self) -> None:
        """As if nothing had been."""
        assert self.process.wait() == 0, self.log.read_text() + self.err.read_text()
        self.temporary.rmdir()


def run_words(output: Path, *settings: str) -> list[object]:
    words: list[object] = ["run", TOY]
    for setting in (f"output={output}", *LONGER, *settings):
        words += ["--set", setting]
    return words


def statuses(output: Path) -> set[str]:
    """Of the runs that MLflow has."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    found = client.get_experiment_by_name("selfshot")
    return {run.info.status for run in client.search_runs([found.experiment_id])}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an experiment that is stopped in every stage, and then ends."""
    folder = tmp_path_factory.mktemp("stopped", numbered=False)
    output = folder / "runs"
    for position, stage in enumerate(STAGES):
        number, group = WAYS[position % len(WAYS)]
        command = Command(folder, *run_words(output))
        # What is short may have ended by the time of the signal, or of the one before: then the
        # next stage is stopped.
        command.wait_for(rf"\] {stage}: (started|going on|reused)")
        time.sleep(random.uniform(0, 5))
        command.send(number, group=group)
        command.assert_stopped(number)
        assert "KILLED" in statuses(output) and "RUNNING" not in statuses(output), stage
    Command(folder, *run_words(output)).assert_ended()
    return output


def test_every_stage_of_an_experiment(output: Path) -> None:
    assert statuses(output) == {"FINISHED"}
    assert (output / "toy" / "report" / "report.html").stat().st_size > 0
    stages = {path.parts[-3] for path in output.glob("store/*/*/manifest.json")}
    assert stages >= set(STAGES)


COMMANDS = {
    "study": ("run", "{toy}", "--set", "output={folder}/runs", "--set", "name=study",
              "--set", "sweep.over={{vis.num_instances: [2, 3]}}"),
    "embed": ("embed", "--corpus", "{corpus}", "--size", "32x32", "--out", "{folder}/vectors",
              "--encoder", "{encoder}"),
    "corpus build": ("corpus", "build", "--videos", "{corpus}", "--out", "{folder}/manifest"),
    "predict": ("predict", "{toy}", "--video", "{video}", "--out", "{folder}/predicted",
                "--set", "output={output}", *(w for s in LONGER for w in ("--set", s))),
    "index": ("index", "--embeddings", "{embeddings}", "--out", "{folder}/index"),
    "cluster check": ("cluster", "check", "{toy}", "--set", "output={folder}/runs"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("seconds", [(0.0, 0.5), (0.5, 3.0), (3.0, 10.0)], ids=str)
def test_other_commands(
    output: Path, tmp_path: Path, name: str, seconds: tuple[float, float]
) -> None:
    corpus = next(output.glob("store/benchmark/*/corpus.parquet")).parent
    video = next(corpus.rglob("*.mp4"))
    places = {
        "toy": TOY, "folder": tmp_path, "output": output, "corpus": video.parent, "video": video,
        "encoder": next(output.glob("store/encoder/*/export")),
        "embeddings": next(output.glob("store/embeddings/*/summary.json")).parent,
    }  # fmt: skip
    words = [word.format(**places) for word in COMMANDS[name]]
    command = Command(tmp_path, *words)
    command.wait_for_handlers()
    time.sleep(random.uniform(*seconds))
    if command.process.poll() is not None:
        command.assert_ended()
        pytest.skip("it has ended by then")
    number, group = random.choice(WAYS)
    command.send(number, group=group)
    command.assert_stopped(number)
    Command(tmp_path, *words).assert_ended()
