"""The paper's studies on a cluster of three nodes: a node is lost, then the driver; both go on.

`experiments/paper/figure02.yaml` and `table01.yaml` are sent as a person sends them, by
`ray job submit` with a working directory, at toy size; a real `mlflow server` logs them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfshot.config.load import laid

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "local_nodes"
PAPER = ROOT / "experiments" / "paper"
SHARES = [0.1, 0.2, 0.4, 0.7, 1.0]
REPEATS = 3
TRIALS = (len(SHARES) - 1) * REPEATS + 1
"""Repeats draw other subsets, and there is one subset with everything."""
TOY: dict[str, Any] = {
    "base": "toy.yaml",
    "benchmark": {"eval_supports": 10, "corpus_clips": 40},
    "compute": {"threads_per_worker": 1},
}
SERVER = "http://127.0.0.1:5000"
# Ray's workers give way to every other program by default: on a busy machine they hardly run.
POLITE = {"RAY_worker_niceness": "0"}


def load_script() -> Any:
    loader = importlib.machinery.SourceFileLoader("local_nodes", str(SCRIPT))
    spec = importlib.util.spec_from_loader("local_nodes", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Cluster:
    """Three nodes, MLflow's server beside the head, and a folder that all of them see."""

    def __init__(self, folder: Path) -> None:
        script = load_script()
        reason = script.why_not()
        if reason is not None:
            pytest.skip(reason)
        self.folder, self.output, self.words = folder, folder / "runs", folder / "words"
        self.words.mkdir()
        self.nodes = script.LocalNodes(3, cpus=1, object_store_mb=256, environment=POLITE)
        self.nodes.__enter__()
        self.server: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Start MLflow's server with the words of docs/guide/cluster.md."""
        (self.folder / "mlflow").mkdir()
        words = [
            "mlflow", "server", "--host", "127.0.0.1", "--port", "5000", "--workers", "1",
            "--backend-store-uri", self.database,
            "--artifacts-destination", str(self.folder / "mlflow" / "artifacts"),
        ]  # fmt: skip
        with (self.folder / "mlflow.log").open("wb") as log:
            environment = {**self.nodes.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self.server = subprocess.Popen(
                self.nodes.within(0, words), env=environment, stdout=log, stderr=log
            )
        asking = [sys.executable, str(SCRIPT), "--ask", f"{SERVER}/health"]
        until(
            lambda: subprocess.run(self.nodes.within(0, asking)).returncode == 0,
            lambda: (self.folder / "mlflow.log").read_text()[-3000:],
        )

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow' / 'mlflow.db'}"

    def submit(self, log: Path, *command: str) -> subprocess.Popen[bytes]:
        """`ray job submit` of a command on a study that is in the working directory."""
        words = [
            "ray", "job", "submit", "--runtime-env", str(ROOT / "cluster" / "runtime_env.yaml"),
            "--working-dir", ".", "--", "selfshot", *command,
            "--set", "compute.address=auto", "--set", f"output={self.output}",
            "--set", f"tracking.uri={SERVER}",
        ]  # fmt: skip
        with log.open("wb") as file:
            return subprocess.Popen(
                self.nodes.within(0, words), cwd=self.words, env=self.nodes.environment,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def titles(self, node: int) -> list[str]:
        """Command lines of a node's processes; Ray's workers say there what they do."""
        lines = []
        for pid in self.nodes.processes(node):
            try:
                raw = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            lines.append(raw.replace(b"\0", b" ").decode(errors="replace"))
        return lines

    def lose(self, node: int) -> None:
        """Kill -9 of a node, by the command that a person has."""
        done = subprocess.run(
            [str(SCRIPT), "--kill", str(node), "--of", str(os.getpid())],
            env=self.nodes.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        killed = re.fullmatch(rf"killed (\d+) processes of node {node}\n", done.stdout)
        assert killed is not None and int(killed[1]) > 1

    def kill_driver(self, study: str) -> None:
        """Kill -9 of the process group of the submitted job."""
        found = []
        for pid in self.nodes.processes(0):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if any(word.endswith("/selfshot") for word in words) and study in words:
                found.append(pid)
        groups = {os.getpgid(pid) for pid in found}
        assert len(groups) == 1, groups
        (group,) = groups
        assert group != os.getpgid(self.nodes.started[0].pid)
        os.killpg(group, signal.SIGKILL)

    def close(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
        # What Ray wrote goes with its nodes, and is all there is when a driver ends without a word.
        for logs in self.nodes.folder.glob("*/session_*/logs"):
            if not logs.parent.is_symlink():
                node = logs.parents[1].name
                shutil.copytree(logs, self.folder / "ray" / node, dirs_exist_ok=True)
        self.nodes.__exit__()


def until(ready: Callable[[], bool], explain: Callable[[], str], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, explain()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.serve()
        shutil.copy(ROOT / "tests" / "integration" / "toy.yaml", made.words)
        figure = {"sweep": {"over": {"supports.corpus_share": SHARES}}, **TOY}
        for name, scale in (("figure02", figure), ("table01", TOY)):
            # The paper's study at another size: everything but the size is as it is published.
            text = laid(yaml.safe_load((PAPER / f"{name}.yaml").read_text()), scale)
            (made.words / f"{name}.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
        yield made
    finally:
        made.close()


def times(paths: Iterator[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths}


def trials(cluster: Cluster, study: str) -> dict[Path, int]:
    return times((cluster.output / study / "trials").glob("*.json"))


def stages(cluster: Cluster) -> dict[Path, int]:
    found = cluster.output.glob("store/*/*/manifest.json")
    return times(path for path in found if "." not in path.parent.name)


def of_stage(made: dict[Path, int]) -> Counter[str]:
    counts = Counter(path.parts[-3] for path in made)
    del counts["evaluated_rows"]  # Kept by their supports: trials that chose the same share them.
    return counts


def assert_logged_once(cluster: Cluster, study: str, count: int) -> None:
    """The study is one run of the server, each trial one child of it, and all of them ended."""
    from mlflow import MlflowClient

    client = MlflowClient(cluster.database)
    found = client.get_experiment_by_name("selfshot")
    (parent,) = client.search_runs([found.experiment_id], f"tags.mlflow.runName = '{study}'")
    children = client.search_runs(
        [found.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    keys = [run.data.tags["selfshot.key"] for run in children]
    assert len(keys) == len(set(keys)) == count
    assert set(keys) == {path.stem for path in trials(cluster, study)}
    for run in children:
        assert any(name.startswith("AP50/self_shot/") for name in run.data.metrics)
        assert "stage.evaluation" in run.data.tags
    folder = cluster.folder / "mlflow" / "artifacts" / found.experiment_id / parent.info.run_id
    names = {path.name for path in (folder / "artifacts" / "report").iterdir()}
    assert {"report.html", "table.tex", "table.csv"} <= names
    assert all("selfshot.logged" in run.data.tags for run in [parent, *children]), "refused"


def test_the_cluster_is_looked_at_before_a_job_is_sent(cluster: Cluster) -> None:
    log = cluster.folder / "check.log"
    assert cluster.submit(log, "cluster", "check", "figure02.yaml").wait(300) == 0, log.read_text()
    text = log.read_text()
    for node in range(3):
        assert f"ok      node {cluster.nodes.address(node)}: the same versions" in text
    assert f"ok      tracking: {SERVER} answers" in text
    assert "ok      capacity: 1 training workers fit" in text
    wide = cluster.folder / "wide.log"
    words = ["cluster", "check", "figure02.yaml", "--set", "compute.use_gpu=true"]
    assert cluster.submit(wide, *words).wait(300) != 0
    assert "wrong   capacity: compute.use_gpu: true with compute.num_workers: 1" in wide.read_text()
    assert not cluster.output.exists() or not list(cluster.output.iterdir())


def test_figure_2_loses_a_node_and_then_its_driver(cluster: Cluster) -> None:
    def done() -> int:
        return len(trials(cluster, "figure02"))

    log = cluster.folder / "figure02-1.log"
    job = cluster.submit(log, "run", "figure02.yaml")
    busy: list[int] = []

    def a_worker_is_busy() -> bool:
        """Whether a node that is not the head evaluates, in the middle of the study."""
        assert job.poll() is None, log.read_text()
        busy[:] = [
            node for node in (1, 2)
            if any(line.startswith("ray::_keep") for line in cluster.titles(node))
        ]  # fmt: skip
        return done() >= 2 and bool(busy)

    until(a_worker_is_busy, log.read_text)
    lost = busy[0]
    cluster.lose(lost)
    before = done()
    assert before < TRIALS - 3, "the study was nearly over before the node was lost"

    def goes_on() -> bool:
        assert job.poll() is None, log.read_text()
        return done() >= before + 2

    until(goes_on, log.read_text)
    cluster.kill_driver("figure02.yaml")
    assert job.wait(120) != 0
    some, made = trials(cluster, "figure02"), stages(cluster)
    assert len(some) < TRIALS, "the study was over before its driver was killed"

    again = cluster.folder / "figure02-2.log"
    assert cluster.submit(again, "run", "figure02.yaml").wait(900) == 0, again.read_text()
    cluster.nodes.start(lost)  # For the next study; this one ended without it.

    assert some.items() <= trials(cluster, "figure02").items()
    assert len(trials(cluster, "figure02")) == TRIALS
    assert made.items() <= stages(cluster).items(), "a finished stage was made again"
    assert of_stage(stages(cluster)) == {
        "benchmark": 1, "backbone": 1, "encoder": 1, "embeddings": 1, "index": 1,
        "vis": 1, "supports": TRIALS, "evaluation": TRIALS,
    }  # fmt: skip
    assert f"figure02: {TRIALS} trials, {len(some)} of them done" in again.read_text()
    report = cluster.output / "figure02" / "report"
    assert {path.name for path in report.iterdir()} == {
        "report.md", "report.html", "table.md", "table.csv", "table.tex", "results.json",
        "figure.png", "figure.svg",
    }  # fmt: skip
    summary = json.loads((report / "results.json").read_text())
    assert len(summary["trials"]) == len(SHARES) * REPEATS and summary["unfinished"] == []
    sizes = [round(40 * share) for share in SHARES]
    assert {tuple(curve["sizes"]) for name, curve in summary["figure"].items()
            if name in ("1", "5")} == {tuple(map(float, sizes))}  # fmt: skip
    assert_logged_once(cluster, "figure02", TRIALS)


def test_table_1_takes_what_figure_2_made(cluster: Cluster) -> None:
    before = stages(cluster)
    log = cluster.folder / "table01-1.log"
    job = cluster.submit(log, "run", "table01.yaml")

    def in_a_training() -> bool:
        assert job.poll() is None, log.read_text()
        return bool(list(cluster.output.glob("store/encoder/*.partial/history.jsonl")))

    until(in_a_training, log.read_text)
    cluster.kill_driver("table01.yaml")
    assert job.wait(120) != 0
    # The other trial had nothing to train, and may have ended.
    some = trials(cluster, "table01")
    assert len(some) < 2
    again = cluster.folder / "table01-2.log"
    assert cluster.submit(again, "run", "table01.yaml").wait(900) == 0, again.read_text()

    assert before.items() <= stages(cluster).items()
    assert some.items() <= trials(cluster, "table01").items()
    # The ranking loss's encoder and all below it were there, as was the transformer.
    assert of_stage(stages(cluster)) - of_stage(before) == {
        "encoder": 1, "embeddings": 1, "index": 1, "supports": 2, "evaluation": 2,
    }  # fmt: skip
    report = cluster.output / "table01" / "report"
    text = (report / "table.md").read_text()
    filled = [line for line in text.splitlines() if line.startswith("| (") and "–" not in line]
    assert [line[2:5] for line in filled] == ["(a)", "(b)", "(e)", "(f)"]
    assert_logged_once(cluster, "table01", 2)
