"""Weights of an image ViT as the start of a video ViT (ViViT)."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from selfshot.errors import UserError


def inflate_positions(state: dict[str, Tensor], grid: tuple[int, int, int]) -> dict[str, Tensor]:
    """Weights whose positions fit `grid`: those of one image are repeated over time.

    Positions of another number of patches are interpolated. An image ViT also has a position for
    its class token: that is added to the token. Weights of a video ViT stay as they are.

    Args:
        state: weights by name, with `pos_embed` of an image (1, 1 + patches, d) or of a video
            (time, rows, columns, d).
        grid: frames, rows and columns wanted.

    Raises:
        UserError: the positions are those of no square image.
    """
    positions = state.get("pos_embed")
    if positions is None or positions.shape[:-1] == grid:
        return state
    state = dict(state)
    if positions.dim() == 3 and positions.shape[0] == 1:
        # Patches make a square, before which the class token may have a position.
        side = math.isqrt(positions.shape[1])
        before = positions.shape[1] - side * side
        if before > 1:
            raise UserError(
                f"encoder.weights: pos_embed has {positions.shape[1]} positions, and only those "
                "of a square image, with or without a class token, can be interpolated; give "
                "weights of square images",
                setting="encoder.weights",
            )
        if before:
            state["cls_token"] = state["cls_token"] + positions[:, :1]
        positions = positions[0, before:].unflatten(0, (1, side, side))
    elif positions.dim() != 4:
        return state
    channels_first = positions.float().permute(3, 0, 1, 2)[None]
    resized = functional.interpolate(
        channels_first, size=grid, mode="trilinear", align_corners=False
    )
    state["pos_embed"] = resized[0].permute(1, 2, 3, 0).to(positions.dtype)
    return state
