"""What the convolutional trunks with published weights have in common."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def enlarged(
    images: Float[Tensor, "frames 3 height width"], side: int
) -> Float[Tensor, "frames 3 h w"]:
    """Images whose shorter side is at least `side`; larger ones stay as they are."""
    height, width = images.shape[-2:]
    if min(height, width) >= side:
        return images
    scale = side / min(height, width)
    size = (round(height * scale), round(width * scale))
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True)


def keep_norms(module: nn.Module) -> None:
    """Put every BatchNorm below into evaluation mode: it uses and keeps its statistics.

    Statistics of many images are better than those of a few clips, and they are the same on any
    number of ranks.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
