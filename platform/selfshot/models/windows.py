"""Vectors of spatial windows of a clip."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def window_vectors(
    tokens: Float[Tensor, "batch time h w dim"],
    foreground: Float[Tensor, "batch time h w"],
    size: int,
) -> tuple[Float[Tensor, "batch windows dim"], Float[Tensor, "batch windows"]]:
    """The mean of the tokens of each window of `size` × `size`, weighted by foreground.

    Returns:
        L2-normalised vectors, frame by frame and row by row, and the mean foreground of each
        window.
    """
    batch, time = tokens.shape[:2]
    size = min(size, *tokens.shape[2:4])
    weights = foreground.clamp_min(1e-4).flatten(0, 1)[:, None]
    planes = tokens.flatten(0, 1).permute(0, 3, 1, 2)
    mass = functional.avg_pool2d(weights, size, 1)
    vectors = functional.avg_pool2d(planes * weights, size, 1) / mass
    vectors = functional.normalize(vectors, dim=1).permute(0, 2, 3, 1)
    return vectors.unflatten(0, (batch, time)).flatten(1, 3), mass.reshape(batch, -1)


def peak_vectors(
    vectors: Float[Tensor, "batch time windows dim"], mass: Float[Tensor, "batch time windows"]
) -> Float[Tensor, "batch dim"]:
    """The L2-normalised mean over frames of each frame's window of the most foreground."""
    places = mass.argmax(-1, keepdim=True)[..., None].expand(-1, -1, -1, vectors.shape[-1])
    return functional.normalize(vectors.gather(2, places)[:, :, 0].mean(1), dim=-1)
