"""Video IoU of tracks, exact and from run lengths: no mask is ever drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from selfshot.ops.masks import Rle

# One call compares several frames, and the boxes of every mask with those of every other. This many
# pairs of boxes cost about what a call costs.
_BOXES_A_CALL = 1500
_ABSENT = {"size": [0, 0], "counts": "0"}


@dataclasses.dataclass(frozen=True)
class Masks:
    """Tracks of a video with the pixels of each mask; 0 where a track is absent."""

    rles: Sequence[Sequence[Rle | None]]
    areas: Float[np.ndarray, "tracks time"]

    @classmethod
    def of(
        cls,
        tracks: Sequence[Sequence[Rle | None]],
        areas: Sequence[Sequence[float] | None] | None = None,
    ) -> Masks:
        """Count the pixels of tracks.

        Args:
            tracks: for each a compressed RLE or None a frame.
            areas: for each its pixels a frame where they are known, else None.
        """
        known = [None] * len(tracks) if areas is None else areas
        pixels = np.zeros((len(tracks), len(tracks[0]) if tracks else 0))
        for index, values in enumerate(known):
            if values is not None:
                pixels[index] = values
        unknown = [index for index, values in enumerate(known) if values is None]
        seen = np.array([[bool(rle) for rle in tracks[index]] for index in unknown], dtype=bool)
        if seen.any():
            counted = np.zeros(seen.shape)
            counted[seen] = _areas([rle for index in unknown for rle in tracks[index] if rle])
            pixels[unknown] = counted
        return cls(tracks, pixels)


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
        at_least: a pair that stays below is given 0 as soon as that is certain, and the rest of
            its masks are not compared.
    """
    return masks_iou(Masks.of(predictions), Masks.of(tracks), at_least=at_least)


def masks_iou(
    predicted: Masks, annotated: Masks, *, at_least: float = 0.0
) -> Float[np.ndarray, "predictions tracks"]:
    """As `track_iou`, of tracks whose pixels are counted."""
    chosen, same_as = _distinct(predicted)
    return _distinct_iou(chosen, annotated, at_least)[same_as]


def _distinct(masks: Masks) -> tuple[Masks, Int[np.ndarray, " tracks"]]:
    """Each track once, and which of these every track is.

    Many models give one track under several labels.
    """
    kept: list[int] = []
    same_as = np.zeros(len(masks.rles), dtype=np.int64)
    of_areas: dict[bytes, list[int]] = {}
    for track, areas in enumerate(masks.areas):
        alike = of_areas.setdefault(areas.tobytes(), [])
        for place in alike:
            if masks.rles[kept[place]] == masks.rles[track]:
                same_as[track] = place
                break
        else:
            same_as[track] = len(kept)
            alike.append(len(kept))
            kept.append(track)
    return Masks([masks.rles[track] for track in kept], masks.areas[kept]), same_as


def _distinct_iou(
    predicted: Masks, annotated: Masks, at_least: float
) -> Float[np.ndarray, "predictions tracks"]:
    inter = np.zeros((len(predicted.rles), len(annotated.rles)))
    if not inter.size:
        return inter
    # The most that a pair can share in a frame is the smaller one.
    most = np.minimum(predicted.areas[:, None], annotated.areas)
    left = most.sum(-1)
    total = predicted.areas.sum(-1)[:, None] + annotated.areas.sum(-1)
    # Where most is at stake comes first, so that hopeless pairs are known early.
    at_stake = most.sum((0, 1))
    order = np.argsort(-at_stake, kind="stable")[: np.count_nonzero(at_stake)]
    promising = _promising(left, total, at_least)
    while len(order) and promising.any():
        rows, columns = np.flatnonzero(promising.any(1)), np.flatnonzero(promising.any(0))
        count = max(1, math.isqrt(_BOXES_A_CALL // (len(rows) * len(columns))))
        frames, order = order[:count], order[count:]
        inter[np.ix_(rows, columns)] += _shared_pixels(predicted, annotated, rows, columns, frames)
        left -= most[..., frames].sum(-1)
        promising &= _promising(inter + left, total, at_least)
    union = total - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=promising & (union > 0))


def _areas(rles: Sequence[Rle]) -> Float[np.ndarray, " masks"]:
    """The pixels of masks; pycocotools fails on more than 255 at once with NumPy 2."""
    return np.concatenate([coco_mask.area(rles[i : i + 255]) for i in range(0, len(rles), 255)])


def _promising(
    shared: Float[np.ndarray, "predictions tracks"],
    total: Float[np.ndarray, "predictions tracks"],
    at_least: float,
) -> Bool[np.ndarray, "predictions tracks"]:
    """Whether pairs that share at most so many pixels can reach an IoU."""
    return (shared > 0) & (shared >= (at_least - 1e-9) * (total - shared))


def _shared_pixels(
    predicted: Masks,
    annotated: Masks,
    rows: Int[np.ndarray, " rows"],
    columns: Int[np.ndarray, " columns"],
    frames: Int[np.ndarray, " frames"],
) -> Float[np.ndarray, "rows columns"]:
    """The pixels that tracks share in some frames, by one call of pycocotools."""
    first = _told_apart(predicted, rows, frames)
    second = _told_apart(annotated, columns, frames)
    iou = coco_mask.iou(first, second, [0] * len(second))
    iou = iou.reshape(len(frames), len(rows), len(frames), len(columns))
    each = np.arange(len(frames))
    iou = iou[each, :, each]
    # IoU is shared / (total - shared); solved for shared and rounded it is exact.
    total = predicted.areas[np.ix_(rows, frames)].T[..., None]
    total = total + annotated.areas[np.ix_(columns, frames)].T[:, None]
    return np.rint(iou * total / (1 + iou)).sum(0)


def _told_apart(
    masks: Masks, tracks: Int[np.ndarray, " some"], frames: Int[np.ndarray, " frames"]
) -> list[Rle]:
    """Masks of some frames, frame by frame, each frame with a width of its own.

    pycocotools compares masks of one size only, so that a frame is compared with itself alone. It
    reads the runs and the height; the width is nothing but a mark.
    """
    chosen = [masks.rles[track] for track in tracks.tolist()]
    told: list[Rle] = []
    for mark, frame in enumerate(frames.tolist()):
        for rles in chosen:
            rle = rles[frame]
            if rle:
                height, width = rle["size"]
                told.append({"size": [height, width + mark], "counts": rle["counts"]})
            else:
                told.append(_ABSENT)
    return told
