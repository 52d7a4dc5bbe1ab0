"""Nodes with output folders of their own, joined by a local S3 server: inputs go by way of it.

And a driver that is killed in a training is followed by one on another machine, whose output folder
is empty.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("moto", reason="moto[server] is not installed")
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests/integration/toy.yaml"
sys.path.insert(0, str(ROOT / "tests/integration"))

from s3_server import s3_server  # noqa: E402

from selfshot.config.load import load_experiment  # noqa: E402
from selfshot.data.storage import Storage  # noqa: E402
from selfshot.studies.run import plan_experiment  # noqa: E402


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[str]:
    with s3_server(tmp_path / "s3.log") as (_, address):
        yield address


@pytest.fixture
def address(storage: str, tmp_path: Path) -> Iterator[str]:
    """A head that offers no core and no room for trials, and a node whose folder is elsewhere."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ |= {"PYTHONPATH": str(ROOT / "platform"), "RAY_worker_niceness": "0"}
    store = {"object_store_memory": 256 * 2**20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**store, "num_cpus": 0, "memory": 2**19}
    )
    try:
        own = {"SELFSHOT_CACHE": str(tmp_path / "node")}
        cluster.add_node(num_cpus=2, env_vars=own, **store)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def command(output: Path, storage: str, *overrides: str) -> list[str]:
    words = [str(Path(sys.executable).parent / "selfshot"), "run", str(TOY)]
    for one in (f"output={output}", f"storage={storage}", *overrides):
        words += ["--set", one]
    return words


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "platform")}


def run(*words: object, **settings: object) -> str:
    done = subprocess.run(
        command(*words), capture_output=True, text=True, env=environment(), timeout=1500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_workers_of_another_node_fetch_their_inputs(
    address: str, storage: str, tmp_path: Path
) -> None:
    joined = (f"compute.address={address}", "compute.threads_per_worker=1")
    run(tmp_path / "driver", storage, *joined)
    experiment = load_experiment(TOY, [f"output={tmp_path}/driver", f"storage={storage}"])
    plans = {plan.stage: plan for plan in plan_experiment(experiment)}
    assert {plan.status for plan in plans.values()} == {"done"}
    for stage in ("benchmark", "backbone", "vis", "supports"):
        there = tmp_path / "node" / "store" / stage / plans[stage].key / "manifest.json"
        assert there.read_bytes() == (plans[stage].path / "manifest.json").read_bytes()
    # What the worker wrote there came back, and was its own.
    trained = tmp_path / "node" / "store" / "vis" / f"{plans['vis'].key}.partial"
    export = next((plans["vis"].path / "export").glob("*.safetensors"))
    assert (trained / "export" / export.name).read_bytes() == export.read_bytes()
    assert (plans["vis"].path / "history.jsonl").stat().st_size > 0
    assert len(list((plans["evaluation"].path / "trials").glob("*.json"))) == 2
    assert len(list((plans["evaluation"].path / "predictions").glob("*.json"))) > 2
    assert not [name for name in Storage(storage).sizes("", deep=True) if ".partial/" in name]

    # A study's trials run on that node, and its driver has an empty folder.
    sweep = ("name=toys", "sweep.over={supports.expand_by: [0, 1]}")
    run(tmp_path / "second", storage, *joined, *sweep)
    results = sorted((tmp_path / "second" / "toys" / "trials").glob("*.json"))
    logs = sorted((tmp_path / "node" / "toys" / "logs").glob("*.log"))
    assert len(results) == 2
    assert {path.stem for path in results} <= {path.stem for path in logs}
    for path in results:
        rows = json.loads(path.read_text())["rows"]
        assert {row["supports"] for row in rows} >= {"self_shot", "random"}
    said = run(tmp_path / "third", storage, *sweep)
    assert "2 trials, 2 of them done" in said
    assert (tmp_path / "third" / "toys" / "report" / "report.html").exists()


def test_another_machine_goes_on_with_a_killed_training(storage: str, tmp_path: Path) -> None:
    longer = ("vis.optimiser.steps=40", "compute.checkpoint_every=4")
    with (tmp_path / "first.log").open("wb") as log:
        driver = subprocess.Popen(
            command(tmp_path / "first", storage, *longer),
            env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    files, end = Storage(storage), time.monotonic() + 1200
    place = re.compile(r"vis/[0-9a-f]{16}\.partial/scratch/ray/train/checkpoint_manager_snapshot")
    while not any(place.match(name) for name in files.sizes("store", deep=True)):
        assert driver.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    said = run(tmp_path / "second", storage, *longer)
    for stage in ("benchmark", "backbone", "encoder", "embeddings"):
        assert re.search(rf"\] {stage}: reused", said), said
    of_vis = said.partition("] vis: started")[2].partition("vis made in")[0]
    steps = [int(step) for step in re.findall(r"step (\d+)/40", of_vis)]
    assert steps and min(steps) > 4, said
    experiment = load_experiment(
        TOY, [f"output={tmp_path}/second", f"storage={storage}", *longer]
    )
    (vis,) = [plan for plan in plan_experiment(experiment) if plan.stage == "vis"]
    lines = (vis.path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(2, 41, 2))
