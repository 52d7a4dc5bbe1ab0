"""Convolutions in bfloat16: only where the processor has tiles, and undone after each test."""

from __future__ import annotations

import pytest
import torch
from torch.backends import mkldnn

from selfshot.models.precision import use_tile_convolutions


def _precision() -> str:
    return mkldnn.conv.fp32_precision  # type: ignore[attr-defined]


@pytest.mark.parametrize("turn", [1, 2])
def test_it_says_what_the_processor_has(turn: int) -> None:
    """The second turn shows that what the first one set is restored."""
    before = _precision()
    assert before != "bf16", f"turn {turn}: another test left its setting behind"
    has_tiles = use_tile_convolutions()
    assert has_tiles is bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    assert _precision() == ("bf16" if has_tiles else before)


@pytest.mark.parametrize("capabilities", [{}, {"amx_bf16": False}, {"amx_bf16": True}])
def test_nothing_changes_without_tiles(
    capabilities: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    before = _precision()
    assert use_tile_convolutions() is capabilities.get("amx_bf16", False)
    assert _precision() == ("bf16" if capabilities.get("amx_bf16") else before)


def test_a_convolution_stays_close_and_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 12, 12, generator=generator)
    weight = torch.randn(32, 32, 3, 3, generator=generator)
    exact = torch.nn.functional.conv2d(x, weight)
    use_tile_convolutions()
    ours = torch.nn.functional.conv2d(x, weight)
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() < 2**-7 * exact.norm()
