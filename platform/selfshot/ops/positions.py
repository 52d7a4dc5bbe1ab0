"""Spatio-temporal positions (section 5, stage 1): d/3 sines and cosines for each of t, y, x."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sine_positions(
    num_frames: int,
    height: int,
    width: int,
    dim: int,
    *,
    temperature: float = 10000.0,
    device: torch.device | str | None = None,
) -> Float[Tensor, "num_frames height width dim"]:
    """Sine and cosine codes of each place of a clip.

    The channels are dim/3 for time, dim/3 for the row and dim/3 for the column; in each third a
    sine and its cosine are neighbours. The i-th of N places of an axis has the angle 2π(i + 1)/N
    before it is divided by `temperature` to the power 2k/(dim/3), so clips of another length or
    size span the same range.

    Raises:
        ValueError: dim is not a multiple of 6, or a size is below 1.
    """
    if dim < 6 or dim % 6:
        raise ValueError(f"dim: {dim} must be a positive multiple of 6 (t, y, x; sine, cosine)")
    if min(num_frames, height, width) < 1:
        raise ValueError(
            f"num_frames, height, width: {num_frames}, {height}, {width} must be at least 1"
        )
    time = _axis_codes(num_frames, dim // 3, temperature, device)
    rows = _axis_codes(height, dim // 3, temperature, device)
    columns = _axis_codes(width, dim // 3, temperature, device)
    grid = (num_frames, height, width, dim // 3)
    return torch.cat(
        [
            time[:, None, None].expand(grid),
            rows[None, :, None].expand(grid),
            columns[None, None, :].expand(grid),
        ],
        dim=-1,
    )


def _axis_codes(
    length: int, channels: int, temperature: float, device: torch.device | str | None
) -> Float[Tensor, "length channels"]:
    angle = torch.arange(1, length + 1, device=device) * (2 * math.pi / length)
    exponent = torch.arange(channels // 2, device=device) * (2 / channels)
    phase = angle[:, None] / temperature**exponent
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2)
