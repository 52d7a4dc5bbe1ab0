"""Which predicted tracks are right: videos are compared, and each prediction is given a track.

Masks are compared once a video. What is kept of it is small, so that classes apart, classes as one,
the bins of a breakdown and the resamples of a bootstrap all begin here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from selfshot.data.ytvis import Annotations, Prediction, Track
from selfshot.evaluation.track_iou import Masks, masks_iou

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = (1, 10, 100)
ANY_CATEGORY = -1
"""The one category of a class-agnostic score."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What tracks of a video are sorted by, apart from their masks."""

    categories: Int[np.ndarray, " tracks"]
    area: Float[np.ndarray, " tracks"]
    """Mean over the frames in which there is any, in pixels."""
    absence: Float[np.ndarray, " tracks"]
    """The share of the video's frames without a pixel of it."""


@dataclasses.dataclass(frozen=True)
class ComparedVideo:
    """The predictions of a video, its annotated tracks, and their IoU; 0 where it is below 0.5."""

    num_frames: int
    scores: Float[np.ndarray, " predictions"]
    predictions: Measures
    tracks: Measures
    crowd: Bool[np.ndarray, " tracks"]
    iou: Float[np.ndarray, "predictions tracks"]


@dataclasses.dataclass(frozen=True)
class Compared:
    """Every video of a ground truth with its predictions, in the order of the videos' ids."""

    categories: tuple[int, ...]
    videos: tuple[ComparedVideo, ...]


@dataclasses.dataclass(frozen=True)
class Bins:
    """Ranges of a measure, both ends included, into which tracks are sorted."""

    measure: Literal["area", "absence"]
    bounds: Float[np.ndarray, "bins 2"]

    def outside(self, measures: Measures) -> Bool[np.ndarray, "bins tracks"]:
        """Which tracks are not in which bin."""
        values = getattr(measures, self.measure)
        return (values < self.bounds[:, :1]) | (values > self.bounds[:, 1:])


@dataclasses.dataclass(frozen=True)
class Matches:
    """What became of the predictions of all videos, for each bin and IoU threshold.

    Predictions stand in the order of their videos, and in a video the best first.
    """

    categories: tuple[int, ...]
    scores: Float[np.ndarray, " predictions"]
    category: Int[np.ndarray, " predictions"]
    """Its index among the categories."""
    video: Int[np.ndarray, " predictions"]
    """Its index among the compared videos."""
    rank: Int[np.ndarray, " predictions"]
    """How many of the same video and category are better."""
    matched: Bool[np.ndarray, "bins thresholds predictions"]
    ignored: Bool[np.ndarray, "bins thresholds predictions"]
    num_tracks: Int[np.ndarray, "bins categories videos"]
    """The annotated tracks that count."""


def compare_tracks(ground_truth: Annotations, predictions: Sequence[Prediction]) -> Compared:
    """Compare the masks of every video.

    Args:
        ground_truth: every video that counts, those without a track or a prediction too.
        predictions: in any order; where scores tie, an earlier one comes first.
    """
    categories = sorted(ground_truth.categories)
    order = {category: index for index, category in enumerate(categories)}
    of_video: dict[int, list[Prediction]] = {video: [] for video in ground_truth.videos}
    for prediction in predictions:
        of_video[prediction.video_id].append(prediction)
    videos = []
    for video_id in sorted(ground_truth.videos):
        # By category and then as they came: ties are broken in this order.
        tracks = sorted(ground_truth.tracks_of(video_id), key=lambda one: order[one.category_id])
        predicted = sorted(of_video[video_id], key=lambda one: order[one.category_id])
        videos.append(_compare(ground_truth.videos[video_id].length, tracks, predicted))
    return Compared(tuple(categories), tuple(videos))


