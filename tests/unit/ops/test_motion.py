"""What moves, without anything learned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from selfshot.ops.motion import moving_objects, otsu, pan_between


def _background(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (4, 4, 0))
    return (120 + 300 * smooth).clip(60, 180).astype(np.uint8)


def _clip(pan: tuple[int, int], time: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A bright square that crosses a background, which moves by `pan` in each frame."""
    world, height, width = _background(140, 160), 60, 80
    frames = np.empty((time, height, width, 3), np.uint8)
    masks = np.zeros((time, height, width), bool)
    for t in range(time):
        top, left = 40 - pan[0] * t, 40 - pan[1] * t
        frames[t] = world[top : top + height, left : left + width]
        masks[t, 20:34, 4 + 10 * t : 16 + 10 * t] = True
        frames[t][masks[t]] = (250, 20, 240)
    return frames, masks


@pytest.mark.parametrize("pan", [(0, 0), (3, -2), (-1, 4)])
def test_pan_of_the_background_in_spite_of_what_moves(pan: tuple[int, int]) -> None:
    frames, _ = _clip(pan)
    before, after = frames[2].astype(np.float32), frames[3].astype(np.float32)
    assert pan_between(before, after) == pan


def test_a_flat_background_has_no_pan() -> None:
    flat = np.full((40, 30, 3), 70, np.float32)
    assert pan_between(flat, flat) == (0, 0)


@pytest.mark.parametrize("pan", [(0, 0), (2, 1)])
def test_a_thing_that_crosses_is_found_whole(pan: tuple[int, int]) -> None:
    frames, masks = _clip(pan)
    found = moving_objects(frames, 3)
    assert 1 <= len(found.masks) <= 3 and found.masks.shape[1:] == masks.shape
    both, either = (found.masks[0] & masks).sum(), (found.masks[0] | masks).sum()
    assert both / either > 0.6
    assert (found.scores >= 0).all() and (found.scores <= 1).all()
    assert (np.diff(found.scores) <= 0).all()


def test_two_things_are_two() -> None:
    frames, _ = _clip((0, 0))
    for t in range(len(frames)):
        frames[t, 44:56, 70 - 10 * t : 78 - 10 * t] = (10, 250, 10)
    found = moving_objects(frames, 5)
    assert len(found.masks) >= 2
    assert not (found.masks[0] & found.masks[1]).any()
    assert len(moving_objects(frames, 1).masks) == 1


def test_where_nothing_moves_nothing_is_found() -> None:
    still = np.repeat(_background(40, 48)[None], 5, 0)
    noise = np.random.default_rng(0).integers(-4, 5, still.shape)
    for frames in (still, (still + noise).astype(np.uint8), still[:1]):
        found = moving_objects(frames, 4)
        assert found.masks.shape == (0, *frames.shape[:3]) and not len(found.scores)


def test_otsu_parts_two_heaps() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 2, 700), rng.normal(90, 5, 110)])
    assert 16 < otsu(values) < 75
