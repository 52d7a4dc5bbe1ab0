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
from selfshot.models.references import reference_tracks
from selfshot.models.segmenter import InstanceSegmenter
from selfshot.models.transformer import SpatioTemporalDecoder, SpatioTemporalEncoder
from selfshot.ops.positions import sine_positions

OTHER_PLACE, OTHER_FRAME = 6.0, 3.0
"""Most that attention scores lose where nothing common is seen, and in another frame."""

LIKENESS_CENTRE, LIKENESS_SCALE = (0.4, 0.6), (0.2, 0.14)
"""Bring cosines of pretrained tokens, and of stride-4 features, to about unit deviation."""

REFERENCE_REACH = 0.15
"""Deviation, in shares of the frame, of the bell in which an instance query looks first."""


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """A clip after the backbone and the encoder.

    Attributes:
        tokens: E, (B, T·h·w, d), frames one after another.
        directions: the backbone's own tokens at length 1, and beside them its stride-4 features,
            averaged over each token, at length 1; (B, T·h·w, d + c).
        prototype: the mean of each over what the backbone takes for foreground, at length 1,
            (B, d + c).
        fine: stride-4 features (B, T, c, H / 4, W / 4).
        shape: (T, h, w).
    """

    tokens: Tensor
    directions: Tensor
    prototype: Tensor
    fine: Tensor
    shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class SupportFeatures:
    """The supports of a batch of queries.

    Attributes:
        tokens: E_s, (B, k, T·h·w, d).
        prototypes: of each support, (B, k, d + c).
    """

    tokens: Tensor
    prototypes: Tensor


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
        correction = nn.Linear(dim, 4)
        self.box_head = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(True), nn.Linear(dim, dim), nn.ReLU(True), correction
        )
        self.object_head = nn.Linear(dim, 1)
        self.likeness_embedding = nn.Linear(4, dim)
        self.likeness_head = nn.Linear(4, 1)
        self.common_head = nn.Linear(dim, 1)
        nn.init.zeros_(correction.weight)
        nn.init.zeros_(correction.bias)
        self.reference_embedding = nn.Linear(5, dim)
        self.common_embedding = nn.Parameter(torch.randn(dim))
        self.segmenter = InstanceSegmenter(
            dim, heads, backbone.fine_channels, deformable=deformable
        )

    def _positions(self, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        return sine_positions(*shape, self.dim).flatten(0, 2)[None].to(like)

    def _likeness(
        self, query: ClipFeatures, support: SupportFeatures
    ) -> Float[Tensor, "batch pixels 4"]:
        """How like each query pixel is to the supports' prototypes: mean and best cosine.

        Of tokens, which know the seen classes, and of stride-4 features, which know parts and
        edges: on unseen classes each sees what the other misses. The mean is a consensus: what
        one wrong support shows is outvoted by the others.
        """
        sizes = [self.dim, self.backbone.fine_channels]
        likeness = []
        for directions, prototypes, centre, scale in zip(
            query.directions.split(sizes, -1),
            support.prototypes.split(sizes, -1),
            LIKENESS_CENTRE,
            LIKENESS_SCALE,
            strict=True,
        ):
            cosines = (directions @ prototypes.transpose(1, 2) - centre) / scale
            likeness += [cosines.mean(-1), cosines.amax(-1)]
        return torch.stack(likeness, -1)

    def _guide(
        self,
        common: Float[Tensor, "batch time height width"],
        centres: Float[Tensor, "batch num_instances time 2"],
    ) -> Tensor:
        """What the decoder's cross-attention starts from, (B, 1, n·T, T·h·w).

        Instance query (i, t) looks where the common class seems to be (its log-probability), at
        its own frame rather than at others, and near its reference track. Attention that starts
        uniform takes thousands of steps to find an object, and queries that start alike take as
        long to agree on who takes which: all get every object's gradient in turn.
        """
        batch, time, height, width = common.shape
        places = functional.logsigmoid(common).clamp_min(-OTHER_PLACE).flatten(2)
        other = OTHER_FRAME * (1 - torch.eye(time, device=common.device))
        y = (torch.arange(height, device=common.device) + 0.5) / height
        x = (torch.arange(width, device=common.device) + 0.5) / width
        across = (centres[..., 0, None] - x) ** 2
        down = (centres[..., 1, None] - y) ** 2
        away = (down[..., :, None] + across[..., None, :]).flatten(3)
        far = (away / (2 * REFERENCE_REACH**2)).clamp_max(OTHER_PLACE)
        bias = places[:, None, None] - other[None, None, :, :, None] - far[:, :, :, None]
        return bias.reshape(batch, 1, self.num_instances * time, -1)

    def _reference_boxes(
        self, bias: Tensor, shape: tuple[int, int, int]
    ) -> Float[Tensor, "batch num_instances time 4"]:
        """Where the guide alone would put the boxes: centre and spread of its attention.

        A box head that starts there learns corrections. One that must read coordinates from
        attended features learns slowly: in a mean of pixels, content varies ten times as much
        as positions do.
        """
        time, height, width = shape
        attention = bias.softmax(-1).unflatten(-1, (time, height, width)).sum(3)
        attention = attention.squeeze(1).unflatten(1, (self.num_instances, time))
        moments = []
        for axis, length in ((-1, width), (-2, height)):
            places = (torch.arange(length, device=bias.device) + 0.5) / length
            other = -2 if axis == -1 else -1
            share = attention.sum(other)
            mean = (share * places).sum(-1)
            deviation = (share * (places - mean[..., None]) ** 2).sum(-1).sqrt()
            # Twice the root of three deviations is the length of a uniform bar.
            moments.append((mean, 2 * 3**0.5 * deviation))
        (x, w), (y, h) = moments
        return torch.stack([x, y, w, h], -1)

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
            fine_clips = c.unflatten(0, (batch, time))
            averaged = functional.adaptive_avg_pool2d(c, shape[1:]).unflatten(0, (batch, time))
            parts = averaged.permute(0, 1, 3, 4, 2).flatten(1, 3)
            objects = self.object_head(flat).sigmoid()
            directions = [functional.normalize(x, dim=-1) for x in (flat, parts)]
            prototypes = [functional.normalize((x * objects).sum(1), dim=-1) for x in directions]
            features.append(
                ClipFeatures(
                    encoded, torch.cat(directions, -1), torch.cat(prototypes, -1), fine_clips, shape
                )
            )
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
        tokens = support.tokens.unflatten(0, (batch, shots))
        return self.predict(
            query, SupportFeatures(tokens, support.prototype.unflatten(0, (batch, shots)))
        )

    def predict(self, query: ClipFeatures, support: SupportFeatures | None) -> dict[str, Any]:
        """Stages 2 and 3 on encoded clips.

        Args:
            query: the encoded query clips.
            support: of each query's supports; none for no support.

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
            common = self.common_head(fused)
        else:
            if support is None:
                likeness = encoded.new_zeros(*encoded.shape[:2], 4)
                sources, num_supports = encoded[:, :0], 1
            else:
                likeness = self._likeness(query, support)
                sources, num_supports = support.tokens.flatten(1, 2), support.tokens.shape[1]
            told = encoded + self.likeness_embedding(likeness)
            fused = self.fuser(told, sources, num_supports=num_supports)
            common = self.common_head(fused) + self.likeness_head(likeness)

        positions = self._positions(query.shape, fused)
        common_map = common.detach().reshape(batch, time, height, width)
        centres, mass = reference_tracks(common_map.sigmoid(), self.num_instances)
        bias = self._guide(common_map, centres)
        reference = self._reference_boxes(bias, query.shape)
        evidence = torch.cat([reference, mass[..., None].log1p()], -1)
        codes = sine_positions(time, 1, 1, self.dim)[:, 0, 0].to(fused)
        instance_positions = (
            self.instance_queries[:, None] + codes + self.reference_embedding(evidence)
        ).flatten(1, 2)
        memory = fused + positions + common.sigmoid() * self.common_embedding
        layers = []
        start = reference.clamp(0.02, 0.98).logit()
        for features in self.decoder(instance_positions, memory, bias):
            instances = features.unflatten(1, (self.num_instances, time))
            layers.append(
                {
                    "foreground_logits": self.foreground_head(instances),
                    "boxes_cxcywh": (start + self.box_head(instances)).sigmoid(),
                }
            )
        grids = [
            x.unflatten(1, (time, height, width)).permute(0, 1, 4, 2, 3)
            for x in (encoded, fused, fused + positions)
        ]
        common = common.reshape(batch, time, height, width)
        mask_logits = self.segmenter(
            instances, layers[-1]["boxes_cxcywh"].detach(), *grids, common, query.fine
        )
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
