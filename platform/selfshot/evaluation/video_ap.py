"""Video average precision, as the YouTube-VIS evaluator computes it.

A track is right if the sum of its intersections with an annotated track over all frames, divided
by the sum of the unions, reaches a threshold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask

from selfshot.data.ytvis import Annotations, Prediction, Track
from selfshot.ops.masks import Rle

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, 100)
# Mean area of a track over the frames in which it is seen, both ends included, in pixels.
AREA_RANGES = np.array(
    [[0, 1e5**2], [0, 128**2], [128**2, 256**2], [256**2, 1e5**2]], dtype=np.float64
)
ANY_CATEGORY = -1
"""The one category of a class-agnostic score."""

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


@dataclasses.dataclass(frozen=True)
class _Group:
    """One category in one video: its predictions, best first, and its annotated tracks."""

    scores: Float[np.ndarray, " predictions"]
    areas: Float[np.ndarray, " predictions"]
    track_areas: Float[np.ndarray, " tracks"]
    crowd: Bool[np.ndarray, " tracks"]
    iou: Float[np.ndarray, "predictions tracks"]


@dataclasses.dataclass(frozen=True)
class _Matches:
    """What became of a group's predictions, for each area range and IoU threshold."""

    scores: Float[np.ndarray, " predictions"]
    matched: Bool[np.ndarray, "areas thresholds predictions"]
    ignored: Bool[np.ndarray, "areas thresholds predictions"]
    num_tracks: np.ndarray


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
        `AP` (mean over IoU thresholds 0.50 to 0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (by
        mean area: below 128², to 256², above), `AR1`, `AR10`, `AR100` (by predictions a video),
        `ARs`, `ARm`, `ARl`, and `AP50_per_category` by category id (-1 if class-agnostic). A
        figure without any ground truth is -1.
    """
    (figures,) = _evaluate(ground_truth, predictions, [class_agnostic])
    return figures


def episode_scores(ground_truth: Annotations, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The figures that the tables hold: the mean over classes, and all classes pooled.

    In an episode the query's class is given, so a prediction takes the class of its query; the
    mean over classes is then the paper's figure, and the pooled one treats all classes as one.

    Returns:
        `AP50`, `AP`, `AP75`, `AR1`, `AR10` as means over classes, and the same pooled under
        `pooled`.
    """
    names = ("AP50", "AP", "AP75", "AR1", "AR10")
    per_class, pooled = _evaluate(ground_truth, predictions, [False, True])
    scores: dict[str, Any] = {name: per_class[name] for name in names}
    scores["pooled"] = {name: pooled[name] for name in names}
    return scores


def track_iou(
    predictions: Sequence[Sequence[Rle | None]],
    tracks: Sequence[Sequence[Rle | None]],
    *,
    at_least: float = 0.0,
) -> Float[np.ndarray, "predictions tracks"]:
    """Video IoU of each predicted with each annotated track of a video.

    Args:
        predictions: for each a compressed RLE or None a frame.
        tracks: likewise, of the same frames.
        at_least: a pair whose areas and boxes show that it stays below is given 0 and its masks
            are not compared.
    """
    return _iou(_Shapes.of(predictions), _Shapes.of(tracks), at_least)


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """Tracks of a video with the areas (in pixels) and corners of their masks; 0 where absent."""

    masks: Sequence[Sequence[Rle | None]]
    areas: Float[np.ndarray, "tracks time"]
    corners: Float[np.ndarray, "tracks time 4"]

    @classmethod
    def of(cls, masks: Sequence[Sequence[Rle | None]]) -> _Shapes:
        num_frames = len(masks[0]) if masks else 0
        areas, corners = np.zeros((len(masks), num_frames)), np.zeros((len(masks), num_frames, 4))
        for index, rles in enumerate(masks):
            seen = [frame for frame, rle in enumerate(rles) if rle]
            if seen:
                some = [rles[frame] for frame in seen]
                areas[index, seen] = coco_mask.area(some)
                corners[index, seen] = coco_mask.toBbox(some)
        corners[..., 2:] += corners[..., :2]
        return cls(masks, areas, corners)


def _iou(
    predicted: _Shapes, annotated: _Shapes, at_least: float
) -> Float[np.ndarray, "predictions tracks"]:
    inter = np.zeros((len(predicted.masks), len(annotated.masks)))
    if not inter.size:
        return inter
    total = predicted.areas.sum(-1)[:, None] + annotated.areas.sum(-1)
    most = _most_shared(predicted, annotated).sum(-1)
    promising = (most > 0) & (most >= (at_least - 1e-9) * (total - most))
    rows: list[int] = np.flatnonzero(promising.any(1)).tolist()
    columns: list[int] = np.flatnonzero(promising.any(0)).tolist()
    for frame in range(predicted.areas.shape[1] if len(rows) else 0):
        seen = [row for row in rows if predicted.masks[row][frame]]
        track_seen = [column for column in columns if annotated.masks[column][frame]]
        if seen and track_seen:
            # With the crowd flag this is intersection / the prediction's area, in run lengths and
            # only where boxes meet; rounding gives the intersection's exact number of pixels.
            share = coco_mask.iou(
                [predicted.masks[row][frame] for row in seen],
                [annotated.masks[column][frame] for column in track_seen],
                [1] * len(track_seen),
            )
            pixels = np.rint(share * predicted.areas[seen, frame][:, None])
            inter[np.ix_(seen, track_seen)] += pixels
    union = total - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=promising & (union > 0))


