"""Eq. 8: the one-to-one matching of predicted and annotated instance sequences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from selfshot.ops.boxes import cxcywh_to_xyxy, giou


def match_tracks(
    foreground_logits: Float[Tensor, "instances time 2"],
    boxes_cxcywh: Float[Tensor, "instances time 4"],
    target_boxes: Float[Tensor, "tracks time 4"],
    target_present: Bool[Tensor, "tracks time"],
    weights: Mapping[str, float],
    valid_frames: Bool[Tensor, " time"] | None = None,
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Match the sequences of one clip; see `match_batch` for the costs.

    Returns:
        The predictions' and the targets' indices, in the order of the targets. With more
        tracks than instances the tracks that cost most stay unmatched.
    """
    num_tracks, num_frames = target_present.shape
    if valid_frames is None:
        valid_frames = target_present.new_ones(num_frames)
    matched = match_batch(
        foreground_logits[None, None],
        boxes_cxcywh[None, None],
        target_boxes,
        target_present,
        torch.zeros(num_tracks, dtype=torch.long, device=target_boxes.device),
        valid_frames[None],
        weights,
    )[0]
    target_index = (matched >= 0).nonzero()[:, 0]
    return matched[target_index], target_index


@torch.no_grad()
def match_batch(
    foreground_logits: Float[Tensor, "layers batch instances time 2"],
    boxes_cxcywh: Float[Tensor, "layers batch instances time 4"],
    target_boxes: Float[Tensor, "tracks time 4"],
    target_present: Bool[Tensor, "tracks time"],
    clip_of_track: Int[Tensor, " tracks"],
    valid_frames: Bool[Tensor, "batch time"],
    weights: Mapping[str, float],
) -> Int[Tensor, "layers tracks"]:
    """The instance that each annotated track of a batch is matched to, in each decoder layer.

    A pair costs minus the instance's mean foreground probability over the valid frames, and the
    weighted L1 distance and 1 - GIoU, each a mean over the valid frames in which the track is
    present (none: 0). The tracks of all clips stand one after another, those of a clip together.

    Args:
        foreground_logits: of each decoder layer; index 0 is foreground, 1 no object.
        boxes_cxcywh: of each decoder layer, in [0, 1].
        target_boxes: cxcywh in [0, 1]; anything where the track is absent.
        target_present: where the track is seen.
        clip_of_track: the clip of each track, in ascending order.
        valid_frames: False where a frame is padding.
        weights: `foreground` of the probability, `l1` of the distance, `giou` of 1 - GIoU.

    Returns:
        The index of an instance of the track's clip, or -1 for the costliest tracks of a clip
        with more tracks than instances.

    Raises:
        FloatingPointError: a cost is not finite, because the predictions are not.
    """
    num_layers, num_clips = foreground_logits.shape[:2]
    matched = np.full((num_layers, len(clip_of_track)), -1, dtype=np.int64)
    if not len(clip_of_track):
        return torch.from_numpy(matched).to(target_boxes.device)

    valid = valid_frames.to(boxes_cxcywh.dtype)
    probability = foreground_logits.softmax(dim=-1)[..., 0]
    score = (probability * valid[:, None]).sum(-1) / valid.sum(-1)[:, None].clamp(min=1)

    predicted = boxes_cxcywh[:, clip_of_track]
    target = target_boxes[:, None]
    distance = (predicted - target).abs().sum(-1)
    overlap = giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target).expand_as(predicted))
    per_frame = weights["l1"] * distance + weights["giou"] * (1 - overlap)
    seen = target_present * valid[clip_of_track]
    share = seen / seen.sum(-1, keepdim=True).clamp(min=1)
    # where, not a product: what an absent frame holds may be anything, even not a number.
    box_cost = torch.where(seen[:, None] > 0, per_frame, 0.0).mul(share[:, None]).sum(-1)
    cost = (box_cost - weights["foreground"] * score[:, clip_of_track]).double().cpu().numpy()
    if not np.isfinite(cost).all():
        raise FloatingPointError(
            "the matching cost is not finite: the predicted logits or boxes hold NaN or infinity; "
            "lower the learning rate or clip the gradient"
        )
    ends = torch.bincount(clip_of_track, minlength=num_clips).cumsum(0).tolist()
    for layer in range(num_layers):
        first = 0
        for end in ends:
            if end > first:
                tracks, instances = linear_sum_assignment(cost[layer, first:end])
                matched[layer, first + tracks] = instances
            first = end
    return torch.from_numpy(matched).to(target_boxes.device)
