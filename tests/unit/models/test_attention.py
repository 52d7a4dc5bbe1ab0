"""Attention against a transcription in NumPy, with and without a sink and padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selfshot.models.attention import FeedForward, MultiHeadAttention

BATCH, TARGETS, SOURCES, HEADS, DIM = 2, 5, 7, 3, 33


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(BATCH, TARGETS, DIM, generator=generator)
    k = torch.randn(BATCH, SOURCES, DIM, generator=generator)
    v = torch.randn(BATCH, SOURCES, DIM, generator=generator)
    return q, k, v


@pytest.mark.parametrize("sink_score", [None, -1.0, 3.0])
@pytest.mark.parametrize("padded", [False, True])
def test_is_its_transcription(stir, attention_in_numpy, sink_score, padded) -> None:
    module = stir(MultiHeadAttention(DIM, HEADS, sink_score=sink_score))
    q, k, v = _inputs()
    padding = None
    if padded:
        padding = torch.zeros(BATCH, SOURCES, dtype=torch.bool)
        padding[0, 2:], padding[1, 4] = True, True
    ours = module(q, k, v, padding)
    for i in range(BATCH):
        row = None if padding is None else padding[i].numpy()
        theirs = attention_in_numpy(module, q[i].numpy(), k[i].numpy(), v[i].numpy(), row)
        np.testing.assert_allclose(ours[i].detach().numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_padding_is_as_if_it_were_not_there(stir) -> None:
    module = stir(MultiHeadAttention(DIM, HEADS, sink_score=1.0))
    q, k, v = _inputs()
    padding = torch.arange(SOURCES).expand(BATCH, -1) >= 4
    k[:, 4:], v[:, 4:] = 1e3, -1e3
    torch.testing.assert_close(module(q, k, v, padding), module(q, k[:, :4], v[:, :4]))


def test_with_no_source_the_sink_takes_everything(stir) -> None:
    module = stir(MultiHeadAttention(DIM, HEADS, sink_score=1.0))
    q, k, v = _inputs()
    empty = module(q, k[:, :0], v[:, :0])
    expected = module.out(module.sink_value).expand(BATCH, TARGETS, DIM)
    torch.testing.assert_close(empty, expected)
    all_padding = torch.ones(BATCH, SOURCES, dtype=torch.bool)
    torch.testing.assert_close(module(q, k, v, all_padding), expected)
    assert module(q[:, :0], k, v).shape == (BATCH, 0, DIM)


def test_a_bias_is_added_to_the_scores_of_every_head(stir) -> None:
    module = stir(MultiHeadAttention(DIM, HEADS))
    q, k, v = _inputs()
    bias = torch.zeros(BATCH, 1, TARGETS, SOURCES)
    torch.testing.assert_close(module(q, k, v, bias=bias), module(q, k, v))
    # ln 2 for a source is the source twice.
    bias[..., 3] = math.log(2.0)
    twice = [torch.cat([x, x[:, 3:4]], 1) for x in (k, v)]
    torch.testing.assert_close(module(q, k, v, bias=bias), module(q, *twice))
    # And each target has its own.
    bias[0, 0, 4] = torch.tensor([0.0] + [float("-inf")] * 6)
    alone = module(q, k[:, :1], v[:, :1])
    torch.testing.assert_close(module(q, k, v, bias=bias)[0, 4], alone[0, 4])


def test_a_low_sink_changes_nothing(stir) -> None:
    with_sink = MultiHeadAttention(DIM, HEADS, sink_score=-60.0)
    without = MultiHeadAttention(DIM, HEADS)
    without.load_state_dict(with_sink.state_dict(), strict=False)
    q, k, v = _inputs()
    torch.testing.assert_close(with_sink(q, k, v), without(q, k, v))


def test_identity_gain_compares_the_features_themselves() -> None:
    module = MultiHeadAttention(DIM, HEADS, identity_gain=2.0)
    x = _inputs()[0]
    torch.testing.assert_close(module.q(x), 2 * x)
    torch.testing.assert_close(module.k(x), 2 * x)


def test_the_sink_learns() -> None:
    module = MultiHeadAttention(DIM, HEADS, sink_score=0.0)
    module(*_inputs()).square().sum().backward()
    for parameter in (module.sink_score, module.sink_value):
        assert parameter is not None and parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_feed_forward_is_a_residual_under_a_norm(stir) -> None:
    block = stir(FeedForward(DIM, 11)).eval()
    x = _inputs()[0]
    hidden = torch.relu(block.layers[0](x))
    y = x + block.layers[3](hidden)
    mean, variance = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, unbiased=False)
    normed = (y - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(block(x), normed * block.norm.weight + block.norm.bias)
