"""Where the decoder looks first: tracks on the common class's map, a bias, and its boxes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

OTHER_PLACE, OTHER_FRAME = 6.0, 3.0
"""Most that attention scores lose where nothing common is seen, and in another frame."""

REFERENCE_REACH = 0.15
"""Deviation, in shares of the frame, of the bell in which an instance query looks first."""

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


def attention_prior(
    common: Float[Tensor, "batch time height width"],
    centres: Float[Tensor, "batch num_instances time 2"],
) -> Float[Tensor, "batch 1 queries tokens"]:
    """What the decoder's cross-attention starts from, (B, 1, n·T, T·h·w).

    Instance query (i, t) looks where the common class seems to be (its log-probability), at its
    own frame rather than at others, and near its reference track. Attention that starts uniform
    takes thousands of steps to find an object, and queries that start alike take as long to
    agree on who takes which: all get every object's gradient in turn.

    Args:
        common: logits of the common class.
        centres: (x, y) of the reference tracks in shares of the frame.
    """
    batch, time, height, width = common.shape
    places = functional.logsigmoid(common).clamp_min(-OTHER_PLACE).flatten(2)
    other = OTHER_FRAME * (1 - torch.eye(time, device=common.device))
    y = (torch.arange(height, device=common.device) + 0.5) / height
    x = (torch.arange(width, device=common.device) + 0.5) / width
    across = (centres[..., 0, None] - x) ** 2
    down = (centres[..., 1, None] - y) ** 2
    away = (down[..., :, None] + across[..., None, :]).flatten(3)
    far = (away / (2 * REFERENCE_REACH**2)).clamp_max(OTHER_PLACE)
    bias = places[:, None, None] - other[None, None, :, :, None] - far[:, :, :, None]
    return bias.reshape(batch, 1, centres.shape[1] * time, -1)


def prior_boxes(
    bias: Float[Tensor, "batch 1 queries tokens"], shape: tuple[int, int, int]
) -> Float[Tensor, "batch num_instances time 4"]:
    """The boxes that the prior alone implies, cxcywh: centre and deviation of its attention.

    A box head that starts there learns corrections. One that must read coordinates from attended
    features learns slowly: in a mean of pixels, content varies ten times as much as positions do.

    Args:
        bias: of `attention_prior`.
        shape: (T, h, w) of the clip.
    """
    time, height, width = shape
    attention = bias.softmax(-1).unflatten(-1, (time, height, width)).sum(3)
    attention = attention.squeeze(1).unflatten(1, (-1, time))
    moments = []
    for axis, length in ((-1, width), (-2, height)):
        places = (torch.arange(length, device=bias.device) + 0.5) / length
        other = -2 if axis == -1 else -1
        share = attention.sum(other)
        mean = (share * places).sum(-1)
        deviation = (share * (places - mean[..., None]) ** 2).sum(-1).sqrt()
        # Twice the root of three deviations is the length of a uniform bar.
        moments.append((mean, 2 * 3**0.5 * deviation))
    (x, w), (y, h) = moments
    return torch.stack([x, y, w, h], -1)
