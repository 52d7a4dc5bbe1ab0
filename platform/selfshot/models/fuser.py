"""Stage 2 of section 5: the query-support fuser (Eq. 4, Figure 4)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from selfshot.models.attention import FeedForward, MultiHeadAttention
from selfshot.models.checkpointing import call

IDENTITY_GAIN = 1.5
"""Start of Q and K in cross-attention: like attends to like before anything is learned."""

SINK_SCORE = 6.0
"""Start of the sink's score, between those of like and unlike features at that gain."""


def attention_start(*, variant: bool) -> dict[str, float]:
    """How a fuser's attention starts: from the identity and with a sink, or as the paper's."""
    return {"identity_gain": IDENTITY_GAIN, "sink_score": SINK_SCORE} if variant else {}


class FuserLayer(nn.Module):
    """Cross-enhance both branches, fuse the support into the query, feed forward.

    f_q←s = LN(E_q + MA(Q(E_q), K(E_s), V(E_s))), f_s←q likewise, then Eq. 4:
    F̃ = LN(f_q←s + MA(Q(f_q←s), K(f_s←q), V(f_s←q))) and 𝓕 = LN(F̃ + FFN(F̃)).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn_dim: int,
        dropout: float,
        *,
        variant: bool = True,
    ) -> None:
        """Build it; with `variant` its attentions start as the identity and have a sink."""
        super().__init__()
        start = attention_start(variant=variant)
        self.query_from_support = MultiHeadAttention(dim, heads, **start)
        self.support_from_query = MultiHeadAttention(dim, heads, **start)
        self.fuse = MultiHeadAttention(dim, heads, **start)
        self.query_norm = nn.LayerNorm(dim)
        self.support_norm = nn.LayerNorm(dim)
        self.fuse_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout)

    def forward(
        self,
        query: Float[Tensor, "batch query_tokens dim"],
        support: Float[Tensor, "batch support_tokens dim"],
        query_padding_mask: Tensor | None = None,
        support_padding_mask: Tensor | None = None,
        num_supports: int = 1,
    ) -> tuple[Float[Tensor, "batch query_tokens dim"], Float[Tensor, "batch support_tokens dim"]]:
        """(𝓕, f_s←q) of one layer; without support tokens all attention goes to the sink."""
        told = self.query_from_support(
            query, support, support, support_padding_mask, num_groups=num_supports
        )
        enhanced_query = self.query_norm(query + self.dropout(told))
        told = self.support_from_query(support, query, query, query_padding_mask)
        enhanced_support = self.support_norm(support + self.dropout(told))
        told = self.fuse(
            enhanced_query,
            enhanced_support,
            enhanced_support,
            support_padding_mask,
            num_groups=num_supports,
        )
        fused = self.fuse_norm(enhanced_query + self.dropout(told))
        return self.feed_forward(fused), enhanced_support


class QuerySupportFuser(nn.Module):
    """Layers of `FuserLayer`; each reads the support branch that the one before enhanced."""

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn_dim: int,
        layers: int,
        dropout: float,
        *,
        variant: bool = True,
    ) -> None:
        """Build it; see `FuserLayer`."""
        super().__init__()
        self.checkpointing = False
        self.layers = nn.ModuleList(
            FuserLayer(dim, heads, ffn_dim, dropout, variant=variant) for _ in range(layers)
        )

    def forward(
        self,
        query: Float[Tensor, "batch query_tokens dim"],
        support: Float[Tensor, "batch support_tokens dim"],
        query_padding_mask: Tensor | None = None,
        support_padding_mask: Tensor | None = None,
        num_supports: int = 1,
    ) -> Float[Tensor, "batch query_tokens dim"]:
        """E_q and E_s, of `num_supports` clips, to 𝓕."""
        for layer in self.layers:
            query, support = call(
                layer, query, support, query_padding_mask, support_padding_mask, num_supports,
                checkpointing=self.checkpointing,
            )  # fmt: skip
        return query
