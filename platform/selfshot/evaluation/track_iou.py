"""Video IoU of tracks, exact and from run lengths: no mask is ever drawn."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from selfshot.ops.masks import Extents, Rle, extents_of
from selfshot.ops.overlap import WIDEST, layers_of, shared_of_layers, shared_of_runs
from selfshot.ops.runs import object_runs

# So many at once fit into a cache, and hopeless pairs are known before all is read.
_MASKS_AT_ONCE = 320
# Columns of all masks of a frame. Tens of thousands of predictions are rather slow than too large.
_MOST_CELLS = 2**25


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
            found = extents_of([mask["counts"] for mask in masks], masks[0]["size"][0])
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
    inter = np.zeros((len(predicted.rles), len(annotated.rles)))
    if not inter.size or not predicted.areas.any():
        return inter
    # The most that a pair can share in a frame is the smaller one, or all columns that both have.
    height = next(rle["size"][0] for track in predicted.rles for rle in track if rle)
    (areas, first, end), (others, other_first, other_end) = (
        np.moveaxis(masks.extents, 1, 0) for masks in (predicted, annotated)
    )
    both = np.minimum(end[:, None], other_end) - np.maximum(first[:, None], other_first)
    most = np.minimum(np.minimum(areas[:, None], others), height * np.maximum(both, 0))
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
    areas = np.concatenate([predicted.areas[rows][:, frames], annotated.areas[columns][:, frames]])
    masks = [
        rles[frame]
        for rles, seen in zip(tracks, areas > 0, strict=True)
        for frame in frames[seen].tolist()
    ]
    runs = object_runs([mask["counts"] for mask in masks if mask])
    places = np.flatnonzero(areas)
    shared = np.zeros((len(rows), len(columns)))
    height, width = next(mask["size"] for mask in masks if mask)
    if width > WIDEST or areas.size * (width + 1) > _MOST_CELLS:
        whole = np.zeros(len(tracks), dtype=bool)
    else:
        layers = layers_of(runs, places, areas.size, height, width)
        shape = (-1, *areas.shape, width + 1)
        tops, bottoms = layers.tops.reshape(shape), layers.bottoms.reshape(shape)
        whole = np.all(layers.whole.reshape(areas.shape), axis=-1)
        for place, column in enumerate(range(len(rows), len(tracks))):
            some = np.flatnonzero(wanted[:, place])
            shared[some, place] = shared_of_layers(tops, bottoms, some, column)
    if not whole.all():
        frame_of = (places % len(frames)).repeat(np.diff(runs.bounds)) * (height * width)
        starts, ends = runs.starts + frame_of, runs.ends + frame_of
        first = runs.bounds[places.searchsorted(np.arange(len(tracks) + 1) * len(frames))]
        parts = [slice(*bounds) for bounds in itertools.pairwise(first.tolist())]
        for row, place in np.argwhere(wanted).tolist():
            column = len(rows) + place
            if not (whole[row] and whole[column]):
                one, other = parts[row], parts[column]
                shared[row, place] = shared_of_runs(
                    starts[one], ends[one], starts[other], ends[other]
                )
    return shared
