"""Eq. 2, 6 and 7: the differentiable ranking loss."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from selfshot.ops.nce import require_pairs

RankForm = Literal["ap", "paper"]


def rank_loss(
    anchors: Float[Tensor, "anchors dim"],
    keys: Float[Tensor, "keys dim"],
    positive: Bool[Tensor, "anchors keys"],
    negative: Bool[Tensor, "anchors keys"],
    *,
    temperature: float,
    form: RankForm = "ap",
) -> Float[Tensor, ""]:
    """Minus the log of how high the positives rank above the negatives, the mean over anchors.

    Each positive b has the ratio R(b, positives) / R(b, positives and negatives), which is 1
    where no negative is nearer to the anchor than b. R is Eq. 6: one, and for each other key a
    sigmoid of the difference of cosines (Eq. 7) divided by the temperature.

    Args:
        anchors: Φ(v), with gradients.
        keys: Φ̃ of other crops of the batch and of the queue.
        positive: keys that are crops of the anchor's own video.
        negative: keys that are crops of other videos.
        temperature: of the sigmoid, above 0. Eq. 6 prints 2, which is almost linear over the
            cosines' range; Smooth-AP uses 0.01.
        form: "ap" takes the mean of the ratios inside the logarithm, so a perfect ranking
            costs 0; "paper" takes their sum, as Eq. 2 prints it.

    Raises:
        ValueError: the temperature is not above 0, or an anchor has no positive or no negative.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} must be above 0")
    require_pairs(positive, negative)
    cosine = F.normalize(anchors, dim=-1) @ F.normalize(keys, dim=-1).T

    # Only positives are ranked: (anchors, ranked, keys) instead of (anchors, keys, keys).
    num_ranked = int(positive.sum(dim=-1).max())
    is_ranked, ranked = positive.to(torch.uint8).topk(num_ranked, dim=-1)
    is_ranked = is_ranked.bool()
    difference = cosine[:, None, :] - cosine.gather(1, ranked)[:, :, None]
    above = torch.sigmoid(difference / temperature)

    # The key itself is in both sums with sigmoid(0) = 1/2; Eq. 6 leaves it out.
    among_positives = 0.5 + torch.einsum("ark,ak->ar", above, positive.to(above.dtype))
    among_all = 0.5 + torch.einsum("ark,ak->ar", above, (positive | negative).to(above.dtype))
    ratio = (among_positives / among_all * is_ranked).sum(dim=-1)
    if form == "ap":
        ratio = ratio / is_ranked.sum(dim=-1)
    return -ratio.log().mean()
