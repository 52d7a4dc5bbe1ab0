"""What a study's run in MLflow shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfshot.studies.tables import Cell, Table
from selfshot.studies.telling import LONGEST_NOTE, tell_study_extent, tell_study_report


class Told:
    """A run that remembers what it was told."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.metrics: dict[str, float] = {}
        self.datasets: list[str] = []
        self.tables: list[str] = []

    def log_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.metrics |= metrics

    def log_dataset(self, name: str, *facts: Any) -> None:
        self.datasets.append(name)

    def log_table(self, rows: Any, name: str) -> None:
        self.tables.append(name)

    def log_artifacts(self, path: Path, folder: str) -> None:
        pass


def table(rows: int) -> Table:
    cells = (Cell(31.0, 2.0, (29.0, 33.0), "folds"),)
    return Table("Scores", "", ("five",), tuple((f"row {n}", cells) for n in range(rows)))


def test_the_table_is_on_the_face_of_the_run(tmp_path: Path) -> None:
    run = Told()
    tell_study_report(run, tmp_path, [table(2)], "What it is")
    note = run.tags["mlflow.note.content"]
    assert note.startswith("What it is\n\n**Scores**") and "| row 1 | 31.0 ± 2.0 |" in note
    assert run.tables == ["table"]
    tell_study_report(run, tmp_path, [table(900)], "What it is")
    note = run.tags["mlflow.note.content"]
    assert len(note) < LONGEST_NOTE and note.endswith("report/table.md.")


def test_trials_are_counted_once_and_data_sets_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "benchmark" / "b"
    folder.mkdir(parents=True)
    content = {"name": "sprites", "kind": "sprites", "seed": 0, "counts": {"videos": 3}}
    (folder / "benchmark.json").write_text(json.dumps(content))
    results = [{"key": key, "stages": {"benchmark": "b"}} for key in ("x", "y", "y")]
    run = Told()
    tell_study_extent(run, results, 4, tmp_path)
    assert run.metrics == {"trials_done": 2, "trials_left": 4} and run.datasets == ["sprites"]
