"""Masks as run lengths (COCO's RLE): read every form of them, write the compressed one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask

Rle = dict[str, Any]
"""`{"size": [height, width], "counts": str}`, compressed."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where the object begins and ends in several masks, one mask after another.

    Positions are those of pixels, column by column from the top left.
    """

    starts: Int[np.ndarray, " runs"]
    ends: Int[np.ndarray, " runs"]
    bounds: Int[np.ndarray, " masks_and_end"]
    """The first run of each mask, and the number of all."""


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
    runs, bounds = _runs_of(texts)
    totals = _totals(runs)[bounds]
    if (totals[1:] - totals[:-1] != height * width).any() or (len(runs) and runs.min() < 0):
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


def to_rles(segmentations: Sequence[object], height: int, width: int) -> tuple[Rle | None, ...]:
    """Compressed RLE of each frame of a track; `None` and empty lists are absent frames.

    Raises:
        ValueError: as in `to_rle`, with the index of the frame.
    """
    return measured_rles(segmentations, height, width)[0]


def measured_rles(
    segmentations: Sequence[object], height: int, width: int
) -> tuple[tuple[Rle | None, ...], tuple[int, ...]]:
    """As `to_rles`, with the pixels of each frame, 0 where the track is absent.

    Compressed RLEs, which the public files hold, are checked and counted together: a track costs
    little more than a frame does in `to_rle`. They share one list as their size. A mask in which a
    run is empty is written anew: pycocotools stops comparing where two masks have one.

    Raises:
        ValueError: as in `to_rles`.
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
    measured = _measure([rle["counts"] for rle in rles if rle], height * width)
    if measured is None:
        for frame in seen:
            _named(frame, segmentations[frame], height, width)
        raise AssertionError("a track is refused whose frames are not")
    areas, have_empty_runs = measured
    for index in have_empty_runs:
        rles[seen[index]] = encode_rle(decode_rle(rles[seen[index]], height, width))
    pixels = [0] * len(segmentations)
    for frame, area in zip(seen, areas, strict=True):
        pixels[frame] = area
    return tuple(rles), tuple(pixels)


def counts_of(counts: str | bytes) -> np.ndarray:
    """The run lengths of compressed counts: background first, column by column.

    Raises:
        ValueError: a character is not of the code, or the last number is cut short.
    """
    return _runs_of([counts])[0]


def object_runs(strings: Sequence[str | bytes]) -> Runs:
    """The runs of the object of many compressed counts; a last one of a mask may be empty.

    Args:
        strings: compressed counts that are known to fill frames of less than 2³¹ pixels.
    """
    texts = _texts(strings)
    codes = _Codes.of(texts)
    odd = (codes.number_bounds[1:] - codes.number_bounds[:-1]) % 2 == 1
    if odd.any():
        # These end with the background. With one more number each mask has pairs only.
        codes = _Codes.of(
            [text + "0" if one else text for text, one in zip(texts, odd.tolist(), strict=True)]
        )
    numbers, bounds = codes.numbers(np.int32), codes.number_bounds // 2
    before, lengths = numbers[::2].copy(), numbers[1::2].copy()
    begins, last = bounds[:-1], bounds[1:] - 1
    # From the fourth on, a number is the difference to the number before last.
    several = begins[last > begins]
    before[several + 1] -= before[several]
    lengths = _sums_apart(lengths, bounds)
    lengths[last[odd]] = 0
    ends = _sums_apart(_sums_apart(before, bounds) + lengths, bounds)
    return Runs(ends - lengths, ends, bounds)


def _sums_apart(
    values: Int[np.ndarray, " runs"], bounds: Int[np.ndarray, " masks_and_end"]
) -> Int[np.ndarray, " runs"]:
    """Running sums that begin anew at some places."""
    sums = values.cumsum(dtype=values.dtype)
    # Beyond 32 bits they wrap around, and come back here.
    sums -= np.append(sums.dtype.type(0), sums[bounds[1:-1] - 1]).repeat(bounds[1:] - bounds[:-1])
    return sums


