"""Masks as run lengths (COCO's RLE): read every form of them, write the compressed one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask

from selfshot.ops.runs import counts_of, runs_of

Rle = dict[str, Any]
"""`{"size": [height, width], "counts": str}`, compressed."""


LONGEST_OUTLINE = 2**22
"""Of a polygon, in pixels: pycocotools notes every one, and a frame has more only by a slip."""

Extents = Int[np.ndarray, "3 masks"]
"""Of each mask its pixels, its first column and the column after its last; zeros without a mask."""


def encode_rle(mask: Bool[np.ndarray, "height width"]) -> Rle:
    """A dense mask as compressed RLE with text counts, ready for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_rle(segmentation: object, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Any segmentation that `to_rle` reads, as a dense mask.

    Raises:
        ValueError: as in `to_rle`.
    """
    return decode_rles([segmentation], height, width)[0]


def decode_rles(
    segmentations: Sequence[object], height: int, width: int
) -> Bool[np.ndarray, "masks height width"]:
    """Segmentations of one size as dense masks; many cost little more calls than one does.

    Raises:
        ValueError: as in `to_rle`.
    """
    texts = []
    for segmentation in segmentations:
        counts = None
        if isinstance(segmentation, Mapping) and segmentation.get("size") == [height, width]:
            counts = segmentation.get("counts")
        if not isinstance(counts, str | bytes):
            counts = to_rle(segmentation, height, width)["counts"]
        texts.append(counts)
    runs, bounds = runs_of(texts)
    if _extents(runs, bounds, height, width) is None:
        for begin, end in itertools.pairwise(bounds):
            _check_runs(runs[begin:end], height, width)
    # Every second run of a mask is of the object, beginning with its second.
    places = np.arange(len(runs)) - bounds[:-1].repeat(bounds[1:] - bounds[:-1])
    pixels = np.repeat(places % 2 == 1, runs)
    return pixels.reshape(len(texts), width, height).transpose(0, 2, 1)


def rle_area(rle: Mapping[str, Any]) -> int:
    """The number of pixels of a compressed RLE."""
    return int(coco_mask.area(dict(rle)))


def rle_to_box(rle: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The tightest box of a compressed RLE, `(x, y, width, height)` in pixels; zeros if empty."""
    x, y, w, h = coco_mask.toBbox(dict(rle)).tolist()
    return x, y, w, h


def to_rle(segmentation: object, height: int, width: int) -> Rle:
    """Compressed RLE of a segmentation in any of the public formats' forms.

    Args:
        segmentation: compressed RLE (counts as text or bytes), uncompressed RLE (counts as a
            list), one polygon `[x0, y0, x1, y1, …]` or a list of them.
        height: of the frame in pixels.
        width: of the frame in pixels.

    Raises:
        ValueError: it is none of these, its size is another, or its runs do not fill the frame.
            pycocotools itself would read past the end of such runs.
    """
    if isinstance(segmentation, Mapping):
        return _from_runs(segmentation, height, width)
    if isinstance(segmentation, list | tuple) and segmentation:
        nested = isinstance(segmentation[0], list | tuple)
        polygons = segmentation if nested else [segmentation]
        return _from_polygons(polygons, height, width)
    raise ValueError(
        f"segmentation: {_short(segmentation)} is not allowed "
        '({"size", "counts"} with text or a list of counts, or a list of polygons)'
    )


def measured_rles(
    segmentations: Sequence[object], height: int, width: int
) -> tuple[tuple[Rle | None, ...], Extents]:
    """Compressed RLE and extent of each frame of a track; `None` and empty lists are absent frames.

    Compressed RLEs, which the public files hold, are checked and measured together: a track costs
    little more than a frame does in `to_rle`. They share one list as their size. A mask in which a
    run is empty is written anew: pycocotools stops comparing where two masks have one.

    Raises:
        ValueError: as in `to_rle`, with the index of the frame.
    """
    rles: list[Rle | None] = [None] * len(segmentations)
    size = [height, width]
    for frame, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict) and segmentation.get("size") == size:
            counts = segmentation.get("counts")
            if isinstance(counts, str):
                rles[frame] = {"size": size, "counts": counts}
                continue
        if segmentation is None or segmentation == []:
            continue
        rles[frame] = _named(frame, segmentation, height, width)
    seen = [frame for frame, rle in enumerate(rles) if rle]
    measured = _measure([rle["counts"] for rle in rles if rle], height, width)
    if measured is None:
        for frame in seen:
            _named(frame, segmentations[frame], height, width)
        raise AssertionError("a track is refused whose frames are not")
    of_seen, have_empty_runs = measured
    for index in have_empty_runs:
        rle = rles[seen[index]]
        rles[seen[index]] = _without_empty_runs(rle["counts"] if rle else "", height, width)
    extents = np.zeros((3, len(segmentations)), dtype=np.int64)
    extents[:, seen] = of_seen
    return tuple(rles), extents


