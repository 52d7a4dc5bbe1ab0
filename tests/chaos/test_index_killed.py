"""kill -9 while an index is built, again and again; it ends as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfshot.retrieval.building import load_index

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
CLIPS, DIM = 20_011, 32
BUILD = """
import json, sys
from pathlib import Path
from selfshot.retrieval import building
from selfshot.retrieval.building import BuildSettings, build_from_embeddings
building.PART_ROWS, building.HELD_QUERIES = 500, 20
embeddings, folder, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
(folder / "scratch").mkdir(parents=True, exist_ok=True)
build_from_embeddings(embeddings, folder, folder / "scratch", BuildSettings(**settings))
(folder / "done").touch()
"""
FACTORIES = ("IVF37,Flat", "IVF37,PQ8", "IVF37,RaBitQ2")


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(CLIPS, DIM)).astype(np.float32)
    for number, start in enumerate(range(0, CLIPS, 997)):
        part = vectors[start : start + 997]
        columns = {
            "clip_id": [f"clip-{row}" for row in range(start, start + len(part))],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), DIM),
            "status": ["embedded"] * len(part),
            "error": pa.nulls(len(part), pa.string()),
        }
        pq.write_table(pa.table(columns), folder / f"shard-{number:05d}.parquet")
    return folder


def start(embeddings: Path, folder: Path, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", BUILD, str(embeddings), str(folder), json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True)


@pytest.mark.parametrize("factory", FACTORIES)
def test_killed_until_it_is_done(factory: str, embeddings: Path, tmp_path: Path) -> None:
    settings = {"factory": factory, "nprobe": 5}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(embeddings, whole, settings).wait(timeout=300) == 0
    chance = random.Random(5)
    kills = parts_at_kill = 0
    while not (killed / "done").exists():
        process = start(embeddings, killed, settings)
        seen = len(list((killed / "scratch").glob("part-*.faiss")))
        # Let it come some parts further, then kill it wherever it is.
        wanted = seen + chance.randint(1, 12)
        while process.poll() is None and kills < 5:
            parts = len(list((killed / "scratch").glob("part-*.faiss")))
            if parts >= wanted:
                time.sleep(chance.uniform(0, 0.05))
                os.killpg(process.pid, signal.SIGKILL)
                kills, parts_at_kill = kills + 1, parts
                break
            time.sleep(0.01)
        process.wait(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL)
    assert kills and parts_at_kill
    one, other = load_index(whole), load_index(killed)
    assert len(one) == len(other) == CLIPS and list(one.clip_ids) == list(other.clip_ids)
    queries = np.random.default_rng(1).normal(size=(53, DIM)).astype(np.float32)
    for mine, its in zip(one.search(queries, 9), other.search(queries, 9), strict=True):
        assert mine.tolist() == its.tolist()
