"""kill -9 in the training of Φ: queue, momentum twin, order of clips and augmentation go on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfshot.benchmarks.sprites.build import build_sprites
from selfshot.config.benchmarks import SpritesBenchmark

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30
TRAIN = f"""
import json, sys
sys.path.insert(0, {str(ROOT / "platform")!r})
from pathlib import Path
from selfshot.distributed.session import ray_session
from selfshot.distributed.training import train
from selfshot.distributed.worker import Fleet
from selfshot.training.loop import Schedule, TaskSpec
task = TaskSpec("encoder", "selfshot.training.encoder:EncoderTask", json.loads(sys.argv[2]))
with ray_session():
    train(task, Schedule(steps={STEPS}, warmup_steps=3, weight_decay=0.1, clip_norm=1.0,
        checkpoint_every=4, log_every=1, seed=5), Fleet(threads_per_worker=1, loader_workers=1),
        work_dir=Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sprites")
    (folder / "benchmark").mkdir()
    sizes = SpritesBenchmark(
        height=32, width=32, num_frames=2, train_classes=2, val_classes=1,
        test_classes=1, train_queries=1, train_supports=1, eval_queries=2,
        eval_supports=1, corpus_clips=11, corpus_seen_classes=1,
    )  # fmt: skip
    build_sprites(folder / "benchmark", folder / "scratch", map, sizes, seed=0)
    return folder / "benchmark"


def _kwargs(benchmark: Path) -> dict[str, Any]:
    return {
        "benchmark": str(benchmark),
        "backbone": None,
        "backbone_network": {"width": 8, "dim": 12},
        "seed": 1,
        "encoder": {
            "backbone": "video_vit", "vit_size": "tiny", "videos_per_batch": 5,
            "crops_per_video": 2, "queue_length": 30, "momentum": 0.9, "augmentation": "moco",
            "head": "mlp", "probe_every": 10,
            "optimiser": {"steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 0},
        },
    }  # fmt: skip


def _points(work_dir: Path) -> list[dict[str, Any]]:
    path = work_dir / "history.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _run(work_dir: Path, kwargs: dict[str, Any], kill_after: int | None = None) -> None:
    """To the end, or until so many steps are logged."""
    command = [sys.executable, "-c", TRAIN, str(work_dir), json.dumps(kwargs)]
    log = work_dir.with_suffix(".log")
    # A file and no pipe: processes of a killed Ray hold a pipe open for a minute.
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    if kill_after is None:
        assert process.wait(timeout=250) == 0, log.read_text()
        return
    while not any(point["step"] >= kill_after for point in _points(work_dir)):
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_training_ends_with_the_same_bits(benchmark: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kwargs = _kwargs(benchmark)
    _run(whole, kwargs)
    first, second = sorted(random.sample(range(5, STEPS - 2), 2))
    print(f"killed after steps {first} and {second}")
    _run(killed, kwargs, first)
    _run(killed, kwargs, second)
    _run(killed, kwargs)
    for name in ("encoder.safetensors", "encoder.json"):
        ours, theirs = (folder / "export" / name for folder in (killed, whole))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert int(json.loads((killed / "scratch" / "start.json").read_text())["step"]) > 0
    exact = (
        "step", "loss", "embedding_std", "queue_age", "nearest_is_positive", "probe_precision_5",
    )  # fmt: skip
    histories = [
        [{name: point.get(name) for name in exact} for point in _points(folder)]
        for folder in (whole, killed)
    ]
    assert [point["step"] for point in histories[0]] == list(range(STEPS + 1))
    assert histories[0] == histories[1]
