"""What a table of results says, and no more: gaps, paired differences, and a claim in one sentence.

A row is what results.json holds: `{supports, shots, extra, AP50: {mean, std, per_fold}, AP, AP75,
AR10}` in percent. A value that is None, not finite or negative (the evaluator's −1) means
"no such number", and whatever would need it says so instead of guessing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from selfshot.config.supports import SUPPORT_KINDS

Rows = Sequence[Mapping[str, Any]]
Setting = tuple[int, int]  # shots, extra supports at inference

LABELS = {name: kind.label for name, kind in SUPPORT_KINDS.items()}
MEANINGS = {name: kind.meaning for name, kind in SUPPORT_KINDS.items()}
METRICS = ("AP50", "AP", "AP75", "AR10")
_PAIRS = (
    ("self_shot", "random"),
    ("self_shot", "query_itself"),
    ("oracle", "self_shot"),
    ("query_itself", "random"),
)


@dataclass(frozen=True)
class Figure:
    """A mean over folds; each part is None where there is no such number."""

    mean: float | None
    std: float | None
    per_fold: tuple[float | None, ...]


@dataclass(frozen=True)
class GapShare:
    """(self-shot − random) / (oracle − random), of AP50 means.

    `share` is None, with a `note` saying why, where it has no meaning.
    """

    shots: int
    extra: int
    random: float | None
    self_shot: float | None
    oracle: float | None
    share: float | None
    note: str
    published: float | None = None


@dataclass(frozen=True)
class Difference:
    """AP50 of `better` minus AP50 of `worse`, fold by fold on the same queries."""

    shots: int
    extra: int
    better: str
    worse: str
    mean: float
    std: float | None
    per_fold: tuple[float, ...]

    @property
    def wins(self) -> int:
        """On how many folds `better` is above `worse`."""
        return sum(value > 0 for value in self.per_fold)

    @property
    def verdict(self) -> str:
        """`clear`: every fold agrees and the mean exceeds the deviation."""
        if not self.per_fold:
            return "no folds to pair"
        if self.std is None:
            return "one fold: no deviation"
        agree = self.wins == len(self.per_fold) or all(value < 0 for value in self.per_fold)
        if not agree or abs(self.mean) <= self.std:
            return "not separated"
        return "clear" if self.mean > 0 else "clear, the other way"


def number(value: object) -> float | None:
    """A score as a float, or None for None, NaN, infinities and negative sentinels."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) and result >= 0 else None


def figure(row: Mapping[str, Any] | None, metric: str) -> Figure:
    """One metric of a row; empty when the row or the metric is missing."""
    cell = (row or {}).get(metric)
    if not isinstance(cell, Mapping):
        return Figure(number(cell), None, ())
    folds = cell.get("per_fold")
    per_fold = () if folds is None else tuple(number(value) for value in folds)
    known = sum(value is not None for value in per_fold)
    std = None if per_fold and known < 2 else number(cell.get("std"))
    return Figure(number(cell.get("mean")), std, per_fold)


def setting_of(row: Mapping[str, Any]) -> Setting:
    """A row's shots and extra supports; 0 where it says nothing."""
    return int(row.get("shots") or 0), int(row.get("extra") or 0)


def shots_label(shots: int, extra: int = 0) -> str:
    """`1 shot`, `5 shots`, `5+3 shots`; a dash for rows without supports."""
    if not shots:
        return "–"
    return f"{shots}+{extra} shots" if extra else f"{shots} shot{'s' if shots > 1 else ''}"


def find(rows: Rows, supports: str, setting: Setting) -> Mapping[str, Any] | None:
    """The row of these supports at a setting; the query itself also stands for other shots."""
    of_kind = [row for row in rows if row.get("supports") == supports]
    for row in of_kind:
        if setting_of(row) == setting:
            return row
    return of_kind[0] if supports == "query_itself" and len(of_kind) == 1 else None


def settings(rows: Rows) -> list[Setting]:
    """Every (shots, extra) at which some clips of the corpus or the oracle were used, in order."""
    kinds = ("random", "self_shot", "oracle")
    return sorted({setting_of(row) for row in rows if row.get("supports") in kinds})


