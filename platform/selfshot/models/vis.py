"""The self-shot VIS transformer of section 5, assembled."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from selfshot.models.backbone import SmallBackbone, normalise_frames
from selfshot.models.fuser import QuerySupportFuser
from selfshot.models.segmenter import InstanceSegmenter
from selfshot.models.transformer import SpatioTemporalDecoder, SpatioTemporalEncoder
from selfshot.ops.positions import sine_positions

OTHER_PLACE, OTHER_FRAME = 6.0, 3.0
"""Most that attention scores lose where nothing common is seen, and in another frame."""


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """A clip after the backbone and the encoder.

    Attributes:
        tokens: E, (B, T·h·w, d), frames one after another.
        fine: stride-4 features (B, T, c, H / 4, W / 4).
        shape: (T, h, w).
    """

    tokens: Tensor
    fine: Tensor
    shape: tuple[int, int, int]


class SelfShotVIS(nn.Module):
    """Backbone, spatio-temporal encoder, query-support fuser, decoder, heads and segmenter."""

    def __init__(
        self,
        backbone: SmallBackbone,
        *,
        heads: int,
        encoder_layers: int,
        fuser_layers: int,
        decoder_layers: int,
        ffn_dim: int,
        dropout: float,
        num_instances: int,
        deformable: bool,
        query_positions: bool,
        support_positions: bool,
        fuser: bool = True,
    ) -> None:
        """Assemble the model.

        Args:
            backbone: frames to tokens of d channels; d is read from it.
            heads: attention heads.
            encoder_layers, fuser_layers, decoder_layers: depths of the three stages.
            ffn_dim: hidden channels of the feed-forward blocks.
            dropout: in the feed-forward blocks.
            num_instances: n, instance queries a frame.
            deformable: deformable convolution in the segmenter.
            query_positions, support_positions: add positions in the encoder (Table 9).
            fuser: False removes stage 2, and with it every use of supports (Table 3).
        """
        super().__init__()
        dim = backbone.dim
        self.dim, self.num_instances = dim, num_instances
        self.query_positions, self.support_positions = query_positions, support_positions
        self.backbone = backbone
        self.encoder = SpatioTemporalEncoder(dim, heads, ffn_dim, encoder_layers, dropout)
        self.fuser = (
            QuerySupportFuser(dim, heads, ffn_dim, fuser_layers, dropout) if fuser else None
        )
        self.decoder = SpatioTemporalDecoder(dim, heads, ffn_dim, decoder_layers, dropout)
        self.instance_queries = nn.Parameter(torch.randn(num_instances, dim))
        self.foreground_head = nn.Linear(dim, 2)
        self.box_head = nn.Sequential(
            nn.Linear(dim, dim),
            nn.ReLU(True),
            nn.Linear(dim, dim),
            nn.ReLU(True),
            nn.Linear(dim, 4),
        )
        self.common_head = nn.Linear(dim, 1)
        self.common_embedding = nn.Parameter(torch.randn(dim))
        self.segmenter = InstanceSegmenter(
            dim, heads, backbone.fine_channels, deformable=deformable
        )

    def _positions(self, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        return sine_positions(*shape, self.dim).flatten(0, 2)[None].to(like)

    def _guide(self, common: Float[Tensor, "batch time pixels"]) -> Tensor:
        """What the decoder's cross-attention starts from, (B, 1, n·T, T·h·w).

        Instance query (i, t) looks where the common class seems to be (its log-probability) and
        at its own frame rather than at others. Attention that starts uniform over all pixels
        takes thousands of steps to find an object.
        """
        batch, time, _ = common.shape
        places = functional.logsigmoid(common).clamp_min(-OTHER_PLACE)
        other = OTHER_FRAME * (1 - torch.eye(time, device=common.device))
        bias = places[:, None] - other[None, :, :, None]
        bias = bias.flatten(2)[:, None, None].expand(-1, 1, self.num_instances, -1, -1)
        return bias.reshape(batch, 1, self.num_instances * time, -1)

    def encode(
        self, frames: UInt8[Tensor, "batch time height width 3"], *, is_support: bool
    ) -> ClipFeatures:
        """Backbone and stage 1 on clips, for the query or for the support branch."""
        return self.encode_together([frames], [is_support])[0]

    def encode_together(self, clips: list[Tensor], is_support: list[bool]) -> list[ClipFeatures]:
        """`encode` of several batches of clips of one frame size with one backbone call."""
        images = torch.cat([normalise_frames(frames).flatten(0, 1) for frames in clips])
        tokens, fine = self.backbone(images)
        sizes = [frames.shape[0] * frames.shape[1] for frames in clips]
        features = []
        for frames, support, f, c in zip(
            clips, is_support, tokens.split(sizes), fine.split(sizes), strict=True
        ):
            batch, time = frames.shape[:2]
            shape = (time, *f.shape[-2:])
            flat = f.unflatten(0, (batch, time)).permute(0, 1, 3, 4, 2).flatten(1, 3)
            wanted = self.support_positions if support else self.query_positions
            positions = self._positions(shape, flat) if wanted else None
            encoded = self.encoder(flat, positions)
            features.append(ClipFeatures(encoded, c.unflatten(0, (batch, time)), shape))
        return features

    def forward(
        self,
        query_frames: UInt8[Tensor, "batch time height width 3"],
        support_frames: UInt8[Tensor, "batch shots support_time height width 3"] | None,
    ) -> dict[str, Any]:
        """Predict from pixels; see `predict` for the outputs."""
        if support_frames is None or self.fuser is None or support_frames.shape[1] == 0:
            return self.predict(self.encode(query_frames, is_support=False), None)
        batch, shots = support_frames.shape[:2]
        query, support = self.encode_together(
            [query_frames, support_frames.flatten(0, 1)], [False, True]
        )
        tokens = support.tokens.unflatten(0, (batch, shots)).flatten(1, 2)
        return self.predict(query, tokens)

    def predict(
        self, query: ClipFeatures, support_tokens: Float[Tensor, "batch sources dim"] | None
    ) -> dict[str, Any]:
        """Stages 2 and 3 on encoded clips.

        Args:
            query: the encoded query clips.
            support_tokens: E_s of all supports of each query, one after another; none or of
                length 0 for no support.

        Returns:
            `foreground_logits` (B, n, T, 2) with foreground first; `boxes_cxcywh`
            (B, n, T, 4) in [0, 1]; `mask_logits` (B, n, T, H / 4, W / 4); `auxiliary`, the
            first two of every earlier decoder layer; `common_logits` (B, T, h, w), whether
            a token of 𝓕 belongs to what query and supports have in common.
        """
        encoded = query.tokens
        batch, (time, height, width) = len(encoded), query.shape
        if self.fuser is None:
            fused = encoded
        else:
            if support_tokens is None:
                support_tokens = encoded[:, :0]
            fused = self.fuser(encoded, support_tokens)

        codes = sine_positions(time, 1, 1, self.dim)[:, 0, 0].to(fused)
        instance_positions = (self.instance_queries[:, None] + codes).flatten(0, 1)[None]
        common = self.common_head(fused)
        memory = (
            fused + self._positions(query.shape, fused) + common.sigmoid() * self.common_embedding
        )
        bias = self._guide(common.detach().reshape(batch, time, -1))
        layers = []
        for features in self.decoder(instance_positions, memory, bias):
            instances = features.unflatten(1, (self.num_instances, time))
            layers.append(
                {
                    "foreground_logits": self.foreground_head(instances),
                    "boxes_cxcywh": self.box_head(instances).sigmoid(),
                }
            )
        grids = [
            x.unflatten(1, (time, height, width)).permute(0, 1, 4, 2, 3) for x in (encoded, fused)
        ]
        common = common.reshape(batch, time, height, width)
        mask_logits = self.segmenter(instances, grids[0], grids[1], common, query.fine)
        return layers[-1] | {
            "mask_logits": mask_logits,
            "auxiliary": layers[:-1],
            "common_logits": common,
        }


def masks_at(mask_logits: Tensor, height: int, width: int) -> Tensor:
    """Binary masks (…, T, height, width) of mask logits (…, T, h, w), enlarged bilinearly."""
    flat = mask_logits.flatten(0, -3)[:, None]
    large = functional.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)
    return (large[:, 0] > 0).unflatten(0, mask_logits.shape[:-2])
