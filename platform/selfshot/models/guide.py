"""Where the decoder looks first: a bias of its cross-attention, and the boxes that it implies."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

OTHER_PLACE, OTHER_FRAME = 6.0, 3.0
"""Most that attention scores lose where nothing common is seen, and in another frame."""

REFERENCE_REACH = 0.15
"""Deviation, in shares of the frame, of the bell in which an instance query looks first."""


def guide_bias(
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


def reference_boxes(
    bias: Float[Tensor, "batch 1 queries tokens"], shape: tuple[int, int, int]
) -> Float[Tensor, "batch num_instances time 4"]:
    """Where the guide alone would put the boxes, cxcywh: centre and spread of its attention.

    A box head that starts there learns corrections. One that must read coordinates from attended
    features learns slowly: in a mean of pixels, content varies ten times as much as positions do.

    Args:
        bias: of `guide_bias`.
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