def gap_share(rows: Rows, setting: Setting, published: Rows = ()) -> GapShare:
    """The share of the gap between random and oracle supports that self-shot ones recover."""
    values = {
        kind: figure(find(rows, kind, setting), "AP50").mean
        for kind in ("random", "self_shot", "oracle")
    }
    random, self_shot, oracle = values["random"], values["self_shot"], values["oracle"]
    share, note = None, ""
    missing = [LABELS[kind].lower() for kind, value in values.items() if value is None]
    if random is None or self_shot is None or oracle is None:
        note = f"not known: no figure for {' and '.join(missing)}"
    elif oracle <= random:
        note = "no meaning here: the oracle's supports score no higher than random ones"
    else:
        share = (self_shot - random) / (oracle - random)
    return GapShare(
        *setting, random, self_shot, oracle, share, note, published_share(published, setting)
    )


def published_share(published: Rows, setting: Setting) -> float | None:
    """The paper's share of the gap at a setting, from its own table."""
    cells = {
        str(row.get("supports")): number(row.get("AP50"))
        for row in published
        if setting_of(row) == setting
    }
    random, self_shot, oracle = (cells.get(kind) for kind in ("random", "self_shot", "oracle"))
    if random is None or self_shot is None or oracle is None or oracle <= random:
        return None
    return (self_shot - random) / (oracle - random)


def differences(rows: Rows, setting: Setting) -> list[Difference]:
    """The comparisons that matter, paired by fold, as far as the rows are there."""
    found = (difference(rows, setting, better, worse) for better, worse in _PAIRS)
    return [one for one in found if one is not None]


def difference(rows: Rows, setting: Setting, better: str, worse: str) -> Difference | None:
    """AP50 of `better` minus `worse`; None where either has no figure."""
    left = figure(find(rows, better, setting), "AP50")
    right = figure(find(rows, worse, setting), "AP50")
    if left.mean is None or right.mean is None:
        return None
    per_fold: tuple[float, ...] = ()
    if len(left.per_fold) == len(right.per_fold):
        per_fold = tuple(
            a - b
            for a, b in zip(left.per_fold, right.per_fold, strict=True)
            if a is not None and b is not None
        )
    return Difference(
        *setting,
        better,
        worse,
        fmean(per_fold) if per_fold else left.mean - right.mean,
        stdev(per_fold) if len(per_fold) > 1 else None,
        per_fold,
    )


def claim(rows: Rows) -> str:
    """One sentence that the figures support, whichever way they fall."""
    compared = [s for s in settings(rows) if difference(rows, s, "self_shot", "random")]
    if not compared:
        return _claim_without_comparison(rows)
    setting = compared[0]
    gap = gap_share(rows, setting)
    against = difference(rows, setting, "self_shot", "random")
    assert against is not None
    assert gap.self_shot is not None
    assert gap.random is not None
    at = f"With {shots_label(*setting)}"
    scores = f"{gap.self_shot:.1f} AP50 against {gap.random:.1f}"
    if against.verdict == "clear":
        return (
            f"{at}, supports that nobody labelled segment instances of unseen classes better "
            f"than random ones, {scores}{_and_share(gap)}."
        )
    if against.verdict == "clear, the other way":
        return f"{at}, supports that nobody labelled did worse than random ones here: {scores}."
    if against.std is None:
        side = "above" if against.mean > 0 else "below" if against.mean < 0 else "level with"
        return (
            f"{at}, supports that nobody labelled stand {side} random ones, {scores}; without "
            "several folds to pair, how much of that is chance is not known."
        )
    return (
        f"{at}, this run does not separate supports that nobody labelled from random ones: "
        f"{scores}, a difference of {against.mean:+.1f} ± {against.std:.1f} over folds."
    )


def _and_share(gap: GapShare) -> str:
    if gap.share is None:
        return ""
    if gap.share >= 1:
        return f", and no worse than supports picked by their labels ({gap.oracle:.1f})"
    return (
        f", and recover {100 * gap.share:.0f}% of the gap to supports picked by their labels "
        f"({gap.oracle:.1f})"
    )


def _claim_without_comparison(rows: Rows) -> str:
    scored = [(figure(row, "AP50").mean, row) for row in rows]
    known = [(mean, row) for mean, row in scored if mean is not None]
    if not known:
        return "This run has no score yet, so it says nothing about self-shot supports."
    mean, row = max(known, key=lambda pair: pair[0])
    kind = LABELS.get(str(row.get("supports")), str(row.get("supports")))
    return (
        "This run does not compare self-shot with random supports; its highest row is "
        f"“{kind}” at {mean:.1f} AP50."
    )
