"""Where one shot of a video ends and the next begins, by how much its frames differ.

Every frame is decoded small and described by a histogram of the colours of each quarter. A cut is
where two neighbours differ by more than a threshold, and by several times as much as the frames
around them do, so that fast motion and shaking are none. Fades are not found.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from selfshot.data.video import Decoder, iterate_frames

SHOTS = "selfshot.data.shots:shot_starts"
SIDE = 32
_BINS = 8
_AROUND = 12
_TIMES_AROUND = 4.0
_FRAMES_AT_ONCE = 256


def shot_starts(
    path: str, *, most: int, threshold: float, decoder: Decoder = "decord"
) -> UInt8[np.ndarray, "most 8"]:
    """Times in seconds at which a shot begins, the first aside, as the bytes of float64.

    Args:
        path: of the video.
        most: how many are given back at most; what is not used is NaN.
        threshold: see `find_cuts`.
        decoder: what reads the video.
    """
    histograms, times = [], []
    for frames, seconds in iterate_frames(
        path, SIDE, SIDE, _FRAMES_AT_ONCE, decoder=decoder
    ):
        histograms.append(quarter_histograms(frames))
        times.append(seconds)
    cuts = find_cuts(differences(np.concatenate(histograms)), threshold)
    starts = np.full(most, np.nan)
    found = np.concatenate(times)[cuts][:most]
    starts[: len(found)] = found
    return starts.view(np.uint8).reshape(most, 8)


def quarter_histograms(
    frames: UInt8[np.ndarray, "time height width 3"],
) -> Float[np.ndarray, "time bins"]:
    """Shares of each channel's values in the four quarters of a frame; they sum to 1."""
    time, height, width, _ = frames.shape
    quarters = frames.reshape(time, 2, height // 2, 2, width // 2, 3).transpose(0, 1, 3, 5, 2, 4)
    values = (quarters >> 5).reshape(time, 12, -1).astype(np.int64)
    # One count for all: each frame, quarter and channel has bins of its own.
    offsets = _BINS * np.arange(time * 12).reshape(time, 12, 1)
    counts = np.bincount((values + offsets).ravel(), minlength=time * 12 * _BINS)
    return counts.reshape(time, 12 * _BINS) / values[0].size


def differences(histograms: Float[np.ndarray, "time bins"]) -> Float[np.ndarray, steps]:
    """Share of the values that changed their bin between neighbours, 0 to 1."""
    return np.abs(np.diff(histograms, axis=0)).sum(axis=1) / 2


def find_cuts(steps: Float[np.ndarray, steps], threshold: float) -> np.ndarray:
    """Indices of the frames with which a shot begins.

    Args:
        steps: how much each frame differs from the one before, from the second frame on.
        threshold: below it nothing is a cut.
    """
    cuts = []
    for at in np.flatnonzero(steps > threshold).tolist():
        around = np.r_[steps[max(0, at - _AROUND) : at], steps[at + 1 : at + 1 + _AROUND]]
        if len(around) and steps[at] < _TIMES_AROUND * np.median(around):
            continue
        cuts.append(at + 1)
    return np.array(cuts, dtype=np.int64)
