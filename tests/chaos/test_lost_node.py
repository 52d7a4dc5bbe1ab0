"""A node of three is lost while a submitted job embeds a corpus: no clip is lost, none comes twice.

The nodes have network namespaces of their own where this machine allows it (cluster/local_nodes),
and are raylets side by side in `ray.cluster_utils.Cluster` in any case.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfshot.retrieval.embeddings import read_embeddings, read_quarantine

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
CLIPS, BROKEN = 300, 7
SHARD = 6
# Ray's workers give way to every other program by default: on a busy machine they hardly run.
POLITE = {"RAY_worker_niceness": "0"}


def load_script() -> Any:
    loader = importlib.machinery.SourceFileLoader("local_nodes", str(ROOT / "cluster/local_nodes"))
    spec = importlib.util.spec_from_loader("local_nodes", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Namespaces:
    """Three nodes with addresses of their own."""

    def __init__(self) -> None:
        script = load_script()
        reason = script.why_not()
        if reason is not None:
            pytest.skip(reason)
        self.nodes = script.LocalNodes(3, cpus=1, object_store_mb=256, environment=POLITE)
        self.nodes.__enter__()

    def submit(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                self.nodes.within(0, ["ray", "job", "submit", "--", *words]),
                env=self.nodes.environment, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill_node(self) -> int:
        return int(self.nodes.kill(2))

    def close(self) -> None:
        self.nodes.__exit__()


class Raylets:
    """Three raylets of one machine, with one address."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ |= {"PYTHONPATH": str(ROOT / "platform"), **POLITE}
        shared = {"num_cpus": 1, "object_store_memory": 256 * 2**20}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={**shared, "include_dashboard": True, "dashboard_port": 0},
        )
        self.others = [self.cluster.add_node(**shared) for _ in range(2)]
        self.cluster.wait_for_nodes()

    def submit(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        address = f"http://{self.cluster.webui_url}"
        submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", address]
        with log.open("wb") as file:
            return subprocess.Popen([*submit, "--", *words], stdout=file, stderr=subprocess.STDOUT)

    def kill_node(self) -> int:
        node = self.others[1]
        (raylet,) = node.all_processes["raylet"]
        lost = [psutil.Process(raylet.process.pid)]
        lost += lost[0].children(recursive=True)
        # The raylet goes first: it would start another worker for a lost one.
        for process in lost:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)
        return len(lost)

    def close(self) -> None:
        self.cluster.shutdown()


@pytest.fixture(params=[Namespaces, Raylets])
def cluster(request: pytest.FixtureRequest) -> Iterator[Namespaces | Raylets]:
    before = dict(os.environ)
    made = request.param()
    try:
        yield made
    finally:
        made.close()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    import av

    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for frame in range(100):
            pixels = np.full((32, 64, 3), 2 * frame, dtype=np.uint8)
            pixels[:, : frame % 64] = 255 - 2 * frame
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    step = CLIPS // BROKEN
    uris = ["broken.mp4" if row % step == 3 else "video.mp4" for row in range(CLIPS)]
    columns = {
        "clip_id": [f"clip-{row:04d}" for row in range(CLIPS)],
        "uri": uris,
        "start_s": [row * 0.01 for row in range(CLIPS)],
        "end_s": pa.nulls(CLIPS, pa.float64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
    return tmp_path / "clips.parquet"


def test_the_account_balances(
    cluster: Namespaces | Raylets, corpus: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "job.log"
    selfshot = str(Path(sys.executable).parent / "selfshot")
    settings = {"num_frames": 4, "clips_per_shard": SHARD}
    words = [selfshot, "embed", "--corpus", str(corpus), "--out", str(out), "--size", "64x64"]
    for name, value in settings.items():
        words += ["--set", f"embedding.{name}={value}"]
    job = cluster.submit(words, log)
    try:
        while len(list(out.glob("shard-*.parquet"))) < 4:
            assert job.poll() is None, log.read_text()
            time.sleep(0.05)
        assert cluster.kill_node() > 1
        done = len(list(out.glob("shard-*.parquet")))
        assert done < CLIPS // SHARD, "the job was over before the node was lost"
        assert job.wait(600) == 0, log.read_text()[-5000:]
    finally:
        job.kill()
    broken = sum(1 for row in range(CLIPS) if row % (CLIPS // BROKEN) == 3)
    assert f"{CLIPS - broken} embedded + {broken} quarantined = {CLIPS} clips" in log.read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["embedded"], summary["quarantined"]) == (CLIPS - broken, broken)
    ids, vectors = read_embeddings(out)
    quarantined = [clip for clip, _ in read_quarantine(out)]
    assert sorted([*ids, *quarantined]) == [f"clip-{row:04d}" for row in range(CLIPS)]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-4)
    print(f"killed after {done} of {CLIPS // SHARD} shards")
