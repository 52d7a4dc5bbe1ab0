"""The three stages: encoder, query-support fuser (Eq. 4) and decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfshot.models.fuser import FuserLayer, QuerySupportFuser
from selfshot.models.transformer import SpatioTemporalDecoder, SpatioTemporalEncoder

BATCH, DIM, HEADS, FFN = 2, 15, 3, 11
QUERY_TOKENS, SUPPORT_TOKENS = 7, 13


def _tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(BATCH, count, DIM, generator=torch.Generator().manual_seed(seed))


def _norm(layer: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    scale, shift = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + layer.eps) * scale + shift


def _feed_forward(block: nn.Module, x: np.ndarray) -> np.ndarray:
    first, last = block.layers[0], block.layers[3]
    w1, b1, w2, b2 = (
        p.detach().double().numpy() for p in (first.weight, first.bias, last.weight, last.bias)
    )
    return _norm(block.norm, x + np.maximum(x @ w1.T + b1, 0) @ w2.T + b2)


class TestFuser:
    """Eq. 4, written out."""

    def test_layer_is_equation_4(self, stir, attention_in_numpy) -> None:
        layer = stir(FuserLayer(DIM, HEADS, FFN, 0.0)).eval()
        query, support = _tokens(QUERY_TOKENS), _tokens(SUPPORT_TOKENS, 1)
        fused, enhanced = layer(query, support)
        for i in range(BATCH):
            e_q, e_s = query[i].double().numpy(), support[i].double().numpy()
            ma = attention_in_numpy
            f_q = _norm(layer.query_norm, e_q + ma(layer.query_from_support, e_q, e_s, e_s))
            f_s = _norm(layer.support_norm, e_s + ma(layer.support_from_query, e_s, e_q, e_q))
            tilde = _norm(layer.fuse_norm, f_q + ma(layer.fuse, f_q, f_s, f_s))
            expected = _feed_forward(layer.feed_forward, tilde)
            np.testing.assert_allclose(fused[i].detach(), expected, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(enhanced[i].detach(), f_s, rtol=1e-3, atol=1e-4)

    def test_a_second_layer_reads_the_enhanced_support(self, stir) -> None:
        fuser = stir(QuerySupportFuser(DIM, HEADS, FFN, 2, 0.0)).eval()
        query, support = _tokens(QUERY_TOKENS), _tokens(SUPPORT_TOKENS, 1)
        expected = fuser.layers[1](*fuser.layers[0](query, support))[0]
        torch.testing.assert_close(fuser(query, support), expected)

    def test_padded_support_is_no_support(self, stir) -> None:
        fuser = stir(QuerySupportFuser(DIM, HEADS, FFN, 2, 0.0)).eval()
        query, support = _tokens(QUERY_TOKENS), _tokens(SUPPORT_TOKENS, 1)
        mask = torch.arange(SUPPORT_TOKENS).expand(BATCH, -1) >= 5
        masked = fuser(query, support, support_padding_mask=mask)
        torch.testing.assert_close(masked, fuser(query, support[:, :5]), rtol=1e-4, atol=1e-5)

    def test_padded_query_tokens_do_not_reach_the_support(self, stir) -> None:
        fuser = stir(QuerySupportFuser(DIM, HEADS, FFN, 2, 0.0)).eval()
        query, support = _tokens(QUERY_TOKENS), _tokens(SUPPORT_TOKENS, 1)
        mask = torch.arange(QUERY_TOKENS).expand(BATCH, -1) >= 5
        masked = fuser(query, support, query_padding_mask=mask)[:, :5]
        torch.testing.assert_close(masked, fuser(query[:, :5], support), rtol=1e-4, atol=1e-5)

    def test_no_support_is_defined(self, stir) -> None:
        fuser = stir(QuerySupportFuser(DIM, HEADS, FFN, 2, 0.0)).eval()
        query = _tokens(QUERY_TOKENS)
        out = fuser(query, query[:, :0])
        assert out.shape == query.shape and out.isfinite().all()
        # Each token then depends on itself alone.
        torch.testing.assert_close(out[:, :3], fuser(query[:, :3], query[:, :0]))


class TestEncoder:
    """Stage 1."""

    def test_without_layers_it_is_the_identity(self) -> None:
        tokens = _tokens(QUERY_TOKENS)
        encoder = SpatioTemporalEncoder(DIM, HEADS, FFN, 0, 0.0)
        assert encoder(tokens, None) is tokens

    @pytest.mark.parametrize("layers", [1, 3])
    def test_shape_and_padding(self, stir, layers: int) -> None:
        encoder = stir(SpatioTemporalEncoder(DIM, HEADS, FFN, layers, 0.0)).eval()
        tokens, positions = _tokens(QUERY_TOKENS), _tokens(QUERY_TOKENS, 2)[:1]
        mask = torch.arange(QUERY_TOKENS).expand(BATCH, -1) >= 4
        out = encoder(tokens, positions, mask)
        assert out.shape == tokens.shape
        expected = encoder(tokens[:, :4], positions[:, :4])
        torch.testing.assert_close(out[:, :4], expected, rtol=1e-4, atol=1e-5)

    def test_only_positions_tell_the_order(self, stir) -> None:
        encoder = stir(SpatioTemporalEncoder(DIM, HEADS, FFN, 2, 0.0)).eval()
        tokens, positions = _tokens(QUERY_TOKENS), _tokens(QUERY_TOKENS, 2)[:1]
        order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
        plain = encoder(tokens, None)
        torch.testing.assert_close(encoder(tokens[:, order], None), plain[:, order])
        located = encoder(tokens, positions)
        assert not torch.allclose(encoder(tokens[:, order], positions), located[:, order])


class TestDecoder:
    """Stage 3."""

    def test_one_output_a_layer(self, stir) -> None:
        decoder = stir(SpatioTemporalDecoder(DIM, HEADS, FFN, 3, 0.0)).eval()
        positions, memory = _tokens(5, 3)[:1], _tokens(SUPPORT_TOKENS)
        outputs = decoder(positions, memory)
        assert [tuple(out.shape) for out in outputs] == [(BATCH, 5, DIM)] * 3
        assert not torch.allclose(outputs[0], outputs[2])

    def test_queries_carry_their_outputs_with_them(self, stir) -> None:
        decoder = stir(SpatioTemporalDecoder(DIM, HEADS, FFN, 2, 0.0)).eval()
        positions, memory = _tokens(5, 3)[:1], _tokens(SUPPORT_TOKENS)
        order = torch.tensor([4, 2, 0, 1, 3])
        plain = decoder(positions, memory)[-1]
        torch.testing.assert_close(decoder(positions[:, order], memory)[-1], plain[:, order])

    def test_the_bias_steers_where_queries_look(self, stir) -> None:
        decoder = stir(SpatioTemporalDecoder(DIM, HEADS, FFN, 2, 0.0)).eval()
        positions, memory = _tokens(5, 3)[:1], _tokens(SUPPORT_TOKENS)
        bias = torch.zeros(BATCH, 1, 5, SUPPORT_TOKENS)
        torch.testing.assert_close(decoder(positions, memory, bias), decoder(positions, memory))
        bias[..., 7:] = float("-inf")
        steered, alone = decoder(positions, memory, bias), decoder(positions, memory[:, :7])
        torch.testing.assert_close(steered, alone, rtol=1e-4, atol=1e-5)
