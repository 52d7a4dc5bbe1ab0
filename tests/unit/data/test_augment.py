"""Augmentation: the same for all frames, from its own generator, and nothing by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfshot.data.augment import Augmentation

FULL = {"crop_scale": 0.2, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 100, 84, 3), dtype=np.uint8)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_by_default_it_mirrors_half_of_the_crops(frames: np.ndarray) -> None:
    mirrored = 0
    for seed in range(200):
        out = Augmentation()(frames, _rng(seed))
        flipped = not np.array_equal(out, frames)
        mirrored += flipped
        np.testing.assert_array_equal(out, frames[:, :, ::-1] if flipped else frames)
    assert 70 < mirrored < 130


@pytest.mark.parametrize(
    "changes",
    [FULL, {"blur": 1.0}, {"grey": 1.0}, {"crop_scale": 0.3}, {"hue": 0.2}],
)
def test_every_frame_changes_alike(frames: np.ndarray, changes: dict[str, float]) -> None:
    still = np.repeat(frames[:1], 3, 0)
    for seed in range(8):
        out = Augmentation(**changes)(still, _rng(seed))
        assert out.shape == still.shape and out.dtype == np.uint8
        np.testing.assert_array_equal(out, np.repeat(out[:1], 3, 0))
    change = Augmentation(flip=0.0, jitter=1.0, **changes)
    assert any(not np.array_equal(change(frames, _rng(seed)), frames) for seed in range(8))


def test_the_generator_decides_and_torch_is_not_asked(frames: np.ndarray) -> None:
    change = Augmentation(**FULL, blur=0.5, grey=0.2)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = [change(frames, _rng(seed)) for seed in range(5)]
    assert torch.equal(torch.random.get_rng_state(), before)
    again = [change(frames, _rng(seed)) for seed in range(5)]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], first[1])


def test_a_crop_shows_a_part(frames: np.ndarray) -> None:
    """Cropping a ramp gives a part of the ramp, in order."""
    ramp = np.tile(np.arange(0, 252, 9, dtype=np.uint8)[None, None, :, None], (2, 20, 1, 3))
    shares = []
    for seed in range(30):
        row = Augmentation(flip=0.0, crop_scale=0.25)(ramp, _rng(seed))[0, 10, :, 0].astype(int)
        assert (np.diff(row) >= 0).all()
        shares.append((row[-1] - row[0]) / 243)
    assert min(shares) < 0.7 and max(shares) <= 1


def test_grey_has_no_colour(frames: np.ndarray) -> None:
    out = Augmentation(flip=0.0, grey=1.0)(frames, _rng())
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    np.testing.assert_array_equal(out[..., 0], out[..., 2])
    weighted = frames @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(out[..., 0], weighted, atol=1.5)
