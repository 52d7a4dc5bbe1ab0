"""The projection head, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfshot.models.projection import ProjectionHead


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_three_layers_with_norms(norm: str, stir) -> None:
    head = stir(ProjectionHead(5, 11, 7, norm)).train()
    x = torch.randn(13, 5, generator=torch.Generator().manual_seed(0))
    out = head(x).detach().numpy()
    values = x.double().numpy()
    linears = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    norms = [layer for layer in head.layers if "Norm" in type(layer).__name__]
    axis = 0 if norm == "batch" else 1
    for i, (linear, scale) in enumerate(zip(linears, norms, strict=True)):
        assert linear.bias is None
        values = values @ linear.weight.detach().double().numpy().T
        spread = np.sqrt(values.var(axis, keepdims=True) + 1e-5)
        values = (values - values.mean(axis, keepdims=True)) / spread
        if i < 2:
            weight, bias = (p.detach().double().numpy() for p in (scale.weight, scale.bias))
            values = np.maximum(values * weight + bias, 0)
        else:
            assert scale.weight is None
    expected = values / np.linalg.norm(values, axis=1, keepdims=True)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    assert head.dim == 7


def test_a_layer_norm_does_not_look_at_other_clips() -> None:
    head = ProjectionHead(5, 11, 7, "layer").train()
    x = torch.randn(13, 5)
    torch.testing.assert_close(head(x)[:3], head(x[:3]))
