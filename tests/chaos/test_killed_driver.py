"""kill -9 on the process that a person started; the same command then gives the same result."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT / "platform"), str(ROOT / "tests" / "integration")]
START = f"""
import os, sys
sys.path[:0] = {PATHS!r}
os.environ["PYTHONPATH"] = {PATHS[1]!r}
from pathlib import Path
from selfshot.distributed.session import ray_session
"""
TRAIN = """
from selfshot.distributed.training import train
from selfshot.training.loop import Schedule, TaskSpec
task = TaskSpec("toy", "selfshot.training.toy:build", {"seed": 1, "seconds_per_step": 0.1})
with ray_session():
    train(task, Schedule(steps=40, warmup_steps=4, weight_decay=1e-2, clip_norm=0.5,
        checkpoint_every=7, log_every=1, seed=3), work_dir=Path(sys.argv[1]))
"""
EMBED = """
from engine_parts import mean_colour
from selfshot.data.corpus_manifest import open_manifest
from selfshot.distributed.embedding import EmbeddingJob, embed_corpus
folder = Path(sys.argv[2])
with ray_session():
    embed_corpus(open_manifest(str(folder / "clips.parquet")), mean_colour(folder),
        EmbeddingJob(num_frames=2, height=16, width=32, clips_per_batch=4, clips_per_shard=8,
            decode_timeout_s=20.0, decode_memory_mb=4096, max_quarantine_share=0.5),
        settings={"encoder": "mean colour"}, out=sys.argv[1])
"""


def run(code: str, *arguments: Path, until: Callable[[], bool] | None = None) -> None:
    """Run to the end, or kill -9 as soon as `until` says so."""
    command = [sys.executable, "-c", START + code, *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if until is None:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        return
    while not until():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def last_kept_step(work_dir: Path) -> int:
    """Of the newest checkpoint on Ray's list, once the killed run's worker writes no more.

    It outlives the process that started it by a moment, in which a busy machine does many steps.
    """
    done, since = steps_done(work_dir), time.monotonic()
    while time.monotonic() - since < 3:
        time.sleep(0.1)
        if (now := steps_done(work_dir)) != done:
            done, since = now, time.monotonic()
    snapshot = work_dir / "scratch" / "ray" / "train" / "checkpoint_manager_snapshot.json"
    kept = json.loads(snapshot.read_text())["checkpoint_results"] if snapshot.exists() else []
    return max((int(entry["metrics"]["step"]) for entry in kept), default=0)


def steps_done(work_dir: Path) -> int:
    path = work_dir / "history.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_training(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(TRAIN, whole)
    first, second = sorted(random.sample(range(3, 38), 2))
    print(f"killed after steps {first} and {second}")
    run(TRAIN, killed, until=lambda: steps_done(killed) >= first)
    run(TRAIN, killed, until=lambda: steps_done(killed) >= second)
    kept = last_kept_step(killed)
    run(TRAIN, killed)
    exports = [folder / "export" / "model.safetensors" for folder in (whole, killed)]
    assert exports[0].read_bytes() == exports[1].read_bytes()
    histories = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    ]
    assert [p["step"] for p in histories[1]] == list(range(1, 41))
    assert [p["loss"] for p in histories[0]] == [p["loss"] for p in histories[1]]
    start = json.loads((killed / "scratch" / "start.json").read_text())["step"]
    # The last checkpoint's report may be on its way when the kill comes.
    assert start == kept >= second // 7 * 7 - 7


def test_embedding(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for frame in range(8):
            pixels = np.full((32, 64, 3), 30 * frame, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    starts = [row * 0.005 for row in range(100)]
    columns = {
        "clip_id": [f"clip-{row:03d}" for row in range(100)],
        "uri": ["video.mp4"] * 100,
        "start_s": starts,
        "end_s": pa.array([None] * 100, pa.float64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(EMBED, whole, tmp_path)
    (tmp_path / "seconds.txt").write_text("0.1")

    def shards() -> list[Path]:
        return sorted(killed.glob("shard-*.parquet"))

    run(EMBED, killed, tmp_path, until=lambda: len(shards()) >= 4)
    kept = {path: path.stat().st_mtime_ns for path in shards()}
    assert 4 <= len(kept) < 13
    run(EMBED, killed, tmp_path)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert len(shards()) == 13
    for path in shards():
        assert pq.read_table(path).equals(pq.read_table(whole / path.name))
    assert json.loads((killed / "summary.json").read_text())["embedded"] == 100
