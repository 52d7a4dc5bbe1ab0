"""How sure a score is: confidence intervals by drawing the videos again.

A resample is as many videos as there are, drawn with replacement: it gives each video a count.
Predictions are matched within their video, so nothing is matched again. A resample's score is that
of the same ranked list with each prediction counted as often as its video was drawn, which is
exactly the score of the data set with those videos repeated, ties of scores apart.

Videos are drawn, not instances, because instances of one video are found or missed together. What
the interval shows is how the score would vary with other videos of the same kind; it does not show
how it would vary with another training.

A resample has fewer different videos than there are, and average precision rises where there is
less to rank: with few videos a category the resamples lie above the score. `bias` says by how much;
most of it cancels in a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from selfshot.evaluation.matches import IOU_THRESHOLDS, Bins, Compared, Matches, match_tracks
from selfshot.evaluation.video_ap import RECALL_POINTS

RESAMPLES = 1000
CONFIDENCE = 0.95
_EVERYTHING = Bins("area", np.array([[0.0, np.inf]]))
# Floats that one step of the sums may hold.
_FLOATS_AT_ONCE = 2**22


def bootstrap(
    compared: Compared,
    other: Compared | None = None,
    *,
    class_agnostic: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Percentile intervals of AP50 and AP, and of their difference to other results.

    Args:
        compared: every video that counts.
        other: the same videos with other predictions, drawn in the same resamples.
        class_agnostic: treat all categories as one.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        `AP50` and `AP`, each with `value`, `low` and `high` between which 95% of the resamples
        lie, and `bias`, by which their mean exceeds the value; `resamples` and `seed`. With
        `other` also `other`, alike, and `difference` (ours less the other), which has `above`
        too, the share of resamples in which ours is the larger. A resample without any ground
        truth is left out; what is then unknown is None.
    """
    counts = draw_videos(len(compared.videos), resamples, seed)
    ours = _values(compared, counts, class_agnostic)
    found: dict[str, Any] = {"resamples": resamples, "seed": seed} | _intervals(ours)
    if other is not None:
        theirs = _values(other, counts, class_agnostic)
        found["other"] = _intervals(theirs)
        differences = {name: ours[name] - theirs[name] for name in ours}
        found["difference"] = {
            name: interval | {"above": _share_above_0(differences[name])}
            for name, interval in _intervals(differences).items()
        }
    return found


def draw_videos(num_videos: int, resamples: int, seed: int) -> Int[np.ndarray, "resamples videos"]:
    """How often each resample has each video."""
    rng = np.random.default_rng(seed)
    if not num_videos:
        return np.zeros((resamples, 0), dtype=np.int64)
    return rng.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=resamples)


def resampled_precision(
    matches: Matches, counts: Int[np.ndarray, "resamples videos"]
) -> Float[np.ndarray, "resamples categories thresholds"]:
    """Average precision with each video counted so many times; NaN without ground truth.

    Args:
        matches: what became of the predictions; the first bin counts.
        counts: of each video of each resample.
    """
    num_thresholds = len(IOU_THRESHOLDS)
    values = np.full((len(counts), len(matches.categories), num_thresholds), np.nan)
    order = np.argsort(-matches.scores, kind="stable")
    for index in range(len(matches.categories)):
        mine = order[matches.category[order] == index]
        matched, ignored = matches.matched[0][:, mine], matches.ignored[0][:, mine]
        for some in _portions(len(counts), len(mine)):
            num_tracks = (counts[some] @ matches.num_tracks[0, index]).astype(np.float64)
            weights = counts[some][:, matches.video[mine]].astype(np.float64)
            known = num_tracks > 0
            for threshold in range(num_thresholds):
                counted = ~ignored[threshold]
                values[some, index, threshold][known] = _average_precision(
                    weights[known], matched[threshold] & counted, counted, num_tracks[known]
                )
    return values


def _average_precision(
    weights: Float[np.ndarray, "resamples predictions"],
    right: np.ndarray,
    counted: np.ndarray,
    num_tracks: Float[np.ndarray, " resamples"],
) -> Float[np.ndarray, " resamples"]:
    """The mean over recall points of the best precision at that recall or beyond.

    Recall and the best precision change only where a prediction is right, so only these places
    are kept: each stands for the recall points above the recall before it and up to its own.
    """
    places = np.flatnonzero(right)
    num_right = np.cumsum(weights[:, places], axis=-1)
    num_counted = np.cumsum(weights * counted, axis=-1)[:, places]
    precision = num_right / (num_counted + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=-1)[:, ::-1]
    reached = np.searchsorted(RECALL_POINTS, num_right / num_tracks[:, None], side="right")
    points = np.diff(reached, axis=-1, prepend=0)
    return (best * points).sum(-1) / len(RECALL_POINTS)


def _portions(num_resamples: int, num_predictions: int) -> Iterator[slice]:
    step = max(1, _FLOATS_AT_ONCE // max(num_predictions, 1))
    for start in range(0, num_resamples, step):
        yield slice(start, start + step)


def _values(
    compared: Compared, counts: Int[np.ndarray, "resamples videos"], class_agnostic: bool
) -> dict[str, Float[np.ndarray, " values"]]:
    """AP50 and AP, first of all videos as they are, then of each resample."""
    matches = match_tracks(compared, _EVERYTHING, class_agnostic=class_agnostic)
    once = np.ones((1, len(compared.videos)), dtype=np.int64)
    values = resampled_precision(matches, np.concatenate([once, counts]))
    return {"AP50": _mean_of_known(values[..., 0]), "AP": _mean_of_known(values.mean(-1))}


def _mean_of_known(
    values: Float[np.ndarray, "resamples categories"],
) -> Float[np.ndarray, " resamples"]:
    """Over the categories that have ground truth; NaN if none has."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(-1)
    number = known.sum(-1)
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def _intervals(
    values: dict[str, Float[np.ndarray, " values"]],
) -> dict[str, dict[str, float | None]]:
    """The first of each values, and between what most of the others lie."""
    found: dict[str, dict[str, float | None]] = {}
    for name, some in values.items():
        value, drawn = float(some[0]), _known(some[1:])
        found[name] = dict.fromkeys(("value", "low", "high", "bias"))
        if not np.isnan(value):
            found[name]["value"] = value
            if len(drawn):
                tail = (1 - CONFIDENCE) / 2
                low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
                found[name] |= {"low": low, "high": high, "bias": float(drawn.mean()) - value}
    return found


def _share_above_0(values: Float[np.ndarray, " values"]) -> float | None:
    drawn = _known(values[1:])
    return float((drawn > 0).mean()) if len(drawn) else None


def _known(values: Float[np.ndarray, " values"]) -> Float[np.ndarray, " known"]:
    return values[~np.isnan(values)]
