"""Multi-head attention and the feed-forward block, by PyTorch's fused kernel."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

CHANNEL_MULTIPLE = 4
"""Heads are padded with zeros to a multiple of so many channels: on CPU the fused kernel takes a
third longer for 19 channels than for 20, and zeros change no score."""


class MultiHeadAttention(nn.Module):
    """MA(Q(q), K(k), V(v)) with learned projections; its score matrix is never stored."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        identity_gain: float | None = None,
        sink_score: float | None = None,
    ) -> None:
        """Build it.

        Args:
            dim: channels d, a multiple of `heads`.
            heads: attention heads.
            identity_gain: start Q and K at this gain times the identity, so that attention
                begins as a comparison of the features themselves; none: Xavier.
            sink_score: add one learned source, the sink, whose score against every target is
                a learned number that starts here. A softmax must give its weight to someone;
                with a sink, a pixel without a counterpart can say so, and the sink's value
                tells the layers above. It also makes attention to no source at all defined.
        """
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        for layer in (self.q, self.k, self.v, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.sink_score: nn.Parameter | None = None
        if sink_score is not None:
            self.sink_score = nn.Parameter(torch.full((heads,), sink_score))
            self.sink_value = nn.Parameter(torch.randn(dim))
        if identity_gain is not None:
            for layer in (self.q, self.k):
                with torch.no_grad():
                    layer.weight.copy_(identity_gain * torch.eye(dim))

    def forward(
        self,
        q: Float[Tensor, "batch targets dim"],
        k: Float[Tensor, "batch sources dim"],
        v: Float[Tensor, "batch sources dim"],
        key_padding_mask: Tensor | None = None,
        bias: Float[Tensor, "batch 1 targets sources"] | None = None,
        num_groups: int = 1,
    ) -> Float[Tensor, "batch targets dim"]:
        """Attend; `key_padding_mask` (B, sources) is True where a source is padding.

        `bias` is added to the scores of every head; not together with a padding mask or sink.
        The sources are of `num_groups` clips: the sink counts as many times, so that its share
        does not fall as clips are added and one clip given twice changes nothing.
        """
        if self.sink_score is None and not k.shape[1]:
            # Nothing to attend to, and no sink: nothing is added.
            return self.out(torch.zeros_like(q))
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, q), (self.k, k), (self.v, v))
        )
        if self.sink_score is not None:
            q, k, v, key_padding_mask = self._add_sink(q, k, v, key_padding_mask, num_groups)
        mask = bias if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        channels = self.out.in_features // self.heads
        spare = -q.shape[-1] % CHANNEL_MULTIPLE
        q, k, v = (functional.pad(x, (0, spare)) if spare else x for x in (q, k, v))
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=channels**-0.5
        )
        # The sink's channel and the padding come out of the values again.
        mixed = mixed[..., :channels]
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _add_sink(
        self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, num_groups: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Append the sink as a source.

        Its score must not depend on the target, and the fused kernel takes no learned bias: one
        more channel that is 1 in every target, the score in the sink and 0 in other sources
        gives the same product.
        """
        assert self.sink_score is not None
        batch, heads, _, channels = k.shape
        value = self.sink_value.unflatten(0, (heads, 1, channels)).expand(batch, -1, -1, -1)
        score = (
            ((self.sink_score + math.log(num_groups)) * channels**0.5)
            .view(1, heads, 1, 1)
            .expand(batch, -1, -1, -1)
        )
        key = torch.cat([k.new_zeros(batch, heads, 1, channels), score], -1)
        k = torch.cat([functional.pad(k, (0, 1)), key], 2)
        q = functional.pad(q, (0, 1), value=1.0)
        if key_padding_mask is not None:
            key_padding_mask = functional.pad(key_padding_mask, (0, 1), value=False)
        # Values get a channel too: the fused kernel wants as many as the keys have.
        v = functional.pad(torch.cat([v, value], 2), (0, 1))
        return q, k, v, key_padding_mask


class FeedForward(nn.Module):
    """LN(x + FFN(x)) with a two-layer FFN."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, dim), nn.Dropout(dropout),
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply the block."""
        return self.norm(x + self.layers(x))
