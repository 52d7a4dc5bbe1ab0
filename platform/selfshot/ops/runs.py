"""Compressed counts of COCO's RLE, many at once: as run lengths, or as where the object is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where the object begins and ends in several masks, one mask after another.

    Positions are those of pixels, column by column from the top left.
    """

    starts: Int[np.ndarray, " runs"]
    ends: Int[np.ndarray, " runs"]
    bounds: Int[np.ndarray, " masks_and_end"]
    """The first run of each mask, and the number of all."""


def counts_of(counts: str | bytes) -> np.ndarray:
    """The run lengths of compressed counts: background first, column by column.

    Raises:
        ValueError: a character is not of the code, or the last number is cut short.
    """
    return runs_of([counts])[0]


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


def runs_of(strings: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
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
        chain, start = numbers[parity::2], chain_bounds(bounds, parity)
        total = totals(chain)
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
        bounds = totals(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
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


def totals(values: np.ndarray) -> np.ndarray:
    """The sum of all values before each, and of all."""
    totals = np.zeros(len(values) + 1, dtype=np.int64)
    values.cumsum(out=totals[1:])
    return totals


def chain_bounds(bounds: np.ndarray, parity: int) -> np.ndarray:
    """Where texts begin and end among every second number, from the first or the second on."""
    return (bounds + (1 - parity)) // 2
