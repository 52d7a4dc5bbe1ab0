"""A benchmark of a few clips, and a pretrained backbone, that the training tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfshot.benchmarks.sprites.build import build_sprites
from selfshot.training.backbone import BackboneTask
from selfshot.training.loop import TrainingTask, run_plain


def _same(a: Any, b: Any) -> bool:
    """Whether two batches hold the same."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="session")
def tiny_sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sprites benchmark of 32 × 32 pixels and 3 frames."""
    root = tmp_path_factory.mktemp("tiny_sprites")
    (root / "benchmark").mkdir()
    build_sprites(
        root / "benchmark",
        root / "scratch",
        map,
        seed=0,
        height=32,
        width=32,
        num_frames=3,
        train_classes=3,
        val_classes=1,
        test_classes=1,
        train_queries=3,
        train_supports=3,
        eval_queries=1,
        eval_supports=1,
        corpus_clips=13,
        corpus_seen_classes=1,
        multi_shot_share=0.5,
    )
    return root / "benchmark"


@pytest.fixture(scope="session")
def backbone_settings(tiny_sprites: Path) -> dict[str, Any]:
    """Arguments of `BackboneTask`."""
    return {
        "benchmark": str(tiny_sprites),
        "seed": 1,
        "width": 8,
        "dim": 12,
        "classes_per_batch": 3,
        "temperature": 0.1,
        "learning_rate": 5e-3,
    }


@pytest.fixture(scope="session")
def backbone_folder(
    backbone_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What `BackboneTask.export` writes after a few steps."""
    folder = tmp_path_factory.mktemp("backbone")
    task = BackboneTask(**backbone_settings)
    run_plain(task, steps=4, warmup_steps=1, weight_decay=1e-4, clip_norm=1.0)
    task.export(folder)
    return folder


@pytest.fixture
def check_pure() -> Callable[[TrainingTask, TrainingTask], None]:
    """Check that a batch depends on seed, step and rank alone."""

    def check(task: TrainingTask, twin: TrainingTask) -> None:
        """Batches of two tasks that were asked in another order."""
        first = {step: task.batch(step, 0, 1) for step in (3, 0)}
        twin.batch(7, 0, 1)
        assert all(_same(twin.batch(step, 0, 1), first[step]) for step in (0, 3))
        assert not _same(first[0], first[3])
        ranks = [task.batch(3, rank, 2) for rank in range(2)]
        assert not _same(*ranks)
        assert _same(twin.batch(3, 1, 2), ranks[1])

    return check
