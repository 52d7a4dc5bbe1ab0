"""Video IoU of tracks, exact and from run lengths: no mask is ever drawn."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from selfshot.ops.masks import Rle, object_runs
from selfshot.ops.overlap import WIDEST, layers_of, shared_of_layers, shared_of_runs

# So many at once fit into a cache, and hopeless pairs are known before all is read.
_MASKS_AT_ONCE = 120


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
        count = max(1, _MASKS_AT_ONCE // (len(rows) + len(columns)))
        frames, order = order[:count], order[count:]
        inter[np.ix_(rows, columns)] += _shared_pixels(
            predicted, annotated, rows, columns, frames, promising[np.ix_(rows, columns)]
        )
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
    wanted: Bool[np.ndarray, "rows columns"],
) -> Float[np.ndarray, "rows columns"]:
    """The pixels that tracks share in some frames; 0 for pairs that are not wanted."""
    tracks = [predicted.rles[row] for row in rows.tolist()]
    tracks += [annotated.rles[column] for column in columns.tolist()]
    of_frames = [rles[frame] for rles in tracks for frame in frames.tolist()]
    seen = np.flatnonzero([bool(rle) for rle in of_frames])
    masks = [rle for rle in of_frames if rle]
    height, width = masks[0]["size"]
    runs = object_runs([mask["counts"] for mask in masks])
    shared = np.zeros((len(rows), len(columns)))
    if width > WIDEST:
        whole = np.zeros(len(tracks), dtype=bool)
    else:
        layers = layers_of(runs, seen, len(of_frames), height, width)
        shape = (-1, len(tracks), len(frames), width + 1)
        tops, bottoms = layers.tops.reshape(shape), layers.bottoms.reshape(shape)
        whole = np.all(layers.whole.reshape(len(tracks), -1), axis=-1)
        for place, column in enumerate(range(len(rows), len(tracks))):
            some = np.flatnonzero(wanted[:, place])
            shared[some, place] = shared_of_layers(
                tops[:, some], bottoms[:, some], tops[:, column], bottoms[:, column]
            )
    if not whole.all():
        frame_of = (seen % len(frames)).repeat(np.diff(runs.bounds)) * (height * width)
        starts, ends = runs.starts + frame_of, runs.ends + frame_of
        first = runs.bounds[seen.searchsorted(np.arange(len(tracks) + 1) * len(frames))]
        parts = [slice(*bounds) for bounds in itertools.pairwise(first.tolist())]
        for row, place in np.argwhere(wanted).tolist():
            column = len(rows) + place
            if not (whole[row] and whole[column]):
                one, other = parts[row], parts[column]
                shared[row, place] = shared_of_runs(
                    starts[one], ends[one], starts[other], ends[other]
                )
    return shared
