"""Siamese Mask R-CNN [48], frame by frame, for few supports that are videos (B.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from selfshot.models.backbone import Backbone
from selfshot.models.checkpointing import call
from selfshot.models.features import ClipFeatures, SupportFeatures
from selfshot.models.vis_model import VisModel
from selfshot.ops.boxes import xyxy_to_cxcywh
from selfshot.ops.chains import ABSENT, chain_detections

LEVELS = ("fine", "tokens")
RATIOS = (0.5, 1.0, 2.0)
MIN_SCORE, MAX_OVERLAP = 0.05, 0.5
"""Of a detection, and IoU of two of a frame above which the weaker one is dropped."""
MIN_SIMILARITY = 0.5
"""Of detections of one track, see `ops.chains.similarity`."""
SURE = 9.0
"""Greatest logit of a mask's pixel or of a score, and of what was not detected the least."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the heads.

    Attributes:
        channels: of the pyramid and the mask head.
        hidden: channels of a detection's feature.
        mask_layers: 3×3 convolutions of the mask head.
        box_size: a region is read at so many places a side for its box.
        mask_size: and at so many for its mask, which is twice as fine.
        anchor_scales: sides of the anchors, in strides of their level.
        proposals: regions of a frame that go on to the heads.
        samples: of them that are learned from.
    """

    channels: int
    hidden: int
    mask_layers: int
    box_size: int
    mask_size: int
    anchor_scales: tuple[float, ...]
    proposals: int
    samples: int


SMALL = Size(64, 128, 2, 5, 8, (2.0, 4.0, 7.0), proposals=50, samples=32)
"""For the quickstart's backbone."""

USUAL = Size(256, 1024, 4, 7, 14, (2.0, 4.0, 8.0, 16.0), proposals=300, samples=128)
"""As usual for Mask R-CNN, for a backbone of the paper's size."""