def match_tracks(compared: Compared, bins: Bins, *, class_agnostic: bool) -> Matches:
    """Match the predictions of every video; of more than 100 of a category, the 100 best.

    Args:
        compared: the videos.
        bins: what lies outside of a bin is ignored in it.
        class_agnostic: treat all categories as one, `ANY_CATEGORY`.
    """
    categories = (ANY_CATEGORY,) if class_agnostic else compared.categories
    index_of = np.array(compared.categories, dtype=np.int64)
    num_bins, num_thresholds = len(bins.bounds), len(IOU_THRESHOLDS)
    num_tracks = np.zeros((num_bins, len(categories), len(compared.videos)), dtype=np.int64)
    parts: dict[str, list[np.ndarray]] = {
        "scores": [np.zeros(0)],
        "category": [np.zeros(0, dtype=np.int64)],
        "video": [np.zeros(0, dtype=np.int64)],
        "rank": [np.zeros(0, dtype=np.int64)],
        "matched": [np.zeros((num_bins, num_thresholds, 0), dtype=bool)],
        "ignored": [np.zeros((num_bins, num_thresholds, 0), dtype=bool)],
    }
    for index, video in enumerate(compared.videos):
        best = np.argsort(-video.scores, kind="stable")
        if class_agnostic:
            category = np.zeros(len(best), dtype=np.int64)
            track_category = np.zeros(len(video.crowd), dtype=np.int64)
        else:
            category = np.searchsorted(index_of, video.predictions.categories[best])
            track_category = np.searchsorted(index_of, video.tracks.categories)
        rank = _rank(category)
        kept = rank < MAX_DETECTIONS[-1]
        best, category = best[kept], category[kept]

        track_ignored = video.crowd | bins.outside(video.tracks)
        for bin_index, counted in enumerate(~track_ignored):
            np.add.at(num_tracks[bin_index, :, index], track_category[counted], 1)
        iou = np.where(category[:, None] == track_category, video.iou[best], 0.0)
        matched, ignored = _match(iou, video.crowd, track_ignored)
        ignored |= ~matched & bins.outside(video.predictions)[:, None, best]
        for name, part in (
            ("scores", video.scores[best]),
            ("category", category),
            ("video", np.full(len(best), index)),
            ("rank", rank[kept]),
            ("matched", matched),
            ("ignored", ignored),
        ):
            parts[name].append(part)
    joined = {name: np.concatenate(some, axis=-1) for name, some in parts.items()}
    return Matches(categories=tuple(categories), num_tracks=num_tracks, **joined)


def _compare(
    num_frames: int, tracks: Sequence[Track], predictions: Sequence[Prediction]
) -> ComparedVideo:
    predicted, annotated = (
        Masks.of([one.segmentations for one in some], [one.extents for one in some])
        for some in (predictions, tracks)
    )
    seen = np.count_nonzero(predicted.areas, axis=-1)
    return ComparedVideo(
        num_frames=num_frames,
        scores=np.array([one.score for one in predictions], dtype=np.float64),
        predictions=Measures(
            categories=np.array([one.category_id for one in predictions], dtype=np.int64),
            area=predicted.areas.sum(-1) / np.maximum(seen, 1),
            absence=_absence(predicted),
        ),
        tracks=Measures(
            categories=np.array([one.category_id for one in tracks], dtype=np.int64),
            area=np.array([_stated_area(one) for one in tracks], dtype=np.float64),
            absence=_absence(annotated),
        ),
        crowd=np.array([one.iscrowd for one in tracks], dtype=bool),
        iou=masks_iou(predicted, annotated, at_least=float(IOU_THRESHOLDS[0])),
    )


def _absence(masks: Masks) -> Float[np.ndarray, " tracks"]:
    return np.count_nonzero(masks.areas == 0, axis=-1) / max(masks.areas.shape[1], 1)


def _stated_area(track: Track) -> float:
    """As the annotations state it, the mean over the frames in which there is any."""
    some = [area for area in track.areas if area]
    return float(np.mean(some)) if some else 0.0


def _rank(category: Int[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """How many of the same category come before each."""
    order = np.argsort(category, kind="stable")
    in_order = category[order]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.searchsorted(in_order, in_order)
    return rank


def _match(
    iou: Float[np.ndarray, "predictions tracks"],
    crowd: Bool[np.ndarray, " tracks"],
    track_ignored: Bool[np.ndarray, "bins tracks"],
) -> tuple[
    Bool[np.ndarray, "bins thresholds predictions"],
    Bool[np.ndarray, "bins thresholds predictions"],
]:
    """Give each prediction, best first, the best track that is left, for all thresholds at once.

    A track outside the bin and a crowd are ignored: they are taken only where no other track
    fits, what takes them counts neither as right nor as wrong, and a crowd can be taken again and
    again. Of tracks with equal IoU the last one is taken.

    Returns:
        Which predictions took a track, and which of these took one that is ignored.
    """
    num_predictions, num_tracks = iou.shape
    shape = (len(track_ignored), len(IOU_THRESHOLDS))
    matched = np.zeros((*shape, num_predictions), dtype=bool)
    ignored = np.zeros((*shape, num_predictions), dtype=bool)
    taken = np.zeros((*shape, num_tracks), dtype=bool)
    floor = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    for place in np.flatnonzero((iou >= floor[0]).any(-1)).tolist():
        fits = (iou[place] >= floor) & (~taken | crowd)
        counted = fits & ~track_ignored[:, None]
        any_counted = counted.any(-1, keepdims=True)
        candidates = np.where(any_counted, counted, fits)
        # The last of the largest: the first in the reversed order.
        choice = np.where(candidates, iou[place], -1.0)[..., ::-1].argmax(-1)
        choice = num_tracks - 1 - choice
        hit = candidates.any(-1)
        matched[..., place] = hit
        ignored[..., place] = hit & ~any_counted[..., 0]
        taken |= hit[..., None] & (np.arange(num_tracks) == choice[..., None])
    return matched, ignored
