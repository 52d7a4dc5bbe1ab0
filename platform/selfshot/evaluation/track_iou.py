"""Video IoU of tracks, exact and from run lengths: no mask is ever drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from selfshot.ops.masks import Extents, Rle, extents_of
from selfshot.ops.runs import joined


@dataclasses.dataclass(frozen=True)
class Masks:
    """Tracks of a video with the extents of their masks; zeros where a track is absent."""

    rles: Sequence[Sequence[Rle | None]]
    extents: Int[np.ndarray, "tracks 3 time"]

    @property
    def areas(self) -> Int[np.ndarray, "tracks time"]:
        """The pixels of each mask."""
        return self.extents[:, 0]

    @classmethod
    def of(
        cls,
        tracks: Sequence[Sequence[Rle | None]],
        extents: Sequence[Extents | None] | None = None,
    ) -> Masks:
        """Measure tracks.

        Args:
            tracks: for each a compressed RLE or None a frame.
            extents: for each those of its masks where they are known, else None.
        """
        known = [None] * len(tracks) if extents is None else extents
        measured = np.zeros((len(tracks), 3, len(tracks[0]) if tracks else 0), dtype=np.int64)
        for index, values in enumerate(known):
            if values is not None:
                measured[index] = values
        unknown = [
            (index, frame, rle)
            for index, values in enumerate(known)
            if values is None
            for frame, rle in enumerate(tracks[index])
            if rle
        ]
        if unknown:
            places, frames, masks = zip(*unknown, strict=True)
            found = extents_of([mask["counts"] for mask in masks], *masks[0]["size"])
            measured[list(places), :, list(frames)] = found.T
        return cls(tracks, measured)

    def some(self, tracks: Sequence[int]) -> Masks:
        """Some of the tracks."""
        return Masks([self.rles[track] for track in tracks], self.extents[tracks])


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
    of_extents: dict[bytes, list[int]] = {}
    for track, extents in enumerate(masks.extents):
        alike = of_extents.setdefault(extents.tobytes(), [])
        for place in alike:
            if masks.rles[kept[place]] == masks.rles[track]:
                same_as[track] = place
                break
        else:
            same_as[track] = len(kept)
            alike.append(len(kept))
            kept.append(track)
    return masks.some(kept), same_as


def _distinct_iou(
    predicted: Masks, annotated: Masks, at_least: float
) -> Float[np.ndarray, "predictions tracks"]:
    from selfshot.ops import rle_kernels

    shape = len(predicted.rles), len(annotated.rles)
    if not (predicted.areas.any() and annotated.areas.any()):
        return np.zeros(shape)
    # The most that a pair can share in a frame is the smaller one, or all columns that both have.
    height = next(rle["size"][0] for track in predicted.rles for rle in track if rle)
    (areas, first, end), (others, other_first, other_end) = (
        np.moveaxis(masks.extents, 1, 0) for masks in (predicted, annotated)
    )
    both = np.minimum(end[:, None], other_end) - np.maximum(first[:, None], other_first)
    most = np.minimum(np.minimum(areas[:, None], others), height * np.maximum(both, 0))
    total = areas.sum(-1)[:, None] + others.sum(-1)
    # Where most is at stake comes first, so that hopeless pairs are known early.
    at_stake = most.sum((0, 1))
    frames = np.argsort(-at_stake, kind="stable")[: np.count_nonzero(at_stake)]
    tracks = [*predicted.rles, *annotated.rles]
    codes, bounds = joined([rle["counts"] if rle else "" for track in tracks for rle in track])
    bounds_of = bounds[:-1].reshape(len(tracks), -1), bounds[1:].reshape(len(tracks), -1)
    inter = rle_kernels.shared_pixels(codes, *bounds_of, frames, most, total, at_least)
    return np.divide(inter, total - inter, out=np.zeros(shape), where=inter > 0)
