"""The best of the networks that a training passed through, by a score of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfshot.files import atomic_folder, write_atomically

BEST, LAST, SCORES = "best", "last", "validation.json"


class BestExport:
    """Scores a network at intervals and keeps the export of the best; used by rank 0.

    What is kept lies in the scratch folder, so that a killed training goes on with it: a folder
    for the best export, and a small file that names it. The first of equal ones stays.
    """

    def __init__(self, work_dir: Path, settings: Mapping[str, Any]) -> None:
        """Build it; on every rank, as `due` is called on each.

        Args:
            work_dir: of the training.
            settings: `path`, dotted, of what makes the scorer; its `kwargs`; `by`, which of the
                scorer's figures is compared; `every` so many steps.
        """
        self.work_dir, self.settings = work_dir, settings
        self.scratch = work_dir / "scratch"
        self._score: Callable[[Any], dict[str, float]] | None = None

    def due(self, done: int, steps: int) -> bool:
        """Whether the network is scored after so many steps; the last one always is."""
        return done % int(self.settings["every"]) == 0 or done == steps

    def start(self, first_step: int) -> None:
        """From the beginning nothing is kept of an earlier try."""
        if first_step == 0:
            (self.scratch / SCORES).unlink(missing_ok=True)

    def judge(self, task: Any, done: int) -> dict[str, float]:
        """Figures of the network as it is, which is kept if it is the best so far."""
        from selfshot.training.loop import resolve

        if self._score is None:
            self._score = resolve(self.settings["path"])(**self.settings["kwargs"])
        was_training = task.module.training
        task.module.eval()
        figures = self._score(task.module)
        scores = self._scores() or {}
        found, by = {"step": done, **figures}, self.settings["by"]
        if not scores or figures[by] > scores[BEST][by]:
            folder = self.scratch / f"{BEST}-{done}-{os.getpid()}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            task.export(folder)
            scores = {BEST: found, "folder": folder.name}
        self._write(self.scratch / SCORES, {**scores, LAST: found})
        for folder in self.scratch.glob(f"{BEST}-*"):
            if folder.name != scores["folder"]:
                shutil.rmtree(folder, ignore_errors=True)
        task.module.train(was_training)
        return figures

    def export(self, task: Any, write: Callable[[Any, Path], None]) -> None:
        """Leave the best as `export`, the last beside it as `last`, and their scores.

        Args:
            task: as it is after the last step.
            write: writes a task's export to a folder, whole or not at all.
        """
        scores = self._scores()
        assert scores is not None, "the last step is always judged"
        write(task, self.work_dir / LAST)
        final = self.work_dir / "export"
        with atomic_folder(final, self.scratch / f"new-{BEST}-{os.getpid()}") as new:
            shutil.copytree(self.scratch / scores.pop("folder"), new, dirs_exist_ok=True)
            shutil.rmtree(final, ignore_errors=True)
        self._write(self.work_dir / SCORES, scores)

    def _scores(self) -> dict[str, Any] | None:
        path = self.scratch / SCORES
        return json.loads(path.read_text()) if path.exists() else None

    def _write(self, path: Path, scores: dict[str, Any]) -> None:
        write_atomically(path, json.dumps(scores, indent=1) + "\n")


def what_was_chosen(work_dir: Path) -> dict[str, Any]:
    """What a manifest says of it: step and figures of the best and the last."""
    scores = json.loads((work_dir / SCORES).read_text())
    return {
        f"{which}_{name}": value for which in (BEST, LAST) for name, value in scores[which].items()
    }
