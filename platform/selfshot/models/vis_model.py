"""What every method of video instance segmentation offers: the paper's and those beside it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from selfshot.models.backbone import Backbone
from selfshot.models.features import ClipFeatures, SupportFeatures


class VisModel(nn.Module):
    """A query clip and its supports to instances with masks.

    Clips are encoded by themselves, so that a support is read once however many queries it
    helps; `predict` brings a query and its supports together.

    Attributes:
        backbone: frames to tokens.
        num_instances: n, instances of a clip at most.
        object_head: how much of a token is foreground, where the method asks.
    """

    backbone: Backbone
    num_instances: int
    object_head: nn.Linear | None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def mask_stride(self) -> int:
        """Pixels of a frame to a cell of the mask logits."""
        raise NotImplementedError

    @property
    def reads_supports(self) -> bool:
        """Whether supports change anything."""
        return True

    def encode(
        self, frames: UInt8[Tensor, "batch time height width 3"], *, is_support: bool
    ) -> ClipFeatures:
        """Clips by themselves, without padding; frames are moved to the model's device."""
        raise NotImplementedError

    def predict(self, query: ClipFeatures, support: SupportFeatures | None) -> dict[str, Any]:
        """Instances of encoded clips, with the help of encoded supports.

        Returns:
            at least `foreground_logits` (B, n, T, 2) with foreground first, `boxes_cxcywh`
            (B, n, T, 4), `mask_logits` (B, n, T, H / s, W / s) at `mask_stride`, and `instances`
            (B, n, T, d), what tells an instance from others.
        """
        raise NotImplementedError


