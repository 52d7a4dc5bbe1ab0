"""Loops over COCO's run lengths, compiled by Numba: read, measure and compare many masks.

The compiled code is kept beside this file, or in the user's cache where that cannot be written.
Import it where it is used: Numba takes a third of a second to load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

WRONG_CHARACTER, CUT_SHORT, TOO_LARGE = 1, 2, 3
"""What `read_runs` found wrong."""

_MOST_CODES = 7  # Of five bits each: no run of a frame takes more.


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # There is no folder that can be written.
        return numba.njit(nogil=True)(function)


@_compiled
def read_runs(codes, bounds, runs, run_bounds):  # type: ignore[no-untyped-def]
    """Run lengths of many compressed counts, one after another.

    A character holds five bits of a number, low bits first; bit 5 says that more of it follow, and
    bit 4 of the last one is the sign. From the fourth on a number is the difference to the number
    before last.

    Args:
        codes: uint8, the characters of all counts.
        bounds: int64, where each of the counts begins, and the number of all characters.
        runs: int64, as long as `codes`: they are written here.
        run_bounds: int64, as long as `bounds`: where the runs of each begin, and their number.

    Returns:
        0, or what is wrong; `runs` is then of no use.
    """
    at = 0
    for mask in range(len(bounds) - 1):
        first = at
        run_bounds[mask] = first
        number, shift = np.int64(0), np.int64(0)
        for place in range(bounds[mask], bounds[mask + 1]):
            code = np.int64(codes[place]) - 48
            if code < 0 or code > 63:
                return WRONG_CHARACTER
            number |= (code & 31) << shift
            shift += 5
            if code & 32:
                if shift >= 5 * _MOST_CODES:
                    return TOO_LARGE
                continue
            if code & 16:
                number |= np.int64(-1) << shift
            if at - first > 2:
                number += runs[at - 2]
            runs[at] = number
            at += 1
            number, shift = np.int64(0), np.int64(0)
        if shift:
            return CUT_SHORT
    run_bounds[len(bounds) - 1] = at
    return 0


@_compiled
def measure(runs, run_bounds, height, num_pixels, extents, empty):  # type: ignore[no-untyped-def]
    """The extents of masks, and which have an empty run after the first.

    Args:
        runs: int64, of all masks.
        run_bounds: int64, where those of each begin, and the number of all.
        height: of the frames, in pixels.
        num_pixels: of a frame.
        extents: int64 `[3, masks]`: pixels, first column and the one after the last, written here.
        empty: bool `[masks]`, written here.

    Returns:
        False if the runs of a mask do not fill a frame, or one is negative.
    """
    for mask in range(len(run_bounds) - 1):
        begin, end = run_bounds[mask], run_bounds[mask + 1]
        at, area, first, last = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for place in range(begin, end):
            run = runs[place]
            if run < 0 or run > num_pixels - at:
                return False
            if run == 0 and place > begin:
                empty[mask] = True
            if (place - begin) % 2 == 1 and run > 0:
                if area == 0:
                    first = at
                area += run
                last = at + run
            at += run
        if at != num_pixels:
            return False
        if area:
            extents[0, mask] = area
            extents[1, mask] = first // height
            extents[2, mask] = (last - 1) // height + 1
    return True


@_compiled
def shared_pixels(  # type: ignore[no-untyped-def]
    codes, begins, ends, frames, most, total, at_least
):
    """The pixels that predicted and annotated tracks share, over all frames.

    A mask is read when it is first needed, and a pair is left as soon as it is certain that its
    video IoU stays below a threshold.

    Args:
        codes: uint8, the characters of all counts, which are known to fill frames of less than
            2³¹ pixels.
        begins: int64 `[tracks, time]`, where the counts of each mask begin; predicted tracks come
            first, then the annotated ones.
        ends: int64 `[tracks, time]`, where they end; an absent mask ends where it begins.
        frames: int64, in the order in which they are compared.
        most: int64 `[predictions, annotated, time]`, the most pixels that a pair can share.
        total: int64 `[predictions, annotated]`, the pixels of both over all frames.
        at_least: the threshold of the video IoU.

    Returns:
        int64 `[predictions, annotated]`; 0 for a pair that stays below.
    """
    num_predictions, num_annotated = total.shape
    num_tracks, num_frames = begins.shape
    # Where the object begins and ends, in turn; of a mask as many as it has characters at most.
    borders = np.empty(len(codes) + 1, dtype=np.int32)
    counts = np.full((num_tracks, num_frames), -1, dtype=np.int64)
    shared = np.zeros((num_predictions, num_annotated), dtype=np.int64)
    for row in range(num_predictions):
        for column in range(num_annotated):
            left = np.int64(0)
            for frame in frames:
                left += most[row, column, frame]
            found = np.int64(0)
            for frame in frames:
                if _below(found + left, total[row, column], at_least):
                    break
                if most[row, column, frame] == 0:
                    continue
                other = num_predictions + column
                for track in (row, other):
                    if counts[track, frame] < 0:
                        counts[track, frame] = _read_borders(
                            codes, begins[track, frame], ends[track, frame], borders
                        )
                left -= most[row, column, frame]
                found += _shared_of_borders(
                    borders,
                    begins[row, frame],
                    counts[row, frame],
                    begins[other, frame],
                    counts[other, frame],
                )
            if not _below(found + left, total[row, column], at_least):
                shared[row, column] = found
    return shared


@_compiled
def _below(shared, total, at_least):  # type: ignore[no-untyped-def]
    """Whether a pair that shares at most so many pixels stays below a video IoU."""
    return shared <= 0 or shared < (at_least - 1e-9) * (total - shared)


@_compiled
def _read_borders(codes, begin, end, borders):  # type: ignore[no-untyped-def]
    """Write where the object begins and ends from `begin` on; returns how many borders there are.

    Pairs only: what the object leaves open at the end of a frame ends there.
    """
    at = begin
    number, shift = np.int64(0), np.int64(0)
    # The last three numbers: from the fourth on, one is the difference to the number before last.
    last, before_last = np.int64(0), np.int64(0)
    border = np.int64(0)
    for place in range(begin, end):
        code = np.int64(codes[place]) - 48
        number |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            number |= np.int64(-1) << shift
        if at - begin > 2:
            number += before_last
        border += number
        borders[at] = border
        at += 1
        before_last, last = last, number
        number, shift = np.int64(0), np.int64(0)
    # An odd number of runs ends with the background.
    return (at - begin) // 2 * 2


@_compiled
def _shared_of_borders(borders, one, num_one, two, num_two):  # type: ignore[no-untyped-def]
    """The pixels that two masks share, from where each begins and ends."""
    shared = np.int64(0)
    one_end, two_end = one + num_one, two + num_two
    while one < one_end and two < two_end:
        end, other_end = borders[one + 1], borders[two + 1]
        common = min(end, other_end) - max(borders[one], borders[two])
        shared += max(common, 0)
        # Without a branch: which one ends first is hard to foresee.
        first = end <= other_end
        one += 2 * first
        two += 2 * (not first)
    return shared
