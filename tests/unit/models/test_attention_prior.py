"""Reference tracks: which blob each track takes, and where it goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfshot.models.attention_prior import reference_tracks

TIME, HEIGHT, WIDTH = 6, 16, 24
STRONG, WEAK = 0.95, 0.5


def _paths(time: int) -> Tensor:
    """Centres (2, T, 2): above, rightwards; below, leftwards and a little down."""
    step = torch.arange(time) * 0.07
    above = torch.stack([0.25 + step, torch.full((time,), 0.2)], -1)
    below = torch.stack([0.75 - step, 0.75 + step / 5], -1)
    return torch.stack([above, below])


def _blobs(paths: Tensor, strengths: Tensor) -> Tensor:
    """A map (T, h, w) with a bell of `strengths` (m, T) at each of `paths` (m, T, 2)."""
    y = (torch.arange(HEIGHT) + 0.5) / HEIGHT
    x = (torch.arange(WIDTH) + 0.5) / WIDTH
    away = (x - paths[..., 0, None, None]) ** 2 + (y[:, None] - paths[..., 1, None, None]) ** 2
    return (strengths[..., None, None] * torch.exp(-away / (2 * 0.07**2))).sum(0)


def _strengths(time: int, first: float, second: float) -> Tensor:
    return torch.tensor([first, second])[:, None].expand(2, time).clone()


@pytest.mark.parametrize("time", [1, TIME])
@pytest.mark.parametrize("stronger", [0, 1])
def test_the_first_track_is_the_stronger_blob(time: int, stronger: int) -> None:
    paths = _paths(time)
    values = (STRONG, WEAK) if stronger == 0 else (WEAK, STRONG)
    common = _blobs(paths, _strengths(time, *values))
    before = common.clone()
    centres, mass = reference_tracks(common[None], 2)
    assert centres.shape == (1, 2, time, 2) and mass.shape == (1, 2, time)
    torch.testing.assert_close(centres[0], paths[[stronger, 1 - stronger]], rtol=0, atol=0.03)
    assert (mass[0, 0] > 1.3 * mass[0, 1]).all() and (mass > 1).all()
    assert torch.equal(common, before), "the map itself is left as it is"


def test_mass_is_in_tokens() -> None:
    paths = _paths(TIME)[:1]
    common = _blobs(paths, torch.full((1, TIME), STRONG))
    _, mass = reference_tracks(common[None], 1)
    whole = common.sum((1, 2))
    assert (mass[0, 0] < whole).all() and (mass[0, 0] > 0.7 * whole).all()


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        (0, [0]),
        (0, [2]),
        (0, [TIME - 1]),
        (0, [2, 3]),
        (1, [0]),
        (1, [2]),
        (1, [2, 3]),
        (1, [TIME - 1]),
    ],
)
def test_an_absent_object_is_waited_for(absent: int, gone: list[int]) -> None:
    paths, strengths = _paths(TIME), _strengths(TIME, STRONG, WEAK)
    strengths[absent, gone] = 0
    centres, mass = reference_tracks(_blobs(paths, strengths)[None], 2)
    seen = strengths > 0
    # The frame after an absence leans to where the object was before.
    assert (centres[0] - paths)[seen].abs().max() < 0.05
    # Where it is gone the track stays about where it was last, and not on the other object.
    assert (centres[0, absent, gone] - paths[absent, gone]).norm(dim=-1).max() < 0.25
    assert mass[0][~seen].max() < 0.2 * mass[0][seen].min()


def test_clips_of_a_batch_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.rand(3, TIME, HEIGHT, WIDTH, generator=generator)
    common[1] = _blobs(_paths(TIME), _strengths(TIME, WEAK, STRONG))
    whole = reference_tracks(common, 3)
    for i in range(3):
        alone = reference_tracks(common[i : i + 1], 3)
        torch.testing.assert_close(alone, tuple(part[i : i + 1] for part in whole))


def test_a_smaller_count_is_a_prefix() -> None:
    common = torch.rand(2, TIME, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    more, fewer = reference_tracks(common, 4), reference_tracks(common, 2)
    assert all(torch.equal(a[:, :2], b) for a, b in zip(more, fewer, strict=True))


def test_an_empty_map_has_tracks_without_mass() -> None:
    centres, mass = reference_tracks(torch.zeros(1, TIME, HEIGHT, WIDTH), 2)
    assert ((centres > 0) & (centres < 1)).all() and not mass.any()


def test_no_gradient_goes_through_tracks() -> None:
    common = torch.rand(1, 2, 5, 7, requires_grad=True)
    assert not any(part.requires_grad for part in reference_tracks(common, 2))
