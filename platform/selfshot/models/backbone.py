"""The small residual network that turns frames into tokens."""

from __future__ import annotations

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


class SmallBackbone(nn.Module):
    """A residual network with BatchNorm: tokens at stride 8, finer features at stride 4.

    BatchNorm, as it learns classes in a third of the steps that GroupNorm needs
    (docs/decisions). Its statistics are those of pretraining, on frames of many videos:
    `freeze_norms` keeps them when the network is fine-tuned on a handful of episodes.
    """

    def __init__(self, width: int = 32, dim: int = 72) -> None:
        """Build it.

        Args:
            width: channels after the stem; 2 × at stride 4 and 4 × at stride 8.
            dim: channels d of a token.
        """
        super().__init__()
        self.width, self.dim = width, dim
        self.freeze_norms = False
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
    def fine_channels(self) -> int:
        """Channels of the stride-4 features."""
        return 2 * self.width

    def train(self, mode: bool = True) -> SmallBackbone:
        """Set the mode; with `freeze_norms` the norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_norms:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    @property
    def deep_channels(self) -> int:
        """Channels of the stride-8 features before they are projected to tokens."""
        return 4 * self.width

    def features(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[
        Float[Tensor, "batch dim h8 w8"],
        Float[Tensor, "batch fine h4 w4"],
        Float[Tensor, "batch deep h8 w8"],
    ]:
        """Tokens (B, d, H / 8, W / 8) and the ReLU features at strides 4 and 8 below them."""
        images = images.contiguous(memory_format=torch.channels_last)
        with convolution_autocast(images.device, training=self.training):
            fine = self.stage4(self.stem(images))
            deep = self.stage8(fine)
            tokens = self.project(deep)
        return tokens.float(), fine.float(), deep.float()

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch dim h8 w8"], Float[Tensor, "batch fine h4 w4"]]:
        """Tokens (B, d, H / 8, W / 8) and fine features (B, c, H / 4, W / 4)."""
        tokens, fine, _ = self.features(images)
        return tokens, fine


class PretrainedBackbone(nn.Module):
    """The pretrained backbone and the head that tells how much of a token is foreground."""

    def __init__(self, backbone: SmallBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.foreground = nn.Linear(backbone.dim, 1)
