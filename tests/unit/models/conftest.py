"""What the tests of models share: weights that are all in play, and attention in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from selfshot.models.attention import MultiHeadAttention


@pytest.fixture
def stir() -> Callable[[nn.Module], nn.Module]:
    """Draw every parameter anew: a bias or a branch that starts at zero would hide a mistake."""

    def draw(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return module

    return draw


@pytest.fixture
def attention_in_numpy() -> Callable[..., np.ndarray]:
    """MA(Q(q), K(k), V(v)) of one sample, a loop over heads and targets."""

    def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        return x @ weight.T + bias

    def attend(
        module: MultiHeadAttention,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        padding: np.ndarray | None = None,
    ) -> np.ndarray:
        q, k, v = linear(module.q, q), linear(module.k, k), linear(module.v, v)
        dim = q.shape[-1]
        channels = dim // module.heads
        mixed = np.zeros((len(q), dim))
        for head in range(module.heads):
            part = slice(head * channels, (head + 1) * channels)
            for target in range(len(q)):
                scores = k[:, part] @ q[target, part] / np.sqrt(channels)
                values = v[:, part]
                if padding is not None:
                    scores, values = scores[~padding], values[~padding]
                if module.sink_score is not None:
                    scores = np.append(scores, module.sink_score.detach().numpy()[head])
                    sink = module.sink_value.detach().numpy()[part]
                    values = np.concatenate([values, sink[None]])
                weights = np.exp(scores - scores.max())
                mixed[target, part] = weights @ values / weights.sum()
        return linear(module.out, mixed)

    return attend
