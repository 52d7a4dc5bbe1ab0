"""Stages 1 and 3 of section 5: the spatio-temporal encoder and decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfshot.models.attention import FeedForward, MultiHeadAttention
from selfshot.models.checkpointing import call


class EncoderLayer(nn.Module):
    """Self-attention over all pixels of all frames, then the feed-forward block."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        positions: Float[Tensor, "1 tokens dim"] | None,
        padding_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """One layer; positions are added to queries and keys, never to values."""
        located = tokens if positions is None else tokens + positions
        attended = self.attention(located, located, tokens, padding_mask)
        tokens = self.norm(tokens + self.dropout(attended))
        return self.feed_forward(tokens)


class SpatioTemporalEncoder(nn.Module):
    """Stage 1, shared by query and supports: f to E."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.checkpointing = False
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
            tokens = call(layer, tokens, positions, padding_mask, checkpointing=self.checkpointing)
        return tokens


class DecoderLayer(nn.Module):
    """Self-attention of instance queries, cross-attention to the clip, feed-forward."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, heads)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout)

    def forward(
        self,
        instances: Float[Tensor, "batch queries dim"],
        instance_positions: Float[Tensor, "batch queries dim"],
        memory: Float[Tensor, "batch tokens dim"],
        bias: Float[Tensor, "batch 1 queries tokens"] | None = None,
        values: Float[Tensor, "batch tokens dim"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """One layer; `bias` is added to the cross-attention's scores."""
        located = instances + instance_positions
        attended = self.self_attention(located, located, instances)
        instances = self.self_norm(instances + self.dropout(attended))
        located = instances + instance_positions
        read = memory if values is None else values
        attended = self.cross_attention(located, memory, read, bias=bias)
        return self.feed_forward(self.cross_norm(instances + self.dropout(attended)))


class SpatioTemporalDecoder(nn.Module):
    """Stage 3: N = n·T instance queries and 𝓕 to the instance features 𝓓."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.checkpointing = False
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, ffn_dim, dropout) for _ in range(layers)
        )

    def forward(
        self,
        instance_positions: Float[Tensor, "batch queries dim"],
        memory: Float[Tensor, "batch tokens dim"],
        bias: Float[Tensor, "batch 1 queries tokens"] | None = None,
        values: Float[Tensor, "batch tokens dim"] | None = None,
        *,
        from_zeros: bool = False,
    ) -> list[Float[Tensor, "batch queries dim"]]:
        """Instance features after every layer, the last one last (auxiliary losses).

        Args:
            instance_positions: the instance queries, added in every attention.
            memory: 𝓕 with its positions, what is compared; without `values` also what is read:
                the decoder then reads where a pixel is from its value too, as one shallow
                encoder leaves too little of the positions in 𝓕 to tell a box from it.
            bias: added to the scores of the cross-attention.
            values: what is read instead.
            from_zeros: start from zeros, as in DETR, instead of from the instance queries. The
                norm after the first self-attention then divides nearly nothing by nearly
                nothing, and its gradient drowns all others when the norm is clipped.
        """
        instances = torch.zeros_like(instance_positions) if from_zeros else instance_positions
        outputs = []
        for layer in self.layers:
            instances = call(
                layer, instances, instance_positions, memory, bias, values,
                checkpointing=self.checkpointing,
            )  # fmt: skip
            outputs.append(instances)
        return outputs
