"""Boxes against plain loops and torchvision."""

from __future__ import annotations

import torch
from torchvision.ops import generalized_box_iou

from selfshot.ops.boxes import cxcywh_to_xyxy, giou, xyxy_to_cxcywh


def _random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(*shape, 2, generator=generator)
    size = torch.rand(*shape, 2, generator=generator) * 0.6 + 0.01
    return torch.cat([centre, size], -1)


def test_forms_there_and_back() -> None:
    boxes = _random_boxes(2, 3, 5)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)


def test_corners() -> None:
    corners = cxcywh_to_xyxy(torch.tensor([0.5, 0.4, 0.2, 0.6]))
    torch.testing.assert_close(corners, torch.tensor([0.4, 0.1, 0.6, 0.7]))


def test_giou_is_torchvisions() -> None:
    first = cxcywh_to_xyxy(_random_boxes(7, seed=1))
    other = cxcywh_to_xyxy(_random_boxes(11, seed=2))
    ours = giou(first[:, None], other[None])
    torch.testing.assert_close(ours, generalized_box_iou(first, other), atol=1e-5, rtol=1e-5)


def test_giou_of_boxes_without_area_is_finite() -> None:
    nothing = torch.zeros(3, 4, requires_grad=True)
    value = giou(nothing, torch.zeros(3, 4))
    value.sum().backward()
    assert value.tolist() == [0.0] * 3
    assert nothing.grad is not None and nothing.grad.isfinite().all()


def test_giou_gradient() -> None:
    first = cxcywh_to_xyxy(_random_boxes(5, seed=1).double()).requires_grad_()
    other = cxcywh_to_xyxy(_random_boxes(5, seed=2).double())
    assert torch.autograd.gradcheck(lambda boxes: giou(boxes, other), (first,))
