"""Inception v3 as a trunk: the paper's rows "Inception fixed" and "Inception MoCo"."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from selfshot.models.trunk_input import enlarged, keep_norms

LEAST_SIDE = 75
"""The network has no map left of a smaller frame."""


class InceptionTrunk(nn.Module):
    """torchvision's Inception v3 to its last map, whose mean is a frame's pooled feature."""

    dim = 2048

    def __init__(self, *, frozen: bool, pretrained: bool, side: int = LEAST_SIDE) -> None:
        """Build it, with weights drawn at random.

        Args:
            frozen: it is not trained: "Inception fixed".
            pretrained: weights will be loaded. Their norms' statistics are then kept, also in
                fine-tuning, and no time is spent on drawing others.
            side: frames are enlarged to at least this side.
        """
        super().__init__()
        # Imported here: the other trunks need no torchvision.
        from torchvision.models import inception_v3

        network = inception_v3(
            weights=None, aux_logits=False, transform_input=False, init_weights=not pretrained
        )
        del network.fc, network.dropout, network.avgpool
        self.network = network
        self.frozen, self.keeps_norms = frozen, frozen or pretrained
        self.side = max(side, LEAST_SIDE)
        if frozen:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> InceptionTrunk:
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
