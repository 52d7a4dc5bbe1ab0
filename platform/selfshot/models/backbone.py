"""What turns frames into tokens: the interface of backbones, and the small residual network."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from selfshot.models.precision import convolution_autocast

PIXEL_MEAN, PIXEL_STD = 127.0, 64.0


def normalise_frames(frames: UInt8[Tensor, "*batch height width 3"]) -> Float[Tensor, ...]:
    """Pixels uint8 (…, H, W, 3) to float32 (…, 3, H, W) of about unit deviation."""
    return (frames.movedim(-1, -3).float() - PIXEL_MEAN) / PIXEL_STD


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self.shortcut(x), inplace=True)


class Backbone(nn.Module):
    """Frames to tokens of `dim` channels, and to finer features below them.

    Attributes:
        dim: channels d of a token.
        token_stride: pixels of a frame to a token; the last one of an axis may be cut.
        fine_channels: channels of the finer features.
        fine_stride: pixels of a frame to one of them.
        deep_channels: channels of the features before they are projected to tokens.
        freeze_norms: keep the statistics of BatchNorm: they are those of pretraining, on frames
            of many videos, and a handful of episodes would spoil them.
        frozen_affine: with `freeze_norms`, keep its scale and shift too.
    """

    dim: int
    token_stride: int
    fine_channels: int
    fine_stride: int
    deep_channels: int
    frozen_affine = False

    def __init__(self) -> None:
        super().__init__()
        self.freeze_norms = False

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `build_backbone` that make this network again."""
        raise NotImplementedError

    def normalise(
        self, frames: UInt8[Tensor, "*batch height width 3"]
    ) -> Float[Tensor, "*batch 3 height width"]:
        """Pixels as the network wants them."""
        return normalise_frames(frames)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, finer features, and the features below the tokens' projection, at least 0."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Set the mode; with `freeze_norms` the norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_norms:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
                    if self.frozen_affine:
                        module.requires_grad_(False)
        return self

    def features(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[
        Float[Tensor, "batch dim token_height token_width"],
        Float[Tensor, "batch fine fine_height fine_width"],
        Float[Tensor, "batch deep token_height token_width"],
    ]:
        """Tokens, the finer features, and the features below the tokens' projection, at least 0."""
        images = images.contiguous(memory_format=torch.channels_last)
        with convolution_autocast(images.device, training=self.training):
            tokens, fine, deep = self.maps(images)
        return tokens.float(), fine.float(), deep.float()

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[
        Float[Tensor, "batch dim token_height token_width"],
        Float[Tensor, "batch fine fine_height fine_width"],
    ]:
        """Tokens and finer features of normalised frames."""
        tokens, fine, _ = self.features(images)
        return tokens, fine


class SmallBackbone(Backbone):
    """A residual network with BatchNorm: tokens at stride 8, finer features at stride 4.

    BatchNorm, as it learns classes in a third of the steps that GroupNorm needs
    (docs/decisions).
    """

    token_stride, fine_stride = 8, 4

    def __init__(self, width: int = 32, dim: int = 72) -> None:
        """Build it.

        Args:
            width: channels after the stem; 2 × at stride 4 and 4 × at stride 8.
            dim: channels d of a token.
        """
        super().__init__()
        self.width, self.dim = width, dim
        self.fine_channels, self.deep_channels = 2 * width, 4 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stage4 = nn.Sequential(
            ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 2 * width)
        )
        self.stage8 = nn.Sequential(
            ResidualBlock(2 * width, 4 * width, 2), ResidualBlock(4 * width, 4 * width)
        )
        self.project = nn.Conv2d(4 * width, dim, 1)

    @property
    def settings(self) -> dict[str, Any]:
        """Width and channels of a token."""
        return {"width": self.width, "dim": self.dim}

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone`."""
        fine = self.stage4(self.stem(images))
        deep = self.stage8(fine)
        return self.project(deep), fine, deep


class PretrainedBackbone(nn.Module):
    """The pretrained backbone and the head that tells how much of a token is foreground."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.foreground = nn.Linear(backbone.dim, 1)
