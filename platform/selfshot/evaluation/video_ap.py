"""Video average precision, as the YouTube-VIS evaluator computes it.

A track is right if the sum of its intersections with an annotated track over all frames, divided
by the sum of the unions, reaches a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from selfshot.data.ytvis import Annotations, Prediction
from selfshot.evaluation.matches import (
    MAX_DETECTIONS,
    Bins,
    Compared,
    Matches,
    compare_tracks,
    match_tracks,
)

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
AREA_BINS = Bins(
    "area",
    np.array([[0, 1e5**2], [0, 128**2], [128**2, 256**2], [256**2, 1e5**2]], dtype=np.float64),
)
"""All, small, medium and large: by mean area over the frames in which there is any, in pixels."""

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_AT_50, _AT_75 = 0, 5


def evaluate_tracks(
    ground_truth: Annotations,
    predictions: Sequence[Prediction],
    *,
    class_agnostic: bool = False,
) -> dict[str, Any]:
    """The YouTube-VIS figures of predicted tracks, in [0, 1].

    Args:
        ground_truth: every video that counts, those without a track or a prediction too.
        predictions: in any order; where scores tie, an earlier one comes first.
        class_agnostic: treat all categories as one.

    Returns:
        As `score_tracks`.
    """
    return score_tracks(compare_tracks(ground_truth, predictions), class_agnostic=class_agnostic)


def score_tracks(compared: Compared, *, class_agnostic: bool = False) -> dict[str, Any]:
    """The YouTube-VIS figures of compared videos, in [0, 1].

    Args:
        compared: every video that counts.
        class_agnostic: treat all categories as one.

    Returns:
        `AP` (mean over IoU thresholds 0.50 to 0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (by
        mean area: below 128², to 256², above), `AR1`, `AR10`, `AR100` (by predictions a video),
        `ARs`, `ARm`, `ARl`; the two figures of the paper, which do not depend on
        `class_agnostic`: `per_class_AP50`, the mean over the categories, and `pooled_AP50`, of
        all categories as one; and `AP50_per_category` by category id (-1 if class-agnostic). A
        figure without any ground truth is -1.
    """
    apart, pooled = (
        _figures(match_tracks(compared, AREA_BINS, class_agnostic=as_one))
        for as_one in (False, True)
    )
    figures = pooled if class_agnostic else apart
    per_category = figures.pop("AP50_per_category")
    return figures | {
        "per_class_AP50": apart["AP50"],
        "pooled_AP50": pooled["AP50"],
        "AP50_per_category": per_category,
    }


def episode_scores(ground_truth: Annotations, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The figures that the tables hold: the mean over classes, and all classes pooled.

    In an episode the query's class is given, so a prediction takes the class of its query; the
    mean over classes is then the paper's figure, and the pooled one treats all classes as one.

    Returns:
        `AP50`, `AP`, `AP75`, `AR1`, `AR10` as means over classes, and the same pooled under
        `pooled`.
    """
    names = ("AP50", "AP", "AP75", "AR1", "AR10")
    compared = compare_tracks(ground_truth, predictions)
    apart, pooled = (
        _figures(match_tracks(compared, AREA_BINS, class_agnostic=as_one))
        for as_one in (False, True)
    )
    scores: dict[str, Any] = {name: apart[name] for name in names}
    scores["pooled"] = {name: pooled[name] for name in names}
    return scores


def precision_at_recall(
    matches: Matches,
) -> Float[np.ndarray, "bins categories thresholds points"]:
    """The best precision at each recall or beyond; 0 where it is never reached.

    A category without ground truth in a bin is -1 there.
    """
    num_bins, num_thresholds, _ = matches.matched.shape
    precision = np.full(
        (num_bins, len(matches.categories), num_thresholds, len(RECALL_POINTS)), -1.0
    )
    num_tracks = matches.num_tracks.sum(-1)
    order = np.argsort(-matches.scores, kind="stable")
    for index in range(len(matches.categories)):
        mine = order[matches.category[order] == index]
        matched, ignored = matches.matched[..., mine], matches.ignored[..., mine]
        right = np.cumsum(matched & ~ignored, axis=-1, dtype=np.float64)
        wrong = np.cumsum(~matched & ~ignored, axis=-1, dtype=np.float64)
        for bin_index in np.flatnonzero(num_tracks[:, index]).tolist():
            recalls = right[bin_index] / num_tracks[bin_index, index]
            sure = right[bin_index] / (right[bin_index] + wrong[bin_index] + np.spacing(1))
            precision[bin_index, index] = _at_recall_points(recalls, sure)
    return precision


def final_recall(matches: Matches, most: int) -> Float[np.ndarray, "bins categories thresholds"]:
    """The share of tracks that are found by the best predictions of each video and category.

    A category without ground truth in a bin is -1 there.

    Args:
        matches: what became of the predictions.
        most: how many predictions of a category a video may have.
    """
    num_tracks = matches.num_tracks.sum(-1)[..., None]
    right = matches.matched & ~matches.ignored & (matches.rank < most)
    found = np.zeros((len(right), len(matches.categories), right.shape[1]))
    for index in range(len(matches.categories)):
        found[:, index] = np.count_nonzero(right[..., matches.category == index], axis=-1)
    return np.divide(found, num_tracks, out=np.full(found.shape, -1.0), where=num_tracks > 0)


def mean_of_known(values: np.ndarray) -> float:
    """Over what has ground truth; -1 if nothing has."""
    some = values[values > -1]
    return float(some.mean()) if some.size else -1.0


def _figures(matches: Matches) -> dict[str, Any]:
    precision = precision_at_recall(matches)
    recall = {most: final_recall(matches, most) for most in MAX_DETECTIONS}
    most = MAX_DETECTIONS[-1]
    at_50 = precision[_ALL, :, _AT_50]
    return {
        "AP": mean_of_known(precision[_ALL]),
        "AP50": mean_of_known(at_50),
        "AP75": mean_of_known(precision[_ALL, :, _AT_75]),
        "APs": mean_of_known(precision[_SMALL]),
        "APm": mean_of_known(precision[_MEDIUM]),
        "APl": mean_of_known(precision[_LARGE]),
        "AR1": mean_of_known(recall[1][_ALL]),
        "AR10": mean_of_known(recall[10][_ALL]),
        "AR100": mean_of_known(recall[most][_ALL]),
        "ARs": mean_of_known(recall[most][_SMALL]),
        "ARm": mean_of_known(recall[most][_MEDIUM]),
        "ARl": mean_of_known(recall[most][_LARGE]),
        "AP50_per_category": {
            category: mean_of_known(at_50[index])
            for index, category in enumerate(matches.categories)
        },
    }


def _at_recall_points(
    recalls: Float[np.ndarray, "thresholds predictions"],
    precisions: Float[np.ndarray, "thresholds predictions"],
) -> Float[np.ndarray, "thresholds points"]:
    """The best precision at each recall or beyond; 0 where that recall is never reached."""
    best = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
    return np.stack(
        [
            row[np.searchsorted(recall, RECALL_POINTS, side="left")]
            for recall, row in zip(recalls, best, strict=True)
        ]
    )
