"""Stages that drivers share by way of storage: what one has made, no other makes again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfshot.config.load import load_experiment
from selfshot.config.schema import Experiment
from selfshot.errors import UserError
from selfshot.studies.run import (
    open_store,
    run_experiment,
    stage_keys,
    stage_settings,
    wanted_stages,
)

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).parent / "toy.yaml"


def finish(experiment: Experiment, until: str) -> None:
    """Empty results of an experiment's stages, here and in storage."""
    stages = wanted_stages(experiment, until)
    settings = stage_settings(stages, experiment)
    keys = stage_keys(stages, settings)
    store = open_store(experiment)
    for stage in stages:
        inputs = {name: keys[name] for name in stage.inputs}
        with store.stage(stage.name, stage.version, settings[stage.name], inputs) as folder:
            folder.finish()


def test_a_machine_without_a_gpu_takes_what_storage_has(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    settings = [f"storage={tmp_path / 'storage'}", "compute.use_gpu=true"]
    finish(load_experiment(TOY, [*settings, f"output={tmp_path / 'first'}"]), "embeddings")
    second = load_experiment(TOY, [*settings, f"output={tmp_path / 'second'}"])
    with pytest.raises(UserError, match=r"compute\.use_gpu"):
        run_experiment(second, until="vis")
    made = run_experiment(second, until="embeddings")
    assert made is not None and (made / "manifest.json").exists()
    assert made.parents[2] == tmp_path / "second"


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster on this machine that both drivers join."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(ROOT / "platform")
    node = {"num_cpus": 2, "object_store_memory": 256 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_drivers_on_one_cluster_make_a_stage_once(address: str, tmp_path: Path) -> None:
    """Even the first one, before which neither has joined the cluster."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    drivers = []
    for name in ("first", "second"):
        words = [sys.executable, "-m", "selfshot.cli", "train", "backbone", str(TOY)]
        for setting in (f"output={tmp_path / name}", f"storage={tmp_path / 'storage'}",
                        f"compute.address={address}"):  # fmt: skip
            words += ["--set", setting]
        drivers.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
        )  # fmt: skip
    said = [driver.communicate()[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    for stage in ("benchmark", "backbone"):
        started = [text for text in said if re.search(rf"\] {stage}: started", text)]
        reused = [text for text in said if re.search(rf"\] {stage}: reused", text)]
        assert (len(started), len(reused)) == (1, 1), said
