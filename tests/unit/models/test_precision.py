"""Convolutions in bfloat16: in training only, and only where the processor has them."""

from __future__ import annotations

import pytest
import torch

from selfshot.models import precision
from selfshot.models.backbone import SmallBackbone

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Sets what the processor says that it has."""

    def say(**capabilities: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        precision.has_bfloat16.cache_clear()

    yield say
    monkeypatch.undo()
    precision.has_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({}, False),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_it_asks_the_processor(processor, capabilities: dict[str, bool], has: bool) -> None:
    processor(**capabilities)
    assert precision.has_bfloat16() is has
    with precision.convolution_autocast(CPU, training=True):
        assert torch.is_autocast_enabled("cpu") is has
    assert not torch.is_autocast_enabled("cpu")


def test_only_training_is_rounded(processor) -> None:
    processor(avx512_bf16=True)
    with precision.convolution_autocast(CPU, training=False):
        assert not torch.is_autocast_enabled("cpu")
    with torch.no_grad(), precision.convolution_autocast(CPU, training=True):
        assert not torch.is_autocast_enabled("cpu")


def test_a_trained_backbone_stays_close_and_float32(processor) -> None:
    torch.manual_seed(0)
    backbone = SmallBackbone(8, 14).train()
    images = torch.randn(5, 3, 24, 40)
    processor(avx512_bf16=False)
    exact = backbone(images)
    processor(avx512_bf16=True)
    rounded = backbone(images)
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        assert 0 < (other - one).norm() < 0.02 * one.norm()