def extents_of(strings: Sequence[str | bytes], height: int, width: int) -> Extents:
    """The extents of masks.

    Raises:
        ValueError: as in `to_rle`, but for the size.
    """
    runs, bounds = runs_of(strings)
    measured = _extents(runs, bounds, height, width)
    if measured is None:
        for begin, end in itertools.pairwise(bounds):
            _check_runs(runs[begin:end], height, width)
        raise AssertionError("masks are refused of which none is")
    return measured[0]


def _extents(
    runs: np.ndarray, bounds: np.ndarray, height: int, width: int
) -> tuple[Extents, Bool[np.ndarray, " masks"]] | None:
    """The extents of masks, and which have an empty run after the first; None if one is wrong."""
    from selfshot.ops import rle_kernels

    extents = np.zeros((3, len(bounds) - 1), dtype=np.int64)
    empty = np.zeros(len(bounds) - 1, dtype=bool)
    filled = rle_kernels.measure(runs, bounds, height, height * width, extents, empty)
    return (extents, empty) if filled else None


def _without_empty_runs(counts: str | bytes, height: int, width: int) -> Rle:
    ends, times = np.unique(np.cumsum(counts_of(counts)), return_counts=True)
    # Where the object begins and ends at one place there is no border.
    borders = ends[(times % 2 == 1) & (ends < height * width)]
    runs = np.diff(borders, prepend=0, append=height * width)
    return to_rle({"size": [height, width], "counts": runs.tolist()}, height, width)


def _measure(
    strings: Sequence[str | bytes], height: int, width: int
) -> tuple[Extents, list[int]] | None:
    """The extents of many compressed counts, and which have an empty run after the first.

    None if one of them is malformed or does not fill a frame.
    """
    try:
        runs, bounds = runs_of(strings)
    except ValueError:
        return None
    measured = _extents(runs, bounds, height, width)
    return None if measured is None else (measured[0], np.flatnonzero(measured[1]).tolist())


def _named(frame: int, segmentation: object, height: int, width: int) -> Rle:
    try:
        return to_rle(segmentation, height, width)
    except ValueError as error:
        raise ValueError(f"frame {frame}: {error}") from None


def _from_runs(segmentation: Mapping[Any, Any], height: int, width: int) -> Rle:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (_are_integers(size) and len(size) == 2):
        raise ValueError(f"size: {_short(size)} is not allowed ([height, width])")
    if list(size) != [height, width]:
        raise ValueError(f"size: {list(size)} differs from the video's [{height}, {width}]")
    if isinstance(counts, str | bytes):
        runs = counts_of(counts)
        _check_runs(runs, height, width)
        text = counts if isinstance(counts, str) else counts.decode("ascii")
        return {"size": [height, width], "counts": text}
    if _are_integers(counts) and all(0 <= run <= height * width for run in counts):
        _check_runs(np.asarray(counts, dtype=np.int64), height, width)
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, 0, 0)
        return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    raise ValueError(f"counts: {_short(counts)} is not allowed (text, or a list of run lengths)")


def _from_polygons(polygons: Sequence[Any], height: int, width: int) -> Rle:
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"polygon: {_short(polygon)} is not allowed (x and y of at least 3 points)"
            )
        # A far point is a slip of units, and pycocotools walks each pixel of an edge.
        limit = 16 * max(height, width)
        if not all(_is_number(value) and abs(value) <= limit for value in polygon):
            raise ValueError(
                f"polygon: {_short(polygon)} is not allowed (finite pixels near the frame)"
            )
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        outline = np.abs(corners - np.roll(corners, 1, axis=0)).max(1).sum()
        if outline > LONGEST_OUTLINE:
            raise ValueError(
                f"polygon: an outline of {outline:.0f} pixels is not allowed (at most "
                f"{LONGEST_OUTLINE:,})"
            )
    rles = coco_mask.frPyObjects([[float(v) for v in p] for p in polygons], height, width)
    rle = coco_mask.merge(rles)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    # No run is larger, so that their sum does not wrap around.
    fit = not len(runs) or 0 <= runs.min() <= runs.max() <= height * width
    total = int(runs.sum())
    if total != height * width or not fit:
        raise ValueError(
            f"counts: runs of {total} pixels in all do not fill {height} × {width} = "
            f"{height * width}"
        )


def _are_integers(value: object) -> TypeGuard[Sequence[int]]:
    return isinstance(value, list | tuple) and all(
        isinstance(item, int) and not isinstance(item, bool) for item in value
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
