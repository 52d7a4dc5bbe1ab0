"""From trials to rows of the table: mean and deviation over folds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

SCORES = ("AP50", "AP", "AP75", "AR1", "AR10")


def figure_name(score: str, row: Mapping[str, Any]) -> str:
    """What a figure of a row is called in MLflow, such as AP50/self_shot/5_shot_3_extra."""
    extra = f"_{row['extra']}_extra" if row["extra"] else ""
    return f"{score}/{row['supports']}/{row['shots']}_shot{extra}"


def aggregate(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind of support and number of shots.

    Args:
        trials: results of `evaluate_fold`, in the order of the folds; figures in percent, -1
            where a fold has no ground truth.

    Returns:
        `supports`, `shots`, `extra`, and for each score its `mean`, `std` (of the sample, over
        folds; 0 for one fold) and `per_fold`; `pooled_AP50` likewise.
    """
    rows = []
    for position, first in enumerate(trials[0]["rows"]):
        of_folds = [trial["rows"][position] for trial in trials]
        row: dict[str, Any] = {key: first[key] for key in ("supports", "shots", "extra")}
        for score in SCORES:
            row[score] = _spread([entry[score] for entry in of_folds])
        row["pooled_AP50"] = _spread([entry["pooled"]["AP50"] for entry in of_folds])
        rows.append(row)
    return rows


def _spread(values: list[float]) -> dict[str, Any]:
    known = [value for value in values if value >= 0]
    return {
        "mean": statistics.fmean(known) if known else -1.0,
        "std": statistics.stdev(known) if len(known) > 1 else 0.0,
        "per_fold": values,
    }
