"""The projection head, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from selfshot.models.projection import ProjectionHead


def test_three_layers_with_norms(stir: Any) -> None:
    head = stir(ProjectionHead(5, 11, 7)).train()
    x = torch.randn(13, 5, generator=torch.Generator().manual_seed(0))
    out = head(x).detach().numpy()
    values = x.double().numpy()
    linears = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    norms = [layer for layer in head.layers if "Norm" in type(layer).__name__]
    for i, (linear, scale) in enumerate(zip(linears, norms, strict=True)):
        assert linear.bias is None
        values = values @ linear.weight.detach().double().numpy().T
        deviation = np.sqrt(values.var(0, keepdims=True) + 1e-5)
        values = (values - values.mean(0, keepdims=True)) / deviation
        if i < 2:
            weight, bias = (p.detach().double().numpy() for p in (scale.weight, scale.bias))
            values = np.maximum(values * weight + bias, 0)
        else:
            assert scale.weight is None
    expected = values / np.linalg.norm(values, axis=1, keepdims=True)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    assert head.dim == 7
