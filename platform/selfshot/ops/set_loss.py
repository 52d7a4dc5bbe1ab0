"""Eq. 5, 9 and 10: the loss of a set of instance sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from selfshot.ops.boxes import cxcywh_to_xyxy, giou
from selfshot.ops.matching import match_batch

FOCAL_ALPHA = 0.25
FOREGROUND, NO_OBJECT = 0, 1


class _Targets(NamedTuple):
    """The tracks of all clips, one after another."""

    boxes_cxcywh: Float[Tensor, "tracks time 4"]
    present: Bool[Tensor, "tracks time"]
    masks: Float[Tensor, "tracks time height width"]
    clip: Int[Tensor, " tracks"]


def set_loss(
    outputs: Mapping[str, Any],
    targets: Sequence[Mapping[str, Tensor]],
    weights: Mapping[str, float],
    *,
    num_tracks: float | None = None,
    class_weight: float | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """The training loss of a batch of clips.

    Each decoder layer is matched by itself (Eq. 8, with the same weights as costs) and has the
    class and the box terms; the last layer has the mask terms too. A frame in which an instance
    is absent counts in the class and mask terms and not in the box term. A padding frame counts
    in none.

    Args:
        outputs: `foreground_logits` (batch, instances, time, 2) with foreground first,
            `boxes_cxcywh` (batch, instances, time, 4) in [0, 1], `mask_logits` (batch, instances,
            time, height, width), and `auxiliary`, a list of the earlier layers' first two.
        targets: for each clip `boxes_cxcywh` (tracks, time, 4), `present` (tracks, time) bool,
            `masks` (tracks, time, height, width) at the logits' size, `valid_frames` (time,)
            bool, False for padding. A clip may have no track.
        weights: `foreground` of the class term and of the probability in the matching; `l1` of
            the boxes' L1 distance and `giou` of 1 - GIoU, in the loss and in the matching; `dice`
            and `focal` of the losses of that name; `no_object` of that class in the cross
            entropy.
        num_tracks: what box and mask terms are divided by; this batch's number of tracks (at
            least 1) by default, the mean over ranks in distributed training.
        class_weight: what the class term is divided by; the sum of its weights over this batch
            by default (see `class_weight_of`).

    Returns:
        `total`, with gradients; the last layer's unweighted terms `foreground`, `l1`, `giou`,
        `dice`, `focal`; and `auxiliary`, the weighted sum of the earlier layers' terms.
    """
    layers = [*outputs.get("auxiliary", []), outputs]
    logits = torch.stack([layer["foreground_logits"] for layer in layers])
    boxes = torch.stack([layer["boxes_cxcywh"] for layer in layers])
    valid = torch.stack([target["valid_frames"] for target in targets])
    tracks = _gather_targets(targets, logits)
    matched = match_batch(
        logits.detach(),
        boxes.detach(),
        tracks.boxes_cxcywh,
        tracks.present,
        tracks.clip,
        valid,
        weights,
    )
    count = float(max(len(tracks.clip), 1) if num_tracks is None else num_tracks)

    no_object = weights["no_object"]
    foreground = _class_terms(logits, matched, tracks.clip, valid, no_object, class_weight)
    l1, one_minus_giou = _box_terms(boxes, matched, tracks, valid)
    dice, focal = _mask_terms(outputs["mask_logits"], matched[-1], tracks, valid)
    terms = {
        "foreground": foreground[-1],
        "l1": l1[-1] / count,
        "giou": one_minus_giou[-1] / count,
        "dice": dice / count,
        "focal": focal / count,
    }
    of_layers = (
        weights["foreground"] * foreground
        + (weights["l1"] * l1 + weights["giou"] * one_minus_giou) / count
    )
    masks = weights["dice"] * terms["dice"] + weights["focal"] * terms["focal"]
    terms["auxiliary"] = of_layers[:-1].sum()
    terms["total"] = of_layers.sum() + masks
    return terms


def class_weight_of(
    targets: Sequence[Mapping[str, Tensor]], num_instances: int, no_object: float
) -> float:
    """Sum of the class term's weights over a batch, which no prediction changes.

    As many instances of a clip are matched as it has tracks, and all others are no object.
    """
    total = 0.0
    for target in targets:
        matched = min(len(target["present"]), num_instances)
        frames = float(target["valid_frames"].sum())
        total += frames * (matched + no_object * (num_instances - matched))
    return max(total, 1e-9)


def _gather_targets(
    targets: Sequence[Mapping[str, Tensor]], like: Float[Tensor, " ..."]
) -> _Targets:
    sizes = torch.tensor([len(target["present"]) for target in targets])
    return _Targets(
        boxes_cxcywh=torch.cat([target["boxes_cxcywh"] for target in targets]).to(like.dtype),
        present=torch.cat([target["present"] for target in targets]),
        masks=torch.cat([target["masks"] for target in targets]).to(like.dtype),
        clip=torch.arange(len(targets)).repeat_interleave(sizes).to(like.device),
    )


def _class_terms(
    logits: Float[Tensor, "layers batch instances time 2"],
    matched: Int[Tensor, "layers tracks"],
    clip: Int[Tensor, " tracks"],
    valid: Bool[Tensor, "batch time"],
    no_object: float,
    class_weight: float | None,
) -> Float[Tensor, " layers"]:
    """Eq. 5's first term: weighted cross entropy, the mean over the valid frames.

    A matched sequence is foreground in each of its frames: c_i has no time in Eq. 5.
    """
    is_object = logits.new_zeros(logits.shape[:3], dtype=torch.bool)
    layer, track = (matched >= 0).nonzero(as_tuple=True)
    is_object[layer, clip[track], matched[layer, track]] = True
    nll = -logits.log_softmax(dim=-1)
    weight = torch.where(is_object, 1.0, no_object)[..., None] * valid[:, None]
    cost = torch.where(is_object[..., None], nll[..., FOREGROUND], nll[..., NO_OBJECT])
    total = weight.sum(dim=(1, 2, 3)).clamp(min=1e-9) if class_weight is None else class_weight
    return (cost * weight).sum(dim=(1, 2, 3)) / total


def _box_terms(
    boxes: Float[Tensor, "layers batch instances time 4"],
    matched: Int[Tensor, "layers tracks"],
    tracks: _Targets,
    valid: Bool[Tensor, "batch time"],
) -> tuple[Float[Tensor, " layers"], Float[Tensor, " layers"]]:
    """Eq. 9 without its weights: L1 and 1 - GIoU, summed over tracks, a mean over seen frames."""
    layer = torch.arange(len(matched), device=matched.device)[:, None]
    predicted = boxes[layer, tracks.clip, matched.clamp(min=0)]
    seen = tracks.present & valid[tracks.clip]
    share = seen / seen.sum(-1, keepdim=True).clamp(min=1) * (matched >= 0)[..., None]
    # An absent frame's boxes are replaced before the arithmetic, so that none of its gradient
    # can be NaN.
    safe = predicted.new_tensor([0.5, 0.5, 1.0, 1.0])
    predicted = torch.where(seen[..., None], predicted, safe)
    target = torch.where(seen[..., None], tracks.boxes_cxcywh, safe)
    l1 = (predicted - target).abs().sum(-1)
    overlap = giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target).expand_as(predicted))
    return (l1 * share).sum(dim=(1, 2)), ((1 - overlap) * share).sum(dim=(1, 2))


def _mask_terms(
    mask_logits: Float[Tensor, "batch instances time height width"],
    matched: Int[Tensor, " tracks"],
    tracks: _Targets,
    valid: Bool[Tensor, "batch time"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Eq. 10: dice and focal, summed over tracks, each a mean over the valid frames.

    Only frames that are valid are gathered: of matched pairs, in one go over the batch.
    """
    counted = valid[tracks.clip] & (matched >= 0)[:, None]
    track, frame = counted.nonzero(as_tuple=True)
    num_instances, num_frames = mask_logits.shape[1:3]
    place = (tracks.clip[track] * num_instances + matched[track]) * num_frames + frame
    logits = mask_logits.flatten(3).flatten(0, 2).index_select(0, place)
    target = tracks.masks[track, frame].flatten(1)
    share = 1 / counted.sum(-1).clamp(min=1)[track].to(logits.dtype)

    probability = logits.sigmoid()
    both = (probability * target).sum(-1)
    dice = 1 - (2 * both + 1) / (probability.sum(-1) + target.sum(-1) + 1)

    # The focal loss with γ = 2, of the probability that is already here.
    missed = probability + target - 2 * probability * target
    alpha = (1 - FOCAL_ALPHA) + (2 * FOCAL_ALPHA - 1) * target
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (alpha * missed.square() * entropy).mean(-1)
    return (dice * share).sum(), (focal * share).sum()