def _runs_of(strings: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths of many compressed counts, one after another, and where each begins and ends.

    Raises:
        ValueError: as in `counts_of`.
    """
    codes = _Codes.of(_texts(strings))
    numbers, bounds = codes.numbers(np.int64), codes.number_bounds
    # From the fourth on, a number is the difference to the number before last: two chains of sums,
    # which begin at the second and the third number. The first stands alone.
    begins = bounds[:-1][bounds[1:] > bounds[:-1]]
    alone = numbers[begins]
    numbers[begins] = 0
    for parity in (0, 1):
        chain, start = numbers[parity::2], _chain_bounds(bounds, parity)
        total = _totals(chain)
        chain[:] = total[1:] - total[start[:-1]].repeat(start[1:] - start[:-1])
    numbers[begins] = alone
    return numbers, bounds


def _texts(strings: Sequence[str | bytes]) -> list[str]:
    return [text if isinstance(text, str) else text.decode("latin-1") for text in strings]


@dataclasses.dataclass(frozen=True)
class _Codes:
    """Many compressed counts, one after another.

    Attributes:
        codes: five bits of a number each, low bits first; bit 5 says that more of it follow, bit 4
            of the last one is the sign. Nearly all numbers have one.
        low: the places of those after which more follow.
        number_bounds: where the numbers of each of the counts begin, and the number of all.
    """

    codes: np.ndarray
    low: np.ndarray
    number_bounds: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Codes:
        bounds = _totals(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
        try:
            joined = "".join(texts).encode("ascii")
        except UnicodeEncodeError:
            raise ValueError("counts: a character outside the RLE code") from None
        # What is below the code's first character wraps around and is far above its last.
        codes = np.frombuffer(joined, dtype=np.uint8) - np.uint8(48)
        if codes.max(initial=0) > 63:
            raise ValueError("counts: a character outside the RLE code")
        ends = bounds[1:]
        if (codes[ends[ends > 0] - 1] > 31).any():
            raise ValueError("counts: cut short in the middle of a number")
        low = np.flatnonzero(codes > 31)
        return cls(codes, low, bounds - low.searchsorted(bounds))

    def numbers(self, kind: type[np.signedinteger]) -> np.ndarray:
        last = np.ones(len(self.codes), dtype=bool)
        last[self.low] = False
        numbers = ((self.codes ^ 16) - np.uint8(16)).view(np.int8)[last].astype(kind)
        if len(self.low):
            begin = np.flatnonzero(np.append(True, self.low[1:] - self.low[:-1] > 1))
            count = np.diff(begin, append=len(self.low))
            if count.max() > 6:
                raise ValueError("counts: a number beyond 32 bits")
            place = np.arange(len(self.low)) - begin.repeat(count)
            parts = (self.codes[self.low] & 31).astype(np.int64) << (5 * place)
            longer = self.low[begin] - begin
            high = numbers[longer].astype(np.int64) << (5 * count)
            numbers[longer] = high + np.add.reduceat(parts, begin)
        return numbers


def _totals(values: np.ndarray) -> np.ndarray:
    """The sum of all values before each, and of all."""
    totals = np.zeros(len(values) + 1, dtype=np.int64)
    values.cumsum(out=totals[1:])
    return totals


def _chain_bounds(bounds: np.ndarray, parity: int) -> np.ndarray:
    """Where texts begin and end among every second number, from the first or the second on."""
    return (bounds + (1 - parity)) // 2


def _measure(strings: Sequence[str | bytes], pixels: int) -> tuple[list[int], list[int]] | None:
    """The areas of many compressed counts, and which of them have an empty run after the first.

    None if one of them is malformed or does not fill a frame.
    """
    try:
        runs, bounds = _runs_of(strings)
    except ValueError:
        return None
    if len(runs) and runs.min() < 0:
        return None
    sums = []
    for parity in (0, 1):
        total = _totals(runs[parity::2])[_chain_bounds(bounds, parity)]
        sums.append(total[1:] - total[:-1])
    if (sums[0] + sums[1] != pixels).any():
        return None
    # Every second run is of the object, beginning with a mask's second.
    areas = np.where(bounds[:-1] % 2 == 0, sums[1], sums[0])
    empty = runs == 0
    empty[bounds[:-1]] = False
    places = np.flatnonzero(empty)
    found = np.unique(bounds.searchsorted(places, side="right") - 1) if len(places) else places
    return areas.tolist(), found.tolist()


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
