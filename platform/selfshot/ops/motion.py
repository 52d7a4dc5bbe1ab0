"""Moving things without anything learned: what differs from the background, frame by frame.

Frames are laid over each other (the camera may pan), their median is the background, and what
differs from it is cut into connected pieces of space and time.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

SMOOTHING = 1.0
"""Deviation, in pixels, of the blur that takes noise out before frames are compared."""

MOST_PAN = 0.12
"""Most that the camera may pan between two frames, as a share of a side."""

COMPARED_SIDE = 64
"""Pixels of a frame's longer side, about, where pans are looked for."""

BACKGROUND = 0.7
"""Share of the pixels, those that differ least, that pans are judged by."""

BETTER = 0.98
"""A longer shift must be better than a shorter one by this much to be taken for a pan."""

LEAST_SHARE = 0.004
"""A piece that covers less than this share of a frame is noise there."""

LEAST_DIFFERENCE = 12.0
"""Differences below this, of 255, are noise however little moves."""


@dataclasses.dataclass(frozen=True)
class MovingObjects:
    """Things that move in a clip, the surest first.

    Attributes:
        masks: of each, in every frame.
        scores: 0 to 1: how much of the clip it is seen in × how far it stands out.
    """

    masks: Bool[np.ndarray, "objects time height width"]
    scores: Float[np.ndarray, " objects"]


def pan_between(
    before: Float[np.ndarray, "height width channels"],
    after: Float[np.ndarray, "height width channels"],
) -> tuple[int, int]:
    """How many pixels down and right the background moved from one frame to the next.

    Of all shifts up to `MOST_PAN`, the one under which most of the shared pixels differ least:
    things that move by themselves are in the rest. Large frames are compared small.
    """
    scale = max(1, round(max(before.shape[:2]) / COMPARED_SIDE))
    small = [x[::scale, ::scale].mean(-1) for x in (before, after)]
    height, width = small[0].shape
    best, found = np.inf, (0, 0)
    down, right = int(MOST_PAN * height), int(MOST_PAN * width)
    shifts = [(dy, dx) for dy in range(-down, down + 1) for dx in range(-right, right + 1)]
    # The shortest come first, so that they win where a flat background leaves the choice.
    for dy, dx in sorted(shifts, key=lambda shift: shift[0] ** 2 + shift[1] ** 2):
        here = small[1][max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
        there = small[0][max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
        differences = np.abs(here - there).ravel()
        most = int(BACKGROUND * len(differences))
        cost = float(np.partition(differences, most)[: most + 1].mean())
        if cost < BETTER * best:
            best, found = cost, (dy * scale, dx * scale)
    return found


def foreground_difference(
    frames: UInt8[np.ndarray, "time height width 3"],
) -> Float[np.ndarray, "time height width"]:
    """How much each pixel differs from the background, 0 to 255.

    The background of a frame is the median over time of all frames, moved to where that frame
    looks; pixels that a frame does not show take no part.
    """
    pixels = ndimage.gaussian_filter(frames.astype(np.float32), (0, SMOOTHING, SMOOTHING, 0))
    time = len(pixels)
    places = np.zeros((time, 2), int)
    for t in range(1, time):
        places[t] = places[t - 1] + pan_between(pixels[t - 1], pixels[t])
    differences = np.zeros(pixels.shape[:3], np.float32)
    for t in range(time):
        laid_over = np.stack(
            [_shifted(pixels[s], *(places[t] - places[s]).tolist()) for s in range(time)]
        )
        with np.errstate(all="ignore"):
            background = np.nanmedian(laid_over, axis=0)
        differences[t] = np.abs(pixels[t] - background).max(-1)
    return differences


def _shifted(frame: np.ndarray, down: int, right: int) -> np.ndarray:
    """A frame moved by whole pixels, NaN where nothing is known."""
    height, width = frame.shape[:2]
    moved = np.full_like(frame, np.nan)
    if abs(down) >= height or abs(right) >= width:
        return moved  # The camera has left that place.
    rows = slice(max(0, down), min(height, height + down))
    columns = slice(max(0, right), min(width, width + right))
    moved[rows, columns] = frame[
        max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return moved


def otsu(values: Float[np.ndarray, "*shape"]) -> float:
    """The threshold that parts values into the two classes of least inner variance."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum().astype(float)
    above = below[-1] - below
    sums = (counts * centres).cumsum()
    with np.errstate(all="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    between = np.nan_to_num(between[:-1])
    return float(edges[1 + int(between.argmax())])


def moving_objects(
    frames: UInt8[np.ndarray, "time height width 3"], most: int
) -> MovingObjects:
    """The connected pieces of space and time that move, at most so many.

    A single frame has no motion, and so nothing moves in it.
    """
    time, height, width = frames.shape[:3]
    nothing = MovingObjects(np.zeros((0, time, height, width), bool), np.zeros(0))
    if time < 2:
        return nothing
    difference = foreground_difference(frames)
    threshold = max(otsu(difference), LEAST_DIFFERENCE)
    moving = difference > threshold
    for t in range(time):
        closed = ndimage.binary_closing(moving[t], iterations=2)
        moving[t] = ndimage.binary_fill_holes(ndimage.binary_opening(closed))
    # Pieces touch in a frame with their corners, and from frame to frame where they overlap.
    structure = np.zeros((3, 3, 3), bool)
    structure[1], structure[:, 1, 1] = True, True
    labels, count = ndimage.label(moving, structure)
    found = []
    for label in range(1, count + 1):
        mask = labels == label
        mask &= (mask.sum((1, 2)) >= LEAST_SHARE * height * width)[:, None, None]
        if not mask.any():
            continue
        clear = 1 - threshold / max(float(difference[mask].mean()), threshold)
        found.append((float(mask.any((1, 2)).mean() * clear), mask))
    if not found:
        return nothing
    found.sort(key=lambda one: -one[0])
    return MovingObjects(
        np.stack([mask for _, mask in found[:most]]),
        np.array([score for score, _ in found[:most]]),
    )
