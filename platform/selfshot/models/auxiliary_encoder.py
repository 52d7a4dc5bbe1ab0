"""A second frozen network beside Φ: what both find alike is more often of one class."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from selfshot.models.pretrained import PretrainedNetwork
from selfshot.models.video_encoder import VideoEncoder, window_vectors

SHARE, FRAMES = 0.3, 4
"""Chosen on validation classes: its share of the cosine, and the number of its frames."""


class AuxiliaryEncoder(nn.Module):
    """A frozen network whose vectors are joined to Φ's.

    Unit vectors u of Φ and c of this one become (√(1 − s)·u, √s·c). The cosine of two such
    vectors is (1 − s) times Φ's and s times this one's, so index and windows stay what they
    are. It looks where Φ looks: tokens are resized to Φ's grid and weighted by Φ's foreground.
    """

    def __init__(
        self, backbone: PretrainedNetwork, share: float = SHARE, num_frames: int = FRAMES
    ) -> None:
        """Build it.

        Args:
            backbone: the network, frozen.
            share: s, of the cosine.
            num_frames: of a clip that it looks at, evenly spaced.
        """
        super().__init__()
        self.backbone = backbone
        self.share, self.num_frames = share, num_frames

    def frames_of(self, time: int) -> list[int]:
        """Which frames of a clip it looks at."""
        count = min(time, self.num_frames)
        return [number * time // count for number in range(count)]

    def tokens(
        self, frames: UInt8[Tensor, "batch time height width 3"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch time h w dim"]:
        """Roots of the network's features, with their signs, on a grid of Φ's size.

        Roots for the same reason as in `FrameBackbone`: a few strong channels would decide.
        """
        features = self.backbone(frames).tokens.flatten(0, 1).permute(0, 3, 1, 2)
        roots = features.sign() * features.abs().sqrt()
        planes = functional.interpolate(roots, size=grid, mode="bilinear")
        return planes.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])

    def join(
        self,
        vectors: Float[Tensor, "batch dim"],
        frames: UInt8[Tensor, "batch time height width 3"],
        foreground: Float[Tensor, "batch time h w"],
    ) -> Float[Tensor, "batch joined"]:
        """Φ's vectors of clips with this encoder's.

        Args:
            vectors: of Φ, at length 1.
            frames: of the clips.
            foreground: as Φ sees it in each frame.
        """
        at = self.frames_of(frames.shape[1])
        weights = foreground[:, at]
        tokens = self.tokens(frames[:, at], (weights.shape[2], weights.shape[3]))
        return self._joined(vectors, VideoEncoder.pool(tokens, weights))

    def windows(
        self,
        vectors: Float[Tensor, "batch windows dim"],
        frames: UInt8[Tensor, "batch time height width 3"],
        foreground: Float[Tensor, "batch time h w"],
        size: int,
    ) -> Float[Tensor, "batch windows joined"]:
        """Φ's vectors of windows with this encoder's of the same windows.

        Args:
            vectors: of Φ, of the frames that `frames_of` chooses.
            frames: these frames.
            foreground: of these frames.
            size: side of a window in tokens.
        """
        tokens = self.tokens(frames, (foreground.shape[2], foreground.shape[3]))
        return self._joined(vectors, window_vectors(tokens, foreground, size)[0])

    def _joined(self, vectors: Tensor, own: Tensor) -> Tensor:
        return torch.cat([(1 - self.share) ** 0.5 * vectors, self.share**0.5 * own], -1)
