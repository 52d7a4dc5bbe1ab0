"""The small backbone: its strides, and norms that stay as pretraining left them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfshot.models.backbone import SmallBackbone, normalise_frames


def _frames(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 56)])
def test_strides(size: tuple[int, int]) -> None:
    backbone = SmallBackbone(width=8, dim=13).eval()
    tokens, fine = backbone(normalise_frames(_frames(3, *size, 3)))
    assert tokens.shape == (3, 13, size[0] // 8, size[1] // 8)
    assert fine.shape == (3, backbone.fine_channels, size[0] // 4, size[1] // 4)
    assert backbone.fine_channels == 16
    same, _, deep = backbone.features(normalise_frames(_frames(3, *size, 3)))
    assert deep.shape == (3, backbone.deep_channels, size[0] // 8, size[1] // 8)
    assert deep.min() >= 0, "below the projection they come out of a ReLU"
    torch.testing.assert_close(backbone.project(deep), same)


def test_normalise_frames() -> None:
    frames = _frames(2, 5, 7, 11, 3)
    pixels = normalise_frames(frames)
    assert pixels.shape == (2, 5, 3, 7, 11) and pixels.dtype == torch.float32
    assert pixels[1, 3, 2, 4, 10].item() == (int(frames[1, 3, 4, 10, 2]) - 127) / 64


def test_an_image_of_a_batch_stands_alone_in_evaluation() -> None:
    backbone = SmallBackbone(width=8, dim=13).eval()
    images = normalise_frames(_frames(3, 16, 24, 3))
    tokens, fine = backbone(images)
    alone = backbone(images[1:2])
    torch.testing.assert_close(alone[0], tokens[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[1], fine[1:2], rtol=1e-4, atol=1e-5)


def test_frozen_norms_keep_their_statistics_in_training() -> None:
    backbone = SmallBackbone(width=8, dim=13)
    images = normalise_frames(_frames(4, 16, 16, 3))
    before = _buffers(backbone)
    backbone.train()(images)
    moved = _buffers(backbone)
    assert any(not torch.equal(before[name], moved[name]) for name in before)

    backbone.freeze_norms = True
    outer = nn.Sequential(backbone).train()
    assert backbone.training and outer.training
    training = backbone(images)[0]
    kept = _buffers(backbone)
    assert all(torch.equal(moved[name], kept[name]) for name in moved)
    torch.testing.assert_close(training, backbone.eval()(images)[0])
    training.sum().backward()
    assert backbone.stem[1].weight.grad is not None, "the norms' scales still learn"