def _most_shared(
    predicted: _Shapes, annotated: _Shapes
) -> Float[np.ndarray, "predictions tracks time"]:
    """The most pixels that a pair can share in a frame, by its areas and its boxes."""
    box, other = predicted.corners[:, None], annotated.corners[None]
    sides = np.minimum(box[..., 2:], other[..., 2:]) - np.maximum(box[..., :2], other[..., :2])
    shared = np.maximum(sides, 0).prod(-1)
    return np.minimum(shared, np.minimum(predicted.areas[:, None], annotated.areas[None]))


def _evaluate(
    ground_truth: Annotations, predictions: Sequence[Prediction], agnostic: Iterable[bool]
) -> list[dict[str, Any]]:
    """Figures with classes apart or as one; masks are compared once for all of them."""
    categories = sorted(ground_truth.categories)
    order = {category: index for index, category in enumerate(categories)}
    of_video: dict[int, list[Prediction]] = {video: [] for video in ground_truth.videos}
    for prediction in predictions:
        of_video[prediction.video_id].append(prediction)

    choices = list(agnostic)
    groups: list[dict[int, list[_Matches]]] = [{} for _ in choices]
    for video_id in sorted(ground_truth.videos):
        # By category and then as they came: ties are broken in this order.
        tracks = sorted(ground_truth.tracks_of(video_id), key=lambda one: order[one.category_id])
        predicted = sorted(of_video[video_id], key=lambda one: order[one.category_id])
        if not tracks and not predicted:
            continue
        whole = _whole_video(tracks, predicted)
        track_category = np.array([one.category_id for one in tracks], dtype=np.int64)
        category = np.array([one.category_id for one in predicted], dtype=np.int64)
        for found, as_one in zip(groups, choices, strict=True):
            if as_one:
                found.setdefault(ANY_CATEGORY, []).append(_match(whole))
                continue
            for number in np.union1d(track_category, category).tolist():
                part = _part(whole, category == number, track_category == number)
                found.setdefault(number, []).append(_match(part))
    return [
        _figures([ANY_CATEGORY] if as_one else categories, found)
        for found, as_one in zip(groups, choices, strict=True)
    ]


def _whole_video(tracks: Sequence[Track], predictions: Sequence[Prediction]) -> _Group:
    shapes = _Shapes.of([one.segmentations for one in predictions])
    track_shapes = _Shapes.of([one.segmentations for one in tracks])
    return _Group(
        scores=np.array([one.score for one in predictions], dtype=np.float64),
        areas=np.array([_mean_area(areas) for areas in shapes.areas.tolist()], dtype=np.float64),
        track_areas=np.array([_mean_area(one.areas) for one in tracks], dtype=np.float64),
        crowd=np.array([one.iscrowd for one in tracks], dtype=bool),
        iou=_iou(shapes, track_shapes, at_least=float(IOU_THRESHOLDS[0])),
    )


def _part(
    whole: _Group, chosen: Bool[np.ndarray, " predictions"], tracks: Bool[np.ndarray, " tracks"]
) -> _Group:
    return _Group(
        scores=whole.scores[chosen],
        areas=whole.areas[chosen],
        track_areas=whole.track_areas[tracks],
        crowd=whole.crowd[tracks],
        iou=whole.iou[np.ix_(chosen, tracks)],
    )


def _mean_area(areas: Iterable[float | None]) -> float:
    """Over the frames in which there is any."""
    some = [area for area in areas if area]
    return float(np.mean(some)) if some else 0.0


