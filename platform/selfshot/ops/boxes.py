"""Boxes: their two forms, and the generalised IoU of Eq. 9.

`cxcywh` is centre, width and height; `xyxy` is the first and the last corner. Both are shares of
the frame, in [0, 1], unless a name says pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
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
