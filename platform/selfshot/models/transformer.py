"""Stages 1 and 3 of section 5: the spatio-temporal encoder and decoder."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from selfshot.models.attention import FeedForward, MultiHeadAttention


class EncoderLayer(nn.Module):
    """Self-attention over all pixels of all frames, then the feed-forward block."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        positions: Float[Tensor, "1 tokens dim"] | None,
        padding_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """One layer; positions are added to queries and keys, never to values."""
        located = tokens if positions is None else tokens + positions
        tokens = self.norm(tokens + self.attention(located, located, tokens, padding_mask))
        return self.feed_forward(tokens)


class SpatioTemporalEncoder(nn.Module):
    """Stage 1, shared by query and supports: f to E."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, heads, ffn_dim, dropout) for _ in range(layers)
        )

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        positions: Float[Tensor, "1 tokens dim"] | None,
        padding_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """All layers; with none of them E = f (Table 3's row without encoder)."""
        for layer in self.layers:
            tokens = layer(tokens, positions, padding_mask)
        return tokens


class DecoderLayer(nn.Module):
    """Self-attention of instance queries, cross-attention to the clip, feed-forward."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, heads)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout)

    def forward(
        self,
        instances: Float[Tensor, "batch queries dim"],
        instance_positions: Float[Tensor, "batch queries dim"],
        memory: Float[Tensor, "batch tokens dim"],
        bias: Float[Tensor, "batch 1 queries tokens"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """One layer; `bias` is added to the cross-attention's scores."""
        located = instances + instance_positions
        instances = self.self_norm(instances + self.self_attention(located, located, instances))
        located = instances + instance_positions
        attended = self.cross_attention(located, memory, memory, bias=bias)
        return self.feed_forward(self.cross_norm(instances + attended))


class SpatioTemporalDecoder(nn.Module):
    """Stage 3: N = n·T instance queries and 𝓕 to the instance features 𝓓."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, ffn_dim, dropout) for _ in range(layers)
        )

    def forward(
        self,
        instance_positions: Float[Tensor, "batch queries dim"],
        memory: Float[Tensor, "batch tokens dim"],
        bias: Float[Tensor, "batch 1 queries tokens"] | None = None,
    ) -> list[Float[Tensor, "batch queries dim"]]:
        """Instance features after every layer, the last one last (auxiliary losses).

        `memory` carries its positions: the decoder reads where a pixel is from its value too,
        as one shallow encoder leaves too little of the positions in 𝓕 to tell a box from it.
        """
        # Not zeros: the norm after the first self-attention would then divide nearly nothing by
        # nearly nothing, and its gradient would drown all others when the norm is clipped.
        instances = instance_positions
        outputs = []
        for layer in self.layers:
            instances = layer(instances, instance_positions, memory, bias)
            outputs.append(instances)
        return outputs
