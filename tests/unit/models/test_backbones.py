"""Backbones by name: their maps, their strides, their norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from selfshot.models.backbones import build_backbone

KINDS: list[tuple[dict[str, Any], int, int]] = [
    ({"kind": "small", "width": 8}, 8, 4),
    ({"kind": "resnet18"}, 16, 4),
    ({"kind": "resnet50_dilated"}, 16, 4),
    ({"kind": "resnet50_dilated", "output_stride": 32}, 32, 4),
    ({"kind": "efficientnet_lite0"}, 16, 4),
]
NAMES = ["small", "resnet18", "resnet50/16", "resnet50/32", "efficientnet"]


@pytest.mark.parametrize(("kind", "stride", "fine_stride"), KINDS, ids=NAMES)
def test_maps_have_the_strides_that_are_told(
    kind: dict[str, Any], stride: int, fine_stride: int
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(**kind, dim=12).eval()
    assert (backbone.token_stride, backbone.fine_stride) == (stride, fine_stride)
    # A size that is no multiple of 16, as the paper's 280 rows.
    frames = torch.randint(0, 256, (2, 56, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        tokens, fine, deep = backbone.features(backbone.normalise(frames))
    grid = (-(-56 // stride), 96 // stride)
    assert tokens.shape == (2, 12, *grid)
    assert deep.shape == (2, backbone.deep_channels, *grid)
    assert fine.shape == (2, backbone.fine_channels, 56 // fine_stride, 96 // fine_stride)
    torch.testing.assert_close(tokens, backbone.project(deep), rtol=1e-3, atol=1e-4)
    again = build_backbone(**backbone.settings)
    again.load_state_dict(backbone.state_dict())
    assert again.eval().settings == backbone.settings
    with torch.no_grad():
        assert torch.equal(again(again.normalise(frames))[0], tokens)


def test_the_fourth_stage_is_dilated_and_the_fifth_is_gone() -> None:
    backbone: Any = build_backbone("resnet50_dilated", dim=6)
    dilations = [block.conv2.dilation for block in backbone.trunk.layer3]
    assert dilations == [(2, 2)] * 6
    assert [block.conv2.dilation for block in backbone.trunk.layer2] == [(1, 1)] * 4
    names = {name.split(".")[1] for name in backbone.state_dict() if name.startswith("trunk")}
    assert names == {"conv1", "bn1", "layer1", "layer2", "layer3"}


@pytest.mark.parametrize("kind", ["resnet18", "efficientnet_lite0"])
def test_frozen_norms_move_nothing(kind: str) -> None:
    backbone = build_backbone(kind, dim=6)
    backbone.freeze_norms = True
    backbone.train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(backbone.normalise(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)))
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert all(p.requires_grad for p in backbone.project.parameters())


def test_pixels_as_torchvisions_weights_want_them() -> None:
    backbone = build_backbone("resnet18", dim=6)
    frames = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert backbone.normalise(frames).shape == (1, 3, 1, 1)
    assert backbone.normalise(frames).flatten().tolist() == pytest.approx(expected, abs=1e-4)
