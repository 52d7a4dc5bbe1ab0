"""Boxes: their two forms, the boxes of masks, and the generalised IoU of Eq. 9.

`cxcywh` is centre, width and height; `xyxy` is the first and the last corner. Both are shares of
the frame, in [0, 1], unless a name says pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Below any area that a box of a real frame can have; it only keeps 0/0 away.
_TINY = 1e-9


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Centre and size to corners."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    half = size / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Corners to centre and size."""
    first, last = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(first + last) / 2, last - first], dim=-1)


def boxes_of_masks(masks: Bool[Tensor, "*shape height width"]) -> Float[Tensor, "*shape 4"]:
    """The tightest boxes around masks, as cxcywh shares of the frame.

    A box reaches from the first pixel's first edge to the last pixel's last edge, so a full mask
    gives (0.5, 0.5, 1, 1). An empty mask gives zeros.
    """
    first_y, last_y = _extent(masks.any(dim=-1))
    first_x, last_x = _extent(masks.any(dim=-2))
    boxes = torch.stack(
        [(first_x + last_x) / 2, (first_y + last_y) / 2, last_x - first_x, last_y - first_y], -1
    )
    return boxes * masks.flatten(-2).any(dim=-1, keepdim=True)


def giou(
    boxes_xyxy: Float[Tensor, "*#shape 4"], others_xyxy: Float[Tensor, "*#shape 4"]
) -> Float[Tensor, "*shape"]:
    """Generalised IoU of each box with the other of the same place (leading axes broadcast).

    In [-1, 1]: the IoU, less the share of the enclosing box that neither covers. Two boxes
    without area give 0 where they coincide.
    """
    first, last = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    other_first, other_last = others_xyxy[..., :2], others_xyxy[..., 2:]
    inter = (torch.minimum(last, other_last) - torch.maximum(first, other_first)).clamp(min=0)
    hull = (torch.maximum(last, other_last) - torch.minimum(first, other_first)).clamp(min=0)
    inter_area = inter[..., 0] * inter[..., 1]
    hull_area = hull[..., 0] * hull[..., 1]
    size, other_size = last - first, other_last - other_first
    union_area = size[..., 0] * size[..., 1] + other_size[..., 0] * other_size[..., 1] - inter_area
    iou = inter_area / union_area.clamp(min=_TINY)
    return iou - (hull_area - union_area) / hull_area.clamp(min=_TINY)


def _extent(
    occupied: Bool[Tensor, "*shape length"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """First edge and last edge of what is occupied on one axis, as shares of its length."""
    length = occupied.shape[-1]
    marks = occupied.to(torch.uint8)
    first = marks.argmax(dim=-1)
    last = length - marks.flip(-1).argmax(dim=-1)
    return first / length, last / length
