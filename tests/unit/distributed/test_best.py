"""The best network of a training is kept, through kills, with the last one beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from selfshot.distributed.best import SCORES, BestExport, what_was_chosen

SCORED: dict[int, float] = {}


class Counter:
    """A task whose export is a number."""

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1)
        self.step = 0

    def export(self, folder: Path) -> None:
        assert folder.is_dir() and not list(folder.iterdir())
        assert not self.module.training
        (folder / "step").write_text(str(self.step))


def scorer(offset: float) -> Any:
    """A dotted path of `Counter`'s scores."""

    def score(module: nn.Module) -> dict[str, float]:
        assert not module.training
        return {"other": -1.0, "val_AP50": SCORED[len(ASKED)] + offset}

    return score


ASKED: list[int] = []


def write(task: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "step").write_text(str(task.step))


def kept(work_dir: Path, which: str) -> str:
    return (work_dir / which / "step").read_text()


def trained(work_dir: Path, scores: dict[int, float], killed: int = 0) -> None:
    """Three or more steps, judged after each second one."""
    ASKED.clear()
    SCORED.clear()
    task, steps = Counter(), max(scores)
    settings = {
        "path": "selfshot.distributed.tests:never", "kwargs": {"offset": 0.5}, "by": "val_AP50",
        "every": 2,
    }  # fmt: skip
    best = BestExport(work_dir, settings)
    best._score = scorer(**settings["kwargs"])
    best.start(0)
    task.module.train()
    for step in range(1, steps + 1):
        task.step = step
        if best.due(step, steps):
            SCORED[len(ASKED)] = scores[step]
            assert best.judge(task, step)["val_AP50"] == scores[step] + 0.5
            assert task.module.training
            ASKED.append(step)
        if step == killed:
            # Another process goes on, and judges the last steps again.
            best = BestExport(work_dir, settings)
            best._score = scorer(**settings["kwargs"])
            best.start(step)
    task.module.eval()
    best.export(task, write)
    assert sorted(scores) == ASKED


@pytest.mark.parametrize("killed", [0, 4, 5])
def test_best_and_last(tmp_path: Path, killed: int) -> None:
    (tmp_path / "scratch").mkdir()
    trained(tmp_path, {2: 10.0, 4: 30.0, 6: 30.0, 7: 20.0}, killed)
    assert kept(tmp_path, "export") == "4" and kept(tmp_path, "last") == "7"
    assert what_was_chosen(tmp_path) == {
        "best_step": 4, "best_other": -1.0, "best_val_AP50": 30.5,
        "last_step": 7, "last_other": -1.0, "last_val_AP50": 20.5,
    }  # fmt: skip
    assert len(list((tmp_path / "scratch").glob("best-*"))) == 1
    assert "folder" not in json.loads((tmp_path / SCORES).read_text())


def test_nothing_is_kept_of_an_earlier_try(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    trained(tmp_path, {2: 90.0, 3: 10.0})
    trained(tmp_path, {2: 5.0, 3: 7.0})
    assert kept(tmp_path, "export") == "3" and what_was_chosen(tmp_path)["best_val_AP50"] == 7.5
