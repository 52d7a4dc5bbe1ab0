"""Homographies of cameras and cut-outs, their paths, and where a camera may stand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfshot.ops.cameras import centres_that_show, glide, inverse_view, view

FRAMES = [(83, 131), (7, 3), (61, 61)]


def _apply(matrix: np.ndarray, x: float, y: float) -> tuple[float, float]:
    across, down, depth = (sum(row[i] * (x, y, 1.0)[i] for i in range(3)) for row in matrix)
    return across / depth, down / depth


def _seen_at(
    x: float,
    y: float,
    centre: tuple[float, float],
    scale: float,
    angle: float,
    tilt: tuple[float, float],
    frame: tuple[int, int],
) -> tuple[float, float]:
    """Where a point of a frame lies on the plane, step by step and without a matrix."""
    height, width = frame
    right, down = x - width / 2, y - height / 2
    nearer = 1 + tilt[0] * right / (width / 2) + tilt[1] * down / (height / 2)
    right, down = right / nearer, down / nearer
    turned = (
        math.cos(angle) * right - math.sin(angle) * down,
        math.sin(angle) * right + math.cos(angle) * down,
    )
    return centre[0] + scale * turned[0], centre[1] + scale * turned[1]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_view_is_its_steps_one_after_another(frame: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(11):
        centre = (float(rng.uniform(0, 300)), float(rng.uniform(0, 200)))
        scale, angle = float(rng.uniform(0.2, 3)), float(rng.uniform(-3, 3))
        tilt = (float(rng.uniform(-0.3, 0.3)), float(rng.uniform(-0.3, 0.3)))
        matrix = view(centre, scale, angle, tilt, frame)
        for x in (0.0, 0.5, 0.37 * frame[1], float(frame[1])):
            for y in (0.0, 0.5, 0.81 * frame[0], float(frame[0])):
                expected = _seen_at(x, y, centre, scale, angle, tilt, frame)
                assert _apply(matrix, x, y) == pytest.approx(expected)


@pytest.mark.parametrize("frame", FRAMES)
def test_the_middle_of_the_frame_shows_the_centre_however_it_is_turned_and_tilted(
    frame: tuple[int, int],
) -> None:
    matrix = view((17.25, -5.5), 1.7, 0.9, (0.2, -0.3), frame)
    assert _apply(matrix, frame[1] / 2, frame[0] / 2) == pytest.approx((17.25, -5.5))


def test_a_view_of_the_whole_plane_is_the_plane() -> None:
    matrix = view((131 / 2, 83 / 2), 1.0, 0.0, (0.0, 0.0), (83, 131))
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)


def test_scale_and_angle_of_a_view() -> None:
    matrix = view((50.0, 40.0), 2.5, 0.3, (0.0, 0.0), (83, 131))
    start = np.array(_apply(matrix, 10.0, 20.0))
    right = np.array(_apply(matrix, 11.0, 20.0)) - start
    down = np.array(_apply(matrix, 10.0, 21.0)) - start
    assert right == pytest.approx((2.5 * math.cos(0.3), 2.5 * math.sin(0.3)))
    assert down == pytest.approx((-right[1], right[0])), "turned, and not mirrored"


def test_what_is_nearer_is_seen_larger() -> None:
    """A pixel at the border that is nearer shows less of the plane than one at the other."""
    matrix = view((0.0, 0.0), 1.0, 0.0, (0.2, 0.1), (83, 131))

    def pixel(x: float, y: float) -> tuple[float, float]:
        left, top = _apply(matrix, x, y)
        right, bottom = _apply(matrix, x + 1, y + 1)
        return right - left, bottom - top

    at_left, at_right = pixel(0.0, 41.0)[0], pixel(130.0, 41.0)[0]
    at_top, at_bottom = pixel(65.0, 0.0)[1], pixel(65.0, 82.0)[1]
    assert at_left > 1 > at_right and at_top > 1 > at_bottom


@pytest.mark.parametrize("size", [(11, 23), (47, 5)])
def test_the_view_of_what_is_put_into_a_frame_is_the_inverse_of_putting_it(
    size: tuple[int, int],
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(7):
        place = (float(rng.uniform(-20, 90)), float(rng.uniform(-20, 90)))
        scale, angle = float(rng.uniform(0.3, 3)), float(rng.uniform(-3, 3))
        matrix = inverse_view(place, scale, angle, size)
        assert _apply(matrix, *place) == pytest.approx((size[1] / 2, size[0] / 2))
        for x, y in ((0.0, 0.0), (3.5, 1.25), (float(size[1]), float(size[0]))):
            # From the picture into the frame: about its middle, turned, enlarged, put.
            right, down = x - size[1] / 2, y - size[0] / 2
            put = (
                place[0] + scale * (math.cos(angle) * right - math.sin(angle) * down),
                place[1] + scale * (math.sin(angle) * right + math.cos(angle) * down),
            )
            assert _apply(matrix, *put) == pytest.approx((x, y))


def test_a_picture_of_the_frame_s_size_in_its_middle_is_the_frame() -> None:
    matrix = inverse_view((23 / 2, 11 / 2), 1.0, 0.0, (11, 23))
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)


class TestGlide:
    START, END = np.array([3.0, -7.0, 0.5]), np.array([11.0, 2.0, 0.5])

    @pytest.mark.parametrize("steps", [2, 3, 7, 13])
    def test_without_unrest_it_goes_from_one_end_to_the_other(self, steps: int) -> None:
        way = glide(np.random.default_rng(0), self.START, self.END, steps, 0.0)
        for step in range(steps):
            share = (1 - math.cos(math.pi * step / (steps - 1))) / 2
            np.testing.assert_allclose(way[step], self.START + share * (self.END - self.START))
        np.testing.assert_allclose(way[[0, -1]], [self.START, self.END])

    def test_one_step_is_half_way(self) -> None:
        (middle,) = glide(np.random.default_rng(0), self.START, self.END, 1, 0.0)
        np.testing.assert_allclose(middle, [7.0, -2.5, 0.5])

    def test_it_never_turns_back_and_is_slow_at_both_ends(self) -> None:
        way = glide(np.random.default_rng(0), self.START, self.END, 11, 0.0)
        steps = np.diff(way[:, :2], axis=0)
        assert (steps > 0).all()
        assert (np.diff(way[::-1, :2], axis=0) < 0).all()
        assert (steps[0] < 0.3 * steps[5]).all() and (steps[-1] < 0.3 * steps[5]).all()
        np.testing.assert_allclose(steps, steps[::-1], atol=1e-12)

    def test_unrest_is_a_walk_in_shares_of_the_way(self) -> None:
        still = glide(np.random.default_rng(5), self.START, self.END, 7, 0.0)
        moved = glide(np.random.default_rng(5), self.START, self.END, 7, 0.04)
        draws = np.random.default_rng(5).normal(0, 0.04, (7, 3))
        walk = np.zeros(3)
        for step in range(7):
            walk = walk + draws[step]
            expected = still[step] + walk * np.array([8.0, 9.0, 0.0])
            np.testing.assert_allclose(moved[step], expected)
        assert (moved[:, 2] == 0.5).all(), "what has no way to go stays"

    def test_the_walk_is_drawn(self) -> None:
        first, again, other = (
            glide(np.random.default_rng(seed), self.START, self.END, 5, 0.1) for seed in (0, 0, 1)
        )
        assert np.array_equal(first, again) and not np.allclose(first[:, :2], other[:, :2])


def _bounds(
    box: tuple[float, float, float, float], side: tuple[float, float], plane: tuple[int, int]
) -> list[tuple[float, float, float, float, float, int]]:
    """Of x and of y: the two centres, the box's ends, the view's side, the plane's."""
    found = centres_that_show(box, side, plane)
    return [
        (float(found[0, 0]), float(found[1, 0]), box[0], box[2], side[1], plane[1]),
        (float(found[0, 1]), float(found[1, 1]), box[1], box[3], side[0], plane[0]),
    ]


