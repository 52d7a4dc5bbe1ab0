"""Rows of the table: mean and deviation over folds, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from selfshot.studies.scores import SCORES, aggregate


def trial(*figures: float) -> dict[str, Any]:
    """A fold's result of one row for each figure; the scores differ by whole numbers."""
    kinds = ("random", "oracle")
    rows = []
    for kind, figure in zip(kinds, figures, strict=False):
        scores = {
            name: figure if figure < 0 else figure + number for number, name in enumerate(SCORES)
        }
        rows.append(
            {"supports": kind, "shots": 1, "extra": 0, "name": f"{kind}_1+0", **scores}
            | {"pooled": {**scores, "AP50": figure if figure < 0 else figure + 50}}
        )
    return {"rows": rows, "queries": 3, "fold": 0}


def test_mean_and_deviation_of_the_sample() -> None:
    rows = aggregate([trial(10, 40), trial(20, 40), trial(60, 46)])
    assert [(row["supports"], row["shots"], row["extra"]) for row in rows] == [
        ("random", 1, 0),
        ("oracle", 1, 0),
    ]
    assert rows[0]["AP50"]["mean"] == pytest.approx(30)
    # Deviations -20, -10, 30: √((400 + 100 + 900) / 2).
    assert rows[0]["AP50"]["std"] == pytest.approx(700**0.5)
    assert rows[0]["AP50"]["per_fold"] == [10, 20, 60]
    assert rows[1]["AP50"] == {"mean": 42, "std": pytest.approx(12**0.5), "per_fold": [40, 40, 46]}
    for number, name in enumerate(SCORES):
        assert rows[0][name]["mean"] == pytest.approx(30 + number)
    assert rows[0]["pooled_AP50"]["mean"] == pytest.approx(80)


def test_one_fold_has_no_deviation() -> None:
    (row,) = aggregate([trial(12.5)])
    assert row["AP50"] == {"mean": 12.5, "std": 0.0, "per_fold": [12.5]}


def test_a_fold_without_ground_truth_is_kept_and_not_counted() -> None:
    (row,) = aggregate([trial(10), trial(-1), trial(14)])
    assert row["AP50"]["per_fold"] == [10, -1, 14] and row["AP50"]["mean"] == 12
    assert row["AP50"]["std"] == pytest.approx(8**0.5)
    (lone,) = aggregate([trial(-1), trial(0)])
    assert lone["AP50"] == {"mean": 0, "std": 0.0, "per_fold": [-1, 0]}
    (empty,) = aggregate([trial(-1), trial(-1)])
    assert empty["AP50"] == {"mean": -1, "std": 0.0, "per_fold": [-1, -1]}
