"""Views of a plane: the homographies of a camera that moves over a photo, or of a moving cut-out.

A view maps homogeneous pixel coordinates of a frame to those of what is seen, `(x, y, 1)`. Pixel
centres lie at halves, as Pillow has them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def view(
    centre: tuple[float, float],
    scale: float,
    angle: float,
    tilt: tuple[float, float],
    frame: tuple[int, int],
) -> Float[np.ndarray, "3 3"]:
    """The homography from a frame to the plane: `V = T(c) · S(s) · R(φ) · P(t) · T(−frame / 2)`.

    Args:
        centre: the plane's point (x, y) in the middle of the frame.
        scale: pixels of the plane to one of the frame.
        angle: by which the view is turned, in radians.
        tilt: by how much the plane is nearer at the right and at the lower border than in the
            middle, as shares; 0: it is seen from straight above.
        frame: its height and width in pixels.
    """
    height, width = frame
    to_middle = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    perspective = np.array([[1, 0, 0], [0, 1, 0], [2 * tilt[0] / width, 2 * tilt[1] / height, 1]])
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    placed = np.array([[cos, -sin, centre[0]], [sin, cos, centre[1]], [0, 0, 1]])
    found: np.ndarray = placed @ perspective @ to_middle
    return found


def inverse_view(
    place: tuple[float, float], scale: float, angle: float, size: tuple[int, int]
) -> Float[np.ndarray, "3 3"]:
    """The homography from a frame to a picture of `size` that is put into it.

    Args:
        place: the frame's point (x, y) at which the picture's middle lies.
        scale: pixels of the frame to one of the picture.
        angle: by which the picture is turned, in radians.
        size: the picture's height and width in pixels.
    """
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    turned = np.array([[cos, sin, size[1] / 2], [-sin, cos, size[0] / 2], [0, 0, 1]])
    found: np.ndarray = turned @ np.array([[1, 0, -place[0]], [0, 1, -place[1]], [0, 0, 1]])
    return found


def glide(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, steps: int, unrest: float
) -> Float[np.ndarray, "steps n"]:
    """Values that go from `start` to `end`, slowly at both ends, with a small random walk.

    Args:
        rng: of the walk.
        start: values (n,) at the first step.
        end: values at the last one.
        steps: how many.
        unrest: deviation of the walk's steps, as a share of the way.
    """
    share = np.linspace(0, 1, steps) if steps > 1 else np.full(1, 0.5)
    eased = (1 - np.cos(np.pi * share)) / 2
    way = end - start
    walk = rng.normal(0, unrest, (steps, len(start))).cumsum(0) * np.abs(way)
    found: np.ndarray = start + eased[:, None] * way + walk
    return found


def centres_that_show(
    box: tuple[float, float, float, float],
    view_size: tuple[float, float],
    plane: tuple[int, int],
) -> Float[np.ndarray, "2 2"]:
    """Between which centres a view stays on the plane and shows a box, `((x, y), (x, y))`.

    Where it cannot do both, it stays on the plane; where it cannot do that, it is in the middle.

    Args:
        box: left, top, right and bottom; one without a side is seen from anywhere.
        view_size: height and width of what is seen, in the plane's pixels.
        plane: its height and width.
    """
    bounds = np.empty((2, 2))
    for axis, (low, high, side, whole) in enumerate(
        (
            (box[0], box[2], view_size[1], plane[1]),
            (box[1], box[3], view_size[0], plane[0]),
        )
    ):
        if side >= whole:
            bounds[:, axis] = whole / 2
            continue
        least, most = side / 2, whole - side / 2
        if low == high:
            bounds[:, axis] = least, most
            continue
        wanted = sorted((high - side / 2, low + side / 2))
        bounds[:, axis] = np.clip(wanted, least, most)
    return bounds