@st.composite
def _views(draw: st.DrawFn) -> tuple[
    tuple[float, float, float, float], tuple[float, float], tuple[int, int]
]:  # fmt: skip
    plane = (draw(st.integers(2, 211)), draw(st.integers(2, 307)))
    ends = []
    for whole in (plane[1], plane[0]):
        low = draw(st.floats(0, whole - 1))
        ends.append((low, draw(st.floats(low, whole))))
    side = tuple(draw(st.floats(1, 1.5 * whole)) for whole in plane)
    return (ends[0][0], ends[1][0], ends[0][1], ends[1][1]), (side[0], side[1]), plane


@given(_views(), st.floats(0, 1))
def test_a_view_stays_on_the_plane_and_shows_the_box(
    case: tuple[tuple[float, float, float, float], tuple[float, float], tuple[int, int]],
    share: float,
) -> None:
    for first, last, low, high, side, whole in _bounds(*case):
        if side >= whole:
            assert first == last == whole / 2
            continue
        assert first <= last
        centre = first + share * (last - first)
        assert centre - side / 2 >= -1e-6 and centre + side / 2 <= whole + 1e-6
        if low == high:
            assert (first, last) == (side / 2, whole - side / 2)
        elif high - low <= side:
            assert centre - side / 2 <= low + 1e-6 and centre + side / 2 >= high - 1e-6
        else:
            assert centre - side / 2 >= low - 1e-6 and centre + side / 2 <= high + 1e-6


@given(_views())
def test_no_other_centre_would_do(
    case: tuple[tuple[float, float, float, float], tuple[float, float], tuple[int, int]],
) -> None:
    """Just outside of its bounds a view leaves the plane or the box."""
    for first, last, low, high, side, whole in _bounds(*case):
        if side >= whole or not 0 < high - low <= side:
            continue
        for centre in (first - 0.01, last + 0.01):
            on_plane = centre - side / 2 >= 0 and centre + side / 2 <= whole
            shows = centre - side / 2 <= low and centre + side / 2 >= high
            assert not (on_plane and shows)


def test_where_a_camera_may_stand() -> None:
    """A box in the corner, one that is too large for the view, a view too large for the plane."""
    assert centres_that_show((2.0, 3.0, 12.0, 9.0), (20.0, 30.0), (71, 97)).tolist() == [
        [15.0, 10.0],
        [17.0, 13.0],
    ]
    assert centres_that_show((10.0, 20.0, 80.0, 60.0), (20.0, 30.0), (71, 97)).tolist() == [
        [25.0, 30.0],
        [65.0, 50.0],
    ]
    assert centres_that_show((2.0, 3.0, 12.0, 9.0), (80.0, 99.0), (71, 97)).tolist() == [
        [48.5, 35.5],
        [48.5, 35.5],
    ]
    assert centres_that_show((0.0, 0.0, 0.0, 0.0), (20.0, 30.0), (71, 97)).tolist() == [
        [15.0, 10.0],
        [82.0, 61.0],
    ]
