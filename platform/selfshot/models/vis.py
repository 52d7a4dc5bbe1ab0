"""The self-shot VIS transformer of section 5, assembled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from selfshot.config.vis import VisConfig
from selfshot.models.attention_prior import attention_prior, prior_boxes, reference_tracks
from selfshot.models.backbone import Backbone
from selfshot.models.checkpointing import call
from selfshot.models.features import (
    ClipFeatures,
    SupportFeatures,
    groups_of,
    in_order,
    rows_of,
    stack_supports,
    with_padding,
)
from selfshot.models.fuser import QuerySupportFuser
from selfshot.models.segmenter import InstanceSegmenter
from selfshot.models.transformer import SpatioTemporalDecoder, SpatioTemporalEncoder
from selfshot.models.vis_model import VisModel
from selfshot.ops.positions import sine_positions

FRAMES_AT_ONCE = 16
"""Frames whose activations are computed again together, with gradient checkpointing."""

SIMILARITY_CENTRE, SIMILARITY_SCALE = (0.4, 0.6), (0.2, 0.14)
"""Bring cosines of pretrained tokens, and of finer features, to about unit deviation."""


class SelfShotVIS(VisModel):
    """Backbone, spatio-temporal encoder, query-support fuser, decoder, heads and segmenter."""

    fuser_class: Callable[..., nn.Module] = QuerySupportFuser

    def __init__(
        self,
        backbone: Backbone,
        section: VisConfig,
        *,
        fuser: bool = True,
        clip_frames: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        """Assemble the model.

        Args:
            backbone: frames to tokens of d channels; d is read from it.
            section: its architecture.
            fuser: False removes stage 2, and with it every use of supports (Table 3).
            clip_frames: T, frames of a query clip at most; only without `variants.queries`.
            checkpointing: compute activations again instead of keeping them for the gradient.
        """
        super().__init__()
        self.dim, self.num_instances = backbone.dim, section.num_instances
        self.section, self.variants = section, section.variants
        self.checkpointing = checkpointing
        self.backbone = backbone
        dim, own = backbone.dim, section.variants
        width = (dim, section.heads, section.ffn_dim)
        self.encoder = SpatioTemporalEncoder(*width, section.encoder_layers, section.dropout)
        self.fuser = (
            self.fuser_class(*width, section.fuser_layers, section.dropout, variant=own.fuser)
            if fuser
            else None
        )
        self.decoder = SpatioTemporalDecoder(*width, section.decoder_layers, section.dropout)
        for stage in (self.encoder, self.fuser, self.decoder):
            if stage is not None:
                stage.checkpointing = checkpointing  # type: ignore[assignment]
        if own.queries:
            self.instance_queries = nn.Parameter(torch.randn(section.num_instances, dim))
        else:
            assert clip_frames is not None, "n·T instance queries need T"
            queries = torch.randn(section.num_instances, clip_frames, dim)
            self.instance_queries = nn.Parameter(queries)
        self.foreground_head = nn.Linear(dim, 2)
        last = nn.Linear(dim, 4)
        self.box_head = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(True), nn.Linear(dim, dim), nn.ReLU(True), last
        )
        prior = own.attention_prior
        self.object_head = nn.Linear(dim, 1) if own.fuser else None
        self.similarity_embedding = nn.Linear(4, dim) if own.fuser else None
        self.similarity_head = nn.Linear(4, 1) if own.fuser and prior else None
        self.common_head = nn.Linear(dim, 1) if prior else None
        if prior:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.reference_embedding = nn.Linear(5, dim) if prior else None
        self.common_embedding = nn.Parameter(torch.randn(dim)) if prior else None
        self.segmenter = InstanceSegmenter(
            dim, section.heads, backbone.fine_channels,
            deformable=section.deformable, common=prior, variant=own.segmenter,
        )  # fmt: skip

    @property
    def mask_stride(self) -> int:
        """Pixels of a frame to a cell of the mask logits."""
        return (
            self.backbone.fine_stride if self.variants.segmenter else self.backbone.token_stride
        )

    @property
    def reads_supports(self) -> bool:
        """Without a fuser nothing is read of them."""
        return self.fuser is not None

    def _positions(self, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        return sine_positions(*shape, self.dim).flatten(0, 2)[None].to(like)

    def _similarity(
        self, query: ClipFeatures, support: SupportFeatures
    ) -> Float[Tensor, "batch pixels 4"]:
        """Cosines of each query pixel with the supports' prototypes: the mean and the best.

        Of tokens, which know the seen classes, and of finer features, which know parts and
        edges: on unseen classes each sees what the other misses. The mean is a consensus: what
        one wrong support shows is outvoted by the others.
        """
        assert query.directions is not None and support.prototypes is not None
        sizes = [self.dim, self.backbone.fine_channels]
        similarity = []
        for directions, prototypes, centre, scale in zip(
            query.directions.split(sizes, -1),
            support.prototypes.split(sizes, -1),
            SIMILARITY_CENTRE,
            SIMILARITY_SCALE,
            strict=True,
        ):
            cosines = (directions @ prototypes.transpose(1, 2) - centre) / scale
            similarity += [cosines.mean(-1), cosines.amax(-1)]
        return torch.stack(similarity, -1)

    def encode(
        self, frames: UInt8[Tensor, "batch time height width 3"], *, is_support: bool
    ) -> ClipFeatures:
        """Backbone and stage 1 on clips, for the query or for the support branch."""
        return self.encode_together([frames], [is_support])[0]

    def encode_together(self, clips: list[Tensor], is_support: list[bool]) -> list[ClipFeatures]:
        """`encode` of several batches of clips of one frame size with one backbone call."""
        clips = [frames.to(self.device) for frames in clips]
        images = torch.cat([self.backbone.normalise(frames).flatten(0, 1) for frames in clips])
        tokens, fine = self._see(images)
        sizes = [frames.shape[0] * frames.shape[1] for frames in clips]
        return [
            self._encode_clip(frames.shape[0], f, c, support)
            for frames, support, f, c in zip(
                clips, is_support, tokens.split(sizes), fine.split(sizes), strict=True
            )
        ]

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone on normalised frames; with checkpointing on some of them at a time.

        What it computes again is then of so many frames. Norms that learn want all at once.
        """
        if not (self.checkpointing and self.backbone.freeze_norms):
            return call(self.backbone, images, checkpointing=self.checkpointing)
        parts = [
            call(self.backbone, part, checkpointing=True) for part in images.split(FRAMES_AT_ONCE)
        ]
        tokens, fine = (torch.cat(maps) for maps in zip(*parts, strict=True))
        return tokens, fine

    def _encode_clip(
        self, batch: int, tokens: Tensor, fine: Tensor, is_support: bool
    ) -> ClipFeatures:
        """Stage 1 on the backbone's output for the frames of `batch` clips."""
        time = len(tokens) // batch
        shape = (time, *tokens.shape[-2:])
        flat = tokens.unflatten(0, (batch, time)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        wanted = self.section.support_positions if is_support else self.section.query_positions
        positions = self._positions(shape, flat) if wanted else None
        encoded = self.encoder(flat, positions)
        # Only a query's are read, at a stride that makes them large; an empty copy frees them.
        read = self.variants.segmenter and not is_support
        fine_clips = fine.unflatten(0, (batch, time)) if read else fine.new_empty(batch, 0)
        if self.object_head is None:
            return ClipFeatures(encoded, None, None, fine_clips, shape)
        averaged = functional.adaptive_avg_pool2d(fine, shape[1:]).unflatten(0, (batch, time))
        parts = averaged.permute(0, 1, 3, 4, 2).flatten(1, 3)
        objects = self.object_head(flat).sigmoid()
        directions = [functional.normalize(x, dim=-1) for x in (flat, parts)]
        prototypes = [functional.normalize((x * objects).sum(1), dim=-1) for x in directions]
        return ClipFeatures(
            encoded, torch.cat(directions, -1), torch.cat(prototypes, -1), fine_clips, shape
        )

    def forward(
        self,
        query_frames: UInt8[Tensor, "batch time height width 3"],
        support_frames: UInt8[Tensor, "batch shots support_time height width 3"] | None,
        query_lengths: Sequence[int] | None = None,
        support_lengths: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """Predict from pixels.

        Clips of one length are computed together, so that padding is never read: a padded clip
        gives what it gives alone, and zeros in its padding frames.

        Args:
            query_frames: of the queries, the shorter ones padded at their ends.
            support_frames: of their supports, likewise.
            query_lengths: frames of each query that are no padding; none: all.
            support_lengths: frames of each support that are no padding; none: all.

        Returns:
            see `predict`.
        """
        batch, time = query_frames.shape[:2]
        if support_frames is None or self.fuser is None:
            support_frames = query_frames.new_empty(batch, 0, *query_frames.shape[1:])
        shots = support_frames.shape[1]
        of_query = groups_of(query_lengths or [time] * batch)
        flat = support_frames.flatten(0, 1)
        lengths = (
            [support_frames.shape[2]] * len(flat)
            if support_lengths is None or not shots
            else [length for row in support_lengths for length in row]
        )
        of_support = groups_of(lengths)
        clips = [rows_of(query_frames, rows)[:, :length] for length, rows in of_query.items()]
        clips += [rows_of(flat, rows)[:, :length] for length, rows in of_support.items()]
        is_support = [False] * len(of_query) + [True] * len(of_support)
        encoded = self.encode_together(clips, is_support)
        queries, supports = encoded[: len(of_query)], encoded[len(of_query) :]
        if len(of_query) == 1 and len(of_support) <= 1:
            whole = supports[0].as_supports(batch) if supports else None
            return with_padding(self.predict(queries[0], whole), time)
        single: dict[int, ClipFeatures] = {}
        for rows, features in zip(of_support.values(), supports, strict=True):
            single |= dict(zip(rows, features.clips(), strict=True))
        parts = []
        for rows, features in zip(of_query.values(), queries, strict=True):
            own = [[single[row * shots + shot] for shot in range(shots)] for row in rows]
            helped = self.predict(features, stack_supports(own) if shots else None)
            parts.append(with_padding(helped, time))
        order = [row for rows in of_query.values() for row in rows]
        places = torch.tensor(order, device=query_frames.device).argsort()
        return in_order(parts, places)

    def fuse(
        self, query: ClipFeatures, support: SupportFeatures | None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens 1"] | None]:
        """Stage 2: 𝓕, and the logits of the common class."""
        encoded = query.tokens
        similarity = None
        if self.fuser is None:
            fused = encoded
        else:
            told = encoded
            if self.similarity_embedding is not None:
                similarity = (
                    encoded.new_zeros(*encoded.shape[:2], 4)
                    if support is None
                    else self._similarity(query, support)
                )
                told = encoded + self.similarity_embedding(similarity)
            sources, count = encoded[:, :0], 1
            if support is not None:
                sources, count = support.tokens.flatten(1, 2), support.tokens.shape[1]
            padding = None if support is None else support.padding_mask
            fused = self.fuser(
                told,
                sources,
                support_padding_mask=None if padding is None else padding.flatten(1),
                num_supports=count,
            )
        if self.common_head is None:
            return fused, None
        common = self.common_head(fused)
        if similarity is not None and self.similarity_head is not None:
            common = common + self.similarity_head(similarity)
        return fused, common

    def predict(self, query: ClipFeatures, support: SupportFeatures | None) -> dict[str, Any]:
        """Stages 2 and 3 on encoded clips.

        Args:
            query: the encoded query clips.
            support: of each query's supports; none for no support.

        Returns:
            `foreground_logits` (B, n, T, 2) with foreground first; `boxes_cxcywh`
            (B, n, T, 4) in [0, 1]; `mask_logits` (B, n, T, H / s, W / s) at `mask_stride`;
            `auxiliary`, the first two of every earlier decoder layer; `instances` 𝓓
            (B, n, T, d); and with the common class `common_logits` (B, T, h, w), whether a token
            of 𝓕 belongs to what query and supports have in common.
        """
        fused, common = self.fuse(query, support)
        positions = self._positions(query.shape, fused)
        common_map = None
        if common is not None:
            common_map = common.reshape(len(fused), *query.shape)
        queries, bias, reference = self._instance_queries(query.shape, common_map, fused)
        memory, values = fused + positions, None if self.variants.queries else fused
        if common is not None and self.common_embedding is not None:
            shown = common.sigmoid() * self.common_embedding
            memory = memory + shown
            values = None if values is None else values + shown
        decoded = self.decoder(
            queries, memory, bias, values, from_zeros=not self.variants.queries
        )
        layers = []
        for features in decoded:
            instances = features.unflatten(1, (self.num_instances, query.shape[0]))
            boxes = self.box_head(instances)
            layers.append(
                {
                    "foreground_logits": self.foreground_head(instances),
                    "boxes_cxcywh": (boxes if reference is None else reference + boxes).sigmoid(),
                }
            )
        pixels = self.segmenter_pixels(fused, query.shape)
        grids = [
            x.unflatten(1, query.shape).permute(0, 1, 4, 2, 3)
            for x in (query.tokens, fused, pixels)
        ]
        mask_logits = call(
            self.segmenter,
            instances, layers[-1]["boxes_cxcywh"].detach(), *grids, common_map, query.fine,
            checkpointing=self.checkpointing,
        )  # fmt: skip
        outputs = layers[-1] | {
            "mask_logits": mask_logits,
            "auxiliary": layers[:-1],
            "instances": instances,
        }
        return outputs if common_map is None else outputs | {"common_logits": common_map}

    def segmenter_pixels(self, tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Tokens as the segmenter's attention maps are taken from them."""
        return tokens + self._positions(shape, tokens) if self.variants.queries else tokens

    def _instance_queries(
        self, shape: tuple[int, int, int], common_map: Tensor | None, like: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The n·T instance queries, their attention prior, and the logits of its boxes."""
        time = shape[0]
        if self.variants.queries:
            codes = sine_positions(time, 1, 1, self.dim)[:, 0, 0].to(like)
            queries = self.instance_queries[:, None] + codes
        else:
            assert time <= self.instance_queries.shape[1], "a clip longer than T"
            queries = self.instance_queries[:, :time]
        if self.reference_embedding is None:
            return queries.flatten(0, 1).expand(len(like), -1, -1), None, None
        assert common_map is not None, "the prior reads the map of the common class"
        given = common_map.detach()
        centres, mass = reference_tracks(given.sigmoid(), self.num_instances)
        bias = attention_prior(given, centres)
        boxes = prior_boxes(bias, shape)
        evidence = torch.cat([boxes, mass[..., None].log1p()], -1)
        queries = (queries + self.reference_embedding(evidence)).flatten(1, 2)
        return queries, bias, boxes.clamp(0.02, 0.98).logit()


def masks_at(mask_logits: Tensor, height: int, width: int) -> Tensor:
    """Binary masks (…, T, height, width) of mask logits (…, T, h, w), enlarged bilinearly."""
    flat = mask_logits.flatten(0, -3)[:, None]
    large = functional.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)
    return (large[:, 0] > 0).unflatten(0, mask_logits.shape[:-2])
