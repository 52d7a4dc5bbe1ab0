"""Masks as run lengths (COCO's RLE): read every form of them, write the compressed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

Rle = dict[str, Any]
"""`{"size": [height, width], "counts": str}`, compressed."""


def encode_rle(mask: Bool[np.ndarray, "height width"]) -> Rle:
    """A dense mask as compressed RLE with text counts, ready for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_rle(segmentation: object, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Any segmentation that `to_rle` reads, as a dense mask.

    Raises:
        ValueError: as in `to_rle`.
    """
    counts = None
    if isinstance(segmentation, Mapping) and segmentation.get("size") == [height, width]:
        counts = segmentation.get("counts")
    if not isinstance(counts, str | bytes):
        counts = to_rle(segmentation, height, width)["counts"]
    runs = counts_of(counts)
    _check_runs(runs, height, width)
    is_object = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_object, runs).reshape(width, height).T


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


def to_rles(segmentations: Sequence[object], height: int, width: int) -> tuple[Rle | None, ...]:
    """Compressed RLE of each frame of a track; `None` and empty lists are absent frames.

    Compressed RLEs, which the public files hold, are checked together: a track costs little more
    than a frame does in `to_rle`.

    Raises:
        ValueError: as in `to_rle`, with the index of the frame.
    """
    rles: list[Rle | None] = [None] * len(segmentations)
    text: dict[int, str] = {}
    for frame, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
            counts = segmentation.get("counts")
            if isinstance(counts, str):
                text[frame] = counts
                rles[frame] = {"size": [height, width], "counts": counts}
                continue
        if segmentation is None or segmentation == []:
            continue
        rles[frame] = _named(frame, segmentation, height, width)
    if text and not _all_fill(list(text.values()), height * width):
        for frame in text:
            _named(frame, segmentations[frame], height, width)
        raise AssertionError("a track is refused whose frames are not")
    return tuple(rles)


def counts_of(counts: str | bytes) -> np.ndarray:
    """The run lengths of compressed counts: background first, column by column.

    Raises:
        ValueError: a character is not of the code, or the last number is cut short.
    """
    return _runs_of([counts])[0]


def _runs_of(strings: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths of many compressed counts, one after another, and where each begins.

    Raises:
        ValueError: as in `counts_of`.
    """
    try:
        raw = [text.encode("ascii") if isinstance(text, str) else bytes(text) for text in strings]
    except UnicodeEncodeError:
        raise ValueError("counts: a character outside the RLE code") from None
    codes = np.frombuffer(b"".join(raw), dtype=np.uint8).astype(np.int64) - 48
    string_ends = np.cumsum([len(text) for text in raw])
    if not len(codes):
        return codes, np.zeros(len(raw), dtype=np.int64)
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("counts: a character outside the RLE code")

    # Five bits a character, low bits first; bit 5 says that more follow, bit 4 of the last one
    # is the sign.
    is_end = codes < 32
    if not is_end[string_ends[string_ends > 0] - 1].all():
        raise ValueError("counts: cut short in the middle of a number")
    ends = np.flatnonzero(is_end)
    starts = np.concatenate([[0], ends[:-1] + 1])
    length = ends - starts + 1
    if length.max() > 7:
        raise ValueError("counts: a number beyond 32 bits")
    place = np.arange(len(codes)) - np.repeat(starts, length)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= ((codes[ends] & 16) > 0) * (1 << (5 * length))

    # From the fourth on, a number is the difference to the number before last.
    last = np.concatenate([[0], np.cumsum(is_end)])[string_ends]
    first = np.concatenate([[0], last[:-1]])
    index = np.arange(len(numbers)) - np.repeat(first, last - first)
    runs = numbers.copy()
    for chained in (index % 2 == 1, (index % 2 == 0) & (index > 1)):
        total = np.concatenate([[0], np.cumsum(np.where(chained, numbers, 0))])
        of_string = total[1:] - np.repeat(total[first], last - first)
        runs[chained] = of_string[chained]
    return runs, first


def _all_fill(strings: Sequence[str], pixels: int) -> bool:
    """Whether each of many compressed counts is well formed and fills a frame."""
    try:
        runs, first = _runs_of(strings)
    except ValueError:
        return False
    total = np.diff(np.concatenate([[0], np.cumsum(runs)])[np.append(first, len(runs))])
    return bool((total == pixels).all() and runs.min() >= 0)


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
    rles = coco_mask.frPyObjects([[float(v) for v in p] for p in polygons], height, width)
    rle = coco_mask.merge(rles)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    total = int(runs.sum())
    if total != height * width or (len(runs) and runs.min() < 0):
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
