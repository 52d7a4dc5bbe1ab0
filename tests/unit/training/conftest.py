"""What the training tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfshot.training.loop import TrainingTask


def _same(a: Any, b: Any) -> bool:
    """Whether two batches hold the same."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))


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
