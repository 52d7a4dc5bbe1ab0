"""The paper's studies: every file at every size, and every cell of every table has a trial."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from refusals import refused
from selfshot.config.studies import PaperTable
from selfshot.config.sweep import Study, load_study
from selfshot.studies.reports.tables import (
    paper_table,
    published_content,
    published_rows,
    published_table,
)
from selfshot.studies.settings import table_rows

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "experiments" / "paper").glob("*.yaml"))
# What is not built yet, and how validation says so.
MISSING: dict[str, str] = {}
# Rows that have no trial.
DASHES = {
    "table01": {"(c) Inception fixed", "(d) Inception MoCo"},
}
CASES = [  # As a file stands, and with the other bases that its head names.
    pytest.param(path, size, id=f"{path.stem} {size}")
    for path in FILES
    for size in ["", *re.findall(rf"--set name={path.stem}-(\w+)", path.read_text())]
]


def load(path: Path, size: str) -> Study:
    """A file's study, with the settings of the command in its head that names that size."""
    head = path.read_text().split("\nname:")[0].replace("\\\n#", "")
    commands = [line for line in head.splitlines() if size and f"name={path.stem}-{size}" in line]
    return load_study(path, commands[0].split(" --set ")[1:] if commands else ())


@pytest.mark.parametrize(("path", "size"), CASES)
def test_every_study_is_valid_at_every_size(path: Path, size: str) -> None:
    if path.stem in MISSING:
        with refused():
            load(path, size)
        return
    made = load(path, size)
    assert bool(made.trials) == (path.stem not in ("figure03", "figure05"))
    assert made.experiment.name == (f"{path.stem}-{size}" if size else path.stem)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_says_what_it_claims_and_costs(path: Path) -> None:
    head = path.read_text().split("\nname:")[0]
    for word in ("# Claim ", "# Command ", "# Cost ", "# Published numbers"):
        assert word in head
    assert f"selfshot run experiments/paper/{path.stem}.yaml" in head
    assert ("NOT RUNNABLE YET" in head) == (path.stem in MISSING)


def fake_results(study: Study) -> list[dict[str, Any]]:
    """A result of every trial, with every row that its evaluation would have."""
    results = []
    for number, trial in enumerate(study.trials):
        rows = [
            {
                **row,
                "AP50": {"mean": 10.0 + number, "std": 1.0, "per_fold": [9.0, 11.0]},
                "breakdown": {
                    kind: {label: {"AP50": 20.0, "videos": 3} for label in labels}
                    for kind, labels in (
                        ("instances", ("1", "2", "3", "4", "≥ 5")),
                        ("classes", ("1", "2", "3", "≥ 4")),
                    )
                },
            }
            for row in table_rows(trial.experiment)
        ]
        results.append(
            {
                "name": trial.name, "case": trial.case, "settings": trial.settings,
                "repeat": trial.repeat, "rows": rows,
            }
        )  # fmt: skip
    return results


@pytest.mark.parametrize(("path", "size"), CASES)
def test_every_published_cell_has_its_trial(path: Path, size: str) -> None:
    if path.stem in MISSING:
        return
    study = load(path, size)
    name = study.experiment.sweep.table
    if name in ("", "table06", "figure02"):
        return
    dashes = DASHES.get(path.stem, set())
    table = paper_table(published_table(name), fake_results(study))
    for label, cells in table.rows:
        for column, cell in zip(table.columns, cells, strict=True):
            left_out = label in dashes
            slip = label.endswith("k+(5)") and column == "1"
            expected = cell.published is not None and not left_out and not slip
            assert (cell.mean is not None) == expected, f"{label}, {column}"


def test_the_settings_know_every_published_table() -> None:
    named = set(get_args(PaperTable)) - {"", "table06"}
    assert named == set(published_content())


def test_every_published_table_is_whole() -> None:
    for name, entry in published_content().items():
        if "rows" in entry:
            table = published_table(name)
            assert {len(row) for row in table.values} == {len(table.columns)}, name
            known = [value for row in table.values for value in row if value is not None]
            assert all(0 < value < 100 for value in known)


def test_rows_of_one_experiment() -> None:
    rows = {(r["supports"], r["shots"], r["extra"]): r["AP50"] for r in published_rows()}
    assert rows["self_shot", 5, 1] == 54.6 and rows["no_fuser", 0, 0] == 42.4
    assert rows["semi_shot", 1, 4] == 55.1 and rows["spatial_crops", 5, 0] == 47.8
    assert rows["query_itself", 1, 0] == 44.0
