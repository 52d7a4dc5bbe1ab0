"""Compressed counts of COCO's RLE, many at once, as run lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def counts_of(counts: str | bytes) -> np.ndarray:
    """The run lengths of compressed counts: background first, column by column.

    Raises:
        ValueError: a character is not of the code, or the last number is cut short.
    """
    return runs_of([counts])[0]


def runs_of(strings: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths of many compressed counts, one after another, and where each begins and ends.

    Raises:
        ValueError: as in `counts_of`.
    """
    from selfshot.ops import rle_kernels

    codes, bounds = joined(strings)
    runs = np.empty(len(codes), dtype=np.int64)
    run_bounds = np.empty(len(bounds), dtype=np.int64)
    wrong = rle_kernels.read_runs(codes, bounds, runs, run_bounds)
    if wrong:
        raise ValueError(
            {
                rle_kernels.WRONG_CHARACTER: "counts: a character outside the RLE code",
                rle_kernels.CUT_SHORT: "counts: cut short in the middle of a number",
                rle_kernels.TOO_LARGE: "counts: a number beyond 32 bits",
            }[wrong]
        )
    return runs[: run_bounds[-1]], run_bounds


def joined(strings: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The characters of many counts, and where those of each begin and end.

    Raises:
        ValueError: a character is not ASCII.
    """
    bounds = np.zeros(len(strings) + 1, dtype=np.int64)
    np.cumsum(
        np.fromiter(map(len, strings), dtype=np.int64, count=len(strings)), out=bounds[1:]
    )
    texts = [text if isinstance(text, str) else text.decode("latin-1") for text in strings]
    try:
        characters = "".join(texts).encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("counts: a character outside the RLE code") from None
    return np.frombuffer(characters, dtype=np.uint8), bounds
