"""Geometry of the report's charts: numbers in, positions in percent out; the template draws them.

Positions are percentages, so an SVG stretches to any width while its dots, lines and text keep
their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfshot.studies import findings

_MOST_POINTS = 300


def interval_chart(rows: findings.Rows) -> dict[str, Any]:
    """AP50 of every row as a mean, its deviation and the seeds behind it."""
    figures = [(row, findings.figure(row, "AP50")) for row in rows]
    known = [(row, f) for row, f in figures if f.mean is not None]
    reach = [0.0]
    for _, cell in known:
        reach += [(cell.mean or 0.0) + (cell.std or 0.0)]
        reach += [value for value in cell.per_seed if value is not None]
    top = min(max(math.ceil((max(reach) + 1) / 10) * 10, 20), 100)
    step = 10 if top <= 60 else 20

    def at(value: float) -> float:
        return round(100 * min(max(value, 0.0), top) / top, 2)

    lines = []
    for row, cell in known:
        assert cell.mean is not None
        lines.append(
            {
                "kind": str(row.get("supports")),
                "label": label_of(row),
                "shots": findings.shots_label(*findings.setting_of(row)),
                "mean": cell.mean,
                "std": cell.std,
                "x": at(cell.mean),
                "low": at(cell.mean - cell.std) if cell.std is not None else None,
                "high": at(cell.mean + cell.std) if cell.std is not None else None,
                "seeds": [at(value) for value in cell.per_seed if value is not None],
            }
        )
    ticks = [{"value": value, "x": at(value)} for value in range(0, top + 1, step)]
    return {"lines": lines, "ticks": ticks}


def label_of(row: Mapping[str, Any]) -> str:
    """What a row's supports are called, or their own name where it is not one of ours."""
    kind = str(row.get("supports"))
    return findings.LABELS.get(kind, kind)


def gauge(gap: findings.GapShare) -> dict[str, Any]:
    """A bar from the random row (0%) to the oracle (100%); shares outside stop at the ends."""
    published = gap.published

    def clamp(value: float) -> float:
        return round(100 * min(max(value, 0.0), 1.0), 1)

    return {
        "gap": gap,
        "shots": findings.shots_label(gap.shots, gap.extra),
        "fill": None if gap.share is None else clamp(gap.share),
        "published": None if published is None else clamp(published),
    }


def learning_curves(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """For each stage its loss, then its other series; what is not finite is left out."""
    stages = []
    for stage, points in curves.items():
        names = sorted({name for point in points for name in point if name != "step"})
        names.sort(key=lambda name: name != "loss")
        series = [_line(name, points) for name in names]
        drawn = [line for line in series if line is not None]
        if drawn:
            stages.append({"stage": stage, "main": drawn[0], "others": drawn[1:7]})
    return stages


def _line(name: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One series in a box of 100 × 100, y downwards; None when it has no point."""
    pairs = []
    for index, point in enumerate(points):
        try:
            value, step = float(point.get(name, math.nan)), float(point.get("step", index))
        except (TypeError, ValueError):
            continue  # a word or None among the numbers of a log
        if math.isfinite(value) and math.isfinite(step):
            pairs.append((step, value))
    if not pairs:
        return None
    pairs.sort()
    every = math.ceil(len(pairs) / _MOST_POINTS)
    kept = pairs[::every] if pairs[-1] in pairs[::every] else [*pairs[::every], pairs[-1]]
    first, last = pairs[0][0], pairs[-1][0]
    values = [value for _, value in pairs]
    low, high = min(values), max(values)
    # A quantity that stays ≥ 0 is drawn from 0 when that costs at most half of the height.
    if 0 < low < high / 2:
        low = 0.0
    width, height = (last - first) or 1.0, (high - low) or 1.0
    path = " ".join(
        f"{100 * (step - first) / width:.2f},{100 - 100 * (value - low) / height:.2f}"
        for step, value in kept
    )
    return {
        "name": name,
        "path": path,
        "low": low,
        "high": high,
        "first": values[0],
        "last": values[-1],
        "last_step": int(last),
    }
