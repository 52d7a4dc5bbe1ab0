"""The segmentation's backbone as Φ's: what turns frames into tokens before the transformer."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from selfshot.models.backbone import Backbone
from selfshot.models.pretrained import FrameTokens


class FrameBackbone(nn.Module):
    """The backbone with its foreground head, frozen where both were pretrained.

    Pretrained, its tokens are the square roots, signed, of the features before the projection. The
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

    def forward(self, clips: UInt8[Tensor, "batch time height width 3"]) -> FrameTokens:
        """Tokens and the probability that each is foreground."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            images = self.backbone.normalise(clips.flatten(0, 1))
            tokens, _, deep = self.backbone.features(images)
            foreground = self.foreground(tokens.permute(0, 2, 3, 1))[..., 0].sigmoid()
        if self.frozen:
            tokens = deep.sign() * deep.abs().sqrt()
        tokens = tokens.permute(0, 2, 3, 1)
        shape = clips.shape[:2]
        return FrameTokens(tokens.unflatten(0, shape), foreground.unflatten(0, shape))