def _outside(areas: Float[np.ndarray, " items"]) -> Bool[np.ndarray, "areas items"]:
    return (areas < AREA_RANGES[:, :1]) | (areas > AREA_RANGES[:, 1:])


def _match(group: _Group) -> _Matches:
    """Give each prediction, best first, the best track that is left, for all thresholds at once.

    A track outside the area range and a crowd are ignored: they are taken only where no other
    track fits, what takes them counts neither as right nor as wrong, and a crowd can be taken
    again and again. Of tracks with equal IoU the last one is taken.
    """
    best = np.argsort(-group.scores, kind="stable")[: MAX_DETECTIONS[-1]]
    iou = group.iou[best]
    num_predictions, num_tracks = iou.shape
    track_ignored = group.crowd | _outside(group.track_areas)
    shape = (len(AREA_RANGES), len(IOU_THRESHOLDS))
    matched = np.zeros((*shape, num_predictions), dtype=bool)
    ignored = np.zeros((*shape, num_predictions), dtype=bool)
    taken = np.zeros((*shape, num_tracks), dtype=bool)
    floor = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    for index in range(num_predictions if num_tracks else 0):
        fits = (iou[index] >= floor) & (~taken | group.crowd)
        counted = fits & ~track_ignored[:, None]
        any_counted = counted.any(-1, keepdims=True)
        candidates = np.where(any_counted, counted, fits)
        # The last of the largest: the first in the reversed order.
        choice = np.where(candidates, iou[index], -1.0)[..., ::-1].argmax(-1)
        choice = num_tracks - 1 - choice
        hit = candidates.any(-1)
        matched[..., index] = hit
        ignored[..., index] = hit & ~any_counted[..., 0]
        taken |= hit[..., None] & (np.arange(num_tracks) == choice[..., None])
    ignored |= ~matched & _outside(group.areas[best])[:, None]
    return _Matches(group.scores[best], matched, ignored, (~track_ignored).sum(-1))


def _figures(categories: Sequence[int], groups: dict[int, list[_Matches]]) -> dict[str, Any]:
    """The figures, from precision at each recall and the final recall of each category."""
    shape = (len(categories), len(AREA_RANGES), len(IOU_THRESHOLDS))
    precision = np.full((*shape, len(RECALL_POINTS)), -1.0)
    recall = np.full((len(MAX_DETECTIONS), *shape), -1.0)
    for index, category in enumerate(categories):
        found = groups.get(category, [])
        num_tracks = sum((one.num_tracks for one in found), np.zeros(len(AREA_RANGES), dtype=int))
        for limit, most in enumerate(MAX_DETECTIONS):
            if not num_tracks.any():
                continue
            scores = np.concatenate([one.scores[:most] for one in found])
            order = np.argsort(-scores, kind="stable")
            matched = np.concatenate([one.matched[..., :most] for one in found], -1)[..., order]
            ignored = np.concatenate([one.ignored[..., :most] for one in found], -1)[..., order]
            right = np.cumsum(matched & ~ignored, axis=-1, dtype=np.float64)
            wrong = np.cumsum(~matched & ~ignored, axis=-1, dtype=np.float64)
            for area in np.flatnonzero(num_tracks):
                recalls = right[area] / num_tracks[area]
                recall[limit, index, area] = recalls[:, -1] if recalls.shape[-1] else 0.0
                if most == MAX_DETECTIONS[-1]:
                    precisions = right[area] / (right[area] + wrong[area] + np.spacing(1))
                    precision[index, area] = _at_recall_points(recalls, precisions)
    at_50 = precision[:, _ALL, 0]
    return {
        "AP": _mean(precision[:, _ALL]),
        "AP50": _mean(at_50),
        "AP75": _mean(precision[:, _ALL, 5]),
        "APs": _mean(precision[:, _SMALL]),
        "APm": _mean(precision[:, _MEDIUM]),
        "APl": _mean(precision[:, _LARGE]),
        "AR1": _mean(recall[0, :, _ALL]),
        "AR10": _mean(recall[1, :, _ALL]),
        "AR100": _mean(recall[2, :, _ALL]),
        "ARs": _mean(recall[2, :, _SMALL]),
        "ARm": _mean(recall[2, :, _MEDIUM]),
        "ARl": _mean(recall[2, :, _LARGE]),
        "AP50_per_category": {
            category: _mean(at_50[index]) for index, category in enumerate(categories)
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


def _mean(values: np.ndarray) -> float:
    """Over what has ground truth; -1 if nothing has."""
    some = values[values > -1]
    return float(some.mean()) if some.size else -1.0
