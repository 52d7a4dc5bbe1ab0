"""FST [74] in our pipeline (B.1): another structure in place of the common transformer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from selfshot.models.attention import FeedForward, MultiHeadAttention
from selfshot.models.checkpointing import call
from selfshot.models.fuser import attention_start
from selfshot.models.vis import SelfShotVIS


class CommonLayer(nn.Module):
    """The query attends to itself, then to its supports, then the feed-forward block.

    One way only: no support is told what the query shows. Our fuser tells it (f_s←q) before
    Eq. 4 reads it, and has no attention of the query to itself.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn_dim: int,
        dropout: float,
        *,
        variant: bool,
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, heads)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, heads, **attention_start(variant=variant))
        self.cross_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout)

    def forward(
        self,
        query: Float[Tensor, "batch query_tokens dim"],
        support: Float[Tensor, "batch support_tokens dim"],
        support_padding_mask: Tensor | None,
        num_supports: int,
    ) -> Float[Tensor, "batch query_tokens dim"]:
        """One layer."""
        told = self.self_attention(query, query, query)
        query = self.self_norm(query + self.dropout(told))
        told = self.cross_attention(
            query, support, support, support_padding_mask, num_groups=num_supports
        )
        return self.feed_forward(self.cross_norm(query + self.dropout(told)))


class CommonEncoder(nn.Module):
    """E_q and E_s to the query's tokens with what they have in common: FST's side of the fuser."""

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
            CommonLayer(dim, heads, ffn_dim, dropout, variant=variant) for _ in range(layers)
        )

    def forward(
        self,
        query: Float[Tensor, "batch query_tokens dim"],
        support: Float[Tensor, "batch support_tokens dim"],
        query_padding_mask: Tensor | None = None,
        support_padding_mask: Tensor | None = None,
        num_supports: int = 1,
    ) -> Float[Tensor, "batch query_tokens dim"]:
        """All layers, as `QuerySupportFuser` is called."""
        assert query_padding_mask is None, "clips of one length are computed together"
        for layer in self.layers:
            query = call(
                layer, query, support, support_padding_mask, num_supports,
                checkpointing=self.checkpointing,
            )  # fmt: skip
        return query


class FewShotTransformer(SelfShotVIS):
    """Our pipeline around FST's encoder-decoder.

    Backbone, positions, heads, segmenter and losses are those of `SelfShotVIS`, the shared
    encoder reads supports and query by themselves, and the decoder reads what `CommonEncoder`
    made. Its arguments are ours: `fuser_layers` is the number of its common layers.
    """

    fuser_class = CommonEncoder
