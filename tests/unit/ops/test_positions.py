"""Spatio-temporal positions against a loop over the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfshot.ops.positions import sine_positions


def test_as_a_loop() -> None:
    frames, height, width, dim = 3, 5, 7, 18
    codes = sine_positions(frames, height, width, dim, temperature=100.0).numpy()
    third = dim // 3
    expected = np.zeros((frames, height, width, dim))
    for t, y, x in np.ndindex(frames, height, width):
        for axis, (place, length) in enumerate([(t, frames), (y, height), (x, width)]):
            for channel in range(third):
                angle = 2 * math.pi * (place + 1) / length
                phase = angle / 100.0 ** (2 * (channel // 2) / third)
                wave = math.sin if channel % 2 == 0 else math.cos
                expected[t, y, x, axis * third + channel] = wave(phase)
    np.testing.assert_allclose(codes, expected, atol=1e-5)


def test_every_place_has_its_own_code() -> None:
    codes = sine_positions(5, 7, 11, 72).flatten(0, 2)
    assert len(codes.unique(dim=0)) == 5 * 7 * 11


def test_the_paper_size() -> None:
    assert sine_positions(2, 2, 3, 288).shape == (2, 2, 3, 288)


@pytest.mark.parametrize("dim", [0, 3, 8, 70])
def test_a_width_that_does_not_divide(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim: {dim} must be a positive multiple of 6"):
        sine_positions(2, 3, 5, dim)


def test_an_empty_clip() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        sine_positions(0, 3, 5, 6)