class Matching(nn.Module):
    """Query features told their distance to the supports: [f, |f - prototype|] by a 1×1 layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(2 * channels, channels, 1)

    def forward(
        self,
        features: Float[Tensor, "frames channels height width"],
        prototypes: Float[Tensor, "frames channels"],
    ) -> Float[Tensor, "frames channels height width"]:
        """Matched features of each frame."""
        apart = (features - prototypes[..., None, None]).abs()
        return functional.relu(self.reduce(torch.cat([features, apart], 1)))


class SiameseMaskRcnn(VisModel):
    """Mask R-CNN on features that were matched with the mean support feature.

    Query frames and supports go through one backbone and one pyramid. The prototype of a level
    is the mean over the supports of their mean feature, each pixel weighted by predicted
    foreground; region proposals, boxes and masks are then read off the matched features of each
    frame by itself, as torchvision has them, with one class: what is in the supports. Detections
    of consecutive frames are chained to tracks by their boxes and features.
    """

    object_head: nn.Linear

    def __init__(
        self,
        backbone: Backbone,
        num_instances: int,
        *,
        size: Size | None = None,
        checkpointing: bool = False,
    ) -> None:
        """Build it.

        Args:
            backbone: frames to tokens and finer features, the two levels of the pyramid.
            num_instances: detections of a frame, and tracks of a clip, at most.
            size: of the heads; none: `USUAL` for tokens of 256 channels or more, else `SMALL`.
            checkpointing: compute the backbone's activations again.
        """
        super().__init__()
        self.backbone, self.num_instances = backbone, num_instances
        if size is None:
            size = USUAL if backbone.dim >= 256 else SMALL
        channels = self.channels = size.channels
        self.hidden, self.checkpointing = size.hidden, checkpointing
        self.object_head = nn.Linear(backbone.dim, 1)
        self.pyramid = FeaturePyramidNetwork([backbone.fine_channels, backbone.dim], channels)
        self.matching = nn.ModuleDict({level: Matching(channels) for level in LEVELS})
        strides = (backbone.fine_stride, backbone.token_stride)
        anchors = AnchorGenerator(
            tuple(tuple(round(k * stride) for k in size.anchor_scales) for stride in strides),
            (RATIOS,) * len(strides),
        )
        self.proposer = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=size.samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 4 * size.proposals, "testing": 4 * size.proposals},
            post_nms_top_n={"training": size.proposals, "testing": size.proposals},
            nms_thresh=0.7,
        )
        self.heads = RoIHeads(
            MultiScaleRoIAlign(LEVELS, size.box_size, 2),
            TwoMLPHead(channels * size.box_size**2, size.hidden),
            FastRCNNPredictor(size.hidden, 2),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=size.samples,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=MIN_SCORE,
            nms_thresh=MAX_OVERLAP,
            detections_per_img=num_instances,
            mask_roi_pool=MultiScaleRoIAlign(LEVELS, size.mask_size, 2),
            mask_head=MaskRCNNHeads(channels, [channels] * size.mask_layers, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, 2),
        )

    @property
    def mask_stride(self) -> int:
        """Masks are compared at the frames' own pixels, which is half of this."""
        return 2

    def encode(
        self, frames: UInt8[Tensor, "batch time height width 3"], *, is_support: bool
    ) -> ClipFeatures:
        """The pyramid of each frame; of supports only their prototypes are kept.

        Its two levels are in `fine` and in `tokens`.
        """
        frames = frames.to(self.device)
        maps, objects = self._pyramid(frames)
        batch, time = frames.shape[:2]
        every = torch.ones(batch, time, dtype=torch.bool, device=frames.device)
        shape = (time, *maps["tokens"].shape[-2:])
        if is_support:
            kept = [maps["tokens"].new_empty(batch, 0, self.channels)]
            kept.append(maps["tokens"].new_empty(batch, 0))
        else:
            levels = [maps[level].unflatten(0, (batch, time)) for level in LEVELS]
            kept = [levels[1].permute(0, 1, 3, 4, 2).flatten(1, 3), levels[0]]
        return ClipFeatures(
            tokens=kept[0],
            directions=None,
            prototype=self._prototypes(maps, objects, every),
            fine=kept[1],
            shape=shape,
            frame_size=(frames.shape[2], frames.shape[3]),
        )

    def _pyramid(
        self, frames: UInt8[Tensor, "batch time height width 3"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "frames 1 height width"]]:
        """Both levels of all frames, and how much of each token is foreground."""
        images = self.backbone.normalise(frames).flatten(0, 1)
        tokens, fine = call(self.backbone, images, checkpointing=self.checkpointing)
        objects = self.object_head(tokens.movedim(1, -1)).sigmoid().movedim(-1, 1)
        maps: dict[str, Tensor] = self.pyramid(dict(zip(LEVELS, (fine, tokens), strict=True)))
        return maps, objects

    def _prototypes(
        self,
        maps: dict[str, Tensor],
        objects: Float[Tensor, "frames 1 height width"],
        valid_frames: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch two_channels"]:
        """The mean feature of each clip, of one level beside that of the other."""
        found = []
        for level in LEVELS:
            weight = functional.interpolate(objects, size=maps[level].shape[-2:], mode="nearest")
            weight = weight * valid_frames.flatten()[:, None, None, None]
            sums = (maps[level] * weight).sum((2, 3)).unflatten(0, valid_frames.shape).sum(1)
            mass = weight.sum((1, 2, 3)).unflatten(0, valid_frames.shape).sum(1, keepdim=True)
            found.append(sums / mass.clamp_min(1e-6))
        return torch.cat(found, -1)

    def _match(
        self, maps: dict[str, Tensor], prototypes: Float[Tensor, "frames two_channels"]
    ) -> dict[str, Tensor]:
        parts = dict(zip(LEVELS, prototypes.split(self.channels, -1), strict=True))
        return {level: self.matching[level](maps[level], parts[level]) for level in LEVELS}

    def losses(
        self,
        query_frames: UInt8[Tensor, "batch time height width 3"],
        support_frames: UInt8[Tensor, "batch shots support_time height width 3"],
        support_lengths: Tensor,
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Float[Tensor, ""]]:
        """The five losses of torchvision, over the frames of the queries that are no padding.

        Args:
            query_frames: of the queries.
            support_frames: of their supports.
            support_lengths: frames of them that are no padding, (B, k).
            targets: of `episode_batch`, with masks of one cell a pixel.
        """
        batch, shots = support_frames.shape[:2]
        height, width = query_frames.shape[2:4]
        maps, _ = self._pyramid(query_frames)
        prototypes = query_frames.new_zeros(batch, 2 * self.channels, dtype=torch.float32)
        if shots:
            places = torch.arange(support_frames.shape[2], device=support_frames.device)
            valid = places < support_lengths.flatten()[:, None]
            supports = self._prototypes(*self._pyramid(support_frames.flatten(0, 1)), valid)
            prototypes = supports.unflatten(0, (batch, shots)).mean(1)
        valid = torch.stack([target["valid_frames"] for target in targets]).flatten()
        each = prototypes.repeat_interleave(query_frames.shape[1], 0)[valid]
        matched = self._match({level: maps[level][valid] for level in LEVELS}, each)
        truth = [
            frame_targets(target, t, height, width)
            for target in targets
            for t in target["valid_frames"].nonzero()[:, 0].tolist()
        ]
        images = _blank_images(len(truth), height, width, query_frames)
        regions, of_regions = self.proposer(images, matched, truth)
        _, of_heads = self.heads(matched, regions, images.image_sizes, truth)
        return of_regions | of_heads

    def predict(self, query: ClipFeatures, support: SupportFeatures | None) -> dict[str, Any]:
        """Detections of each frame, chained; see `VisModel`. Without supports they are zeros."""
        assert query.frame_size is not None
        time, rows, columns = query.shape
        batch = len(query.tokens)
        maps = {
            "fine": query.fine.flatten(0, 1),
            "tokens": query.tokens.unflatten(1, (time, rows, columns))
            .permute(0, 1, 4, 2, 3)
            .flatten(0, 1),
        }
        prototypes = query.tokens.new_zeros(batch, 2 * self.channels)
        if support is not None:
            assert support.prototypes is not None
            prototypes = support.prototypes.mean(1)
        matched = self._match(maps, prototypes.repeat_interleave(time, 0))
        images = _blank_images(batch * time, *query.frame_size, query.tokens)
        regions, _ = self.proposer(images, matched)
        found, _ = self.heads(matched, regions, images.image_sizes)
        boxes = [frame["boxes"] for frame in found]
        pooled = self.heads.box_head(self.heads.box_roi_pool(matched, boxes, images.image_sizes))
        features = list(pooled.split([len(one) for one in boxes]))
        clips = [
            self._tracks(
                found[b * time : (b + 1) * time],
                features[b * time : (b + 1) * time],
                query.frame_size,
            )
            for b in range(batch)
        ]
        return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}

    def _tracks(
        self,
        found: Sequence[dict[str, Tensor]],
        features: Sequence[Float[Tensor, "_ hidden"]],
        frame_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """The tracks of one clip; where one is absent it has no pixel and no probability."""
        height, width = frame_size
        like, count, time = features[0], self.num_instances, len(found)
        chained = chain_detections(
            [frame["boxes"] for frame in found],
            [frame["scores"] for frame in found],
            features,
            most=count,
            min_similarity=MIN_SIMILARITY,
        )
        foreground = like.new_full((count, time), -SURE)
        boxes = like.new_zeros(count, time, 4)
        instances = like.new_zeros(count, time, self.hidden)
        masks = like.new_full((count, time, height, width), -SURE)
        size = like.new_tensor([width, height, width, height])
        for t, frame in enumerate(found):
            places = torch.as_tensor(chained[:, t], device=like.device)
            there = places != ABSENT
            places = places[there]
            corners = frame["boxes"][places]
            pasted = paste_masks_in_image(frame["masks"][places], corners, frame_size)
            foreground[there, t] = _logits(frame["scores"][places])
            boxes[there, t] = xyxy_to_cxcywh(corners / size)
            instances[there, t] = features[t][places]
            masks[there, t] = _logits(pasted[:, 0])
        return {
            "foreground_logits": torch.stack([foreground, torch.zeros_like(foreground)], -1),
            "boxes_cxcywh": boxes,
            "mask_logits": masks,
            "instances": instances,
        }


def frame_targets(
    target: dict[str, Tensor], t: int, height: int, width: int
) -> dict[str, Tensor]:
    """What torchvision wants to know of one frame: boxes in pixels, labels and masks."""
    seen = target["present"][:, t]
    centre, size = target["boxes_cxcywh"][seen, t].split(2, -1)
    corners = torch.cat([centre - size / 2, centre + size / 2], -1)
    boxes = corners * corners.new_tensor([width, height, width, height])
    # A box of less than a pixel has no place to learn from.
    seen_masks = target["masks"][seen, t]
    wide = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(-1)
    return {
        "boxes": boxes[wide],
        "labels": torch.ones(int(wide.sum()), dtype=torch.int64, device=boxes.device),
        "masks": seen_masks[wide],
    }


def _blank_images(count: int, height: int, width: int, like: Tensor) -> ImageList:
    """Sizes of the frames, in the form that torchvision asks for; no pixel is read."""
    blank = torch.empty(1, device=like.device).expand(count, 3, height, width)
    return ImageList(blank, [(height, width)] * count)


def _logits(probability: Tensor) -> Tensor:
    return probability.clamp(1e-6, 1 - 1e-6).logit().clamp(-SURE, SURE)
