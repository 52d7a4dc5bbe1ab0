"""Reference tracks: where instance queries start, read off the map of the common class."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

FOLLOW_REACH = 0.15
"""Deviation, in shares of the frame, of the bell in which a track is followed to the next frame."""

FAINT = 0.2
"""Evidence, in tokens, that moves a track half of the way to where it lies."""

SUPPRESS_REACH = 0.2
"""Deviation of the bell that a track takes out of the map for the tracks after it."""


@torch.no_grad()
def reference_tracks(
    common: Float[Tensor, "batch time height width"], count: int
) -> tuple[Float[Tensor, "batch count time 2"], Float[Tensor, "batch count time"]]:
    """Greedy tracks through a map: take its peak, follow it both ways in time, take it out.

    The first track lies on the strongest evidence, the next on what is left, and so on; instance
    queries that start on different tracks need not first agree on who takes which object.

    Args:
        common: probability that a token belongs to the common class.
        count: tracks wanted.

    Returns:
        Centres (x, y) in shares of the frame, and the map's mass around them in tokens.
    """
    batch, time, height, width = common.shape
    device = common.device
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(
        0, 1
    )
    rows = torch.arange(batch, device=device)
    remaining = common.flatten(2).clone()
    centres, masses = [], []
    for _ in range(count):
        planes = remaining.view(batch * time, 1, height, width)
        smooth = functional.avg_pool2d(planes, 3, 1, 1).view(batch, -1)
        peak = smooth.argmax(1)
        frame, cell = peak // (height * width), peak % (height * width)
        track = torch.zeros(batch, time, 2, device=device)
        mass = torch.zeros(batch, time, device=device)
        for direction in (1, -1):
            centre = grid[cell]
            for step in range(time):
                t = frame + direction * step
                inside = (t >= 0) & (t < time)
                t = t.clamp(0, time - 1)
                away = ((grid - centre[:, None]) ** 2).sum(-1)
                weight = remaining[rows, t] * torch.exp(-away / (2 * FOLLOW_REACH**2))
                total = weight.sum(1, keepdim=True)
                # Where next to nothing is left the track stays in place. Squares part faint
                # evidence, as the rim of another object is, from an object better than shares do.
                share = total**2 / (total**2 + FAINT**2)
                mean = (weight @ grid) / total.clamp_min(1e-6)
                centre = share * mean + (1 - share) * centre
                kept = inside[:, None]
                track[rows, t] = torch.where(kept, centre, track[rows, t])
                mass[rows, t] = torch.where(inside, total[:, 0], mass[rows, t])
        away = ((grid - track[:, :, None]) ** 2).sum(-1)
        remaining = remaining * (1 - torch.exp(-away / (2 * SUPPRESS_REACH**2)))
        centres.append(track)
        masses.append(mass)
    return torch.stack(centres, 1), torch.stack(masses, 1)
