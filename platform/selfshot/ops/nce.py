"""Eq. 1: the multiple-instance noise-contrastive loss."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def mil_nce_loss(
    anchors: Float[Tensor, "anchors dim"],
    keys: Float[Tensor, "keys dim"],
    positive: Bool[Tensor, "anchors keys"],
    negative: Bool[Tensor, "anchors keys"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Minus the log of the share that the positives have of positives and negatives together.

    Vectors are L2-normalised here, so the products are cosines divided by the temperature. The
    denominator sums over each key that is positive or negative once: the paper's Φ̃(v⁺) there is
    a slip. Keys that are neither (the anchor's own video) take no part. The loss is the mean
    over anchors.

    Args:
        anchors: Φ(v), with gradients.
        keys: Φ̃ of other crops of the batch and of the queue.
        positive: keys that are crops of the anchor's own video.
        negative: keys that are crops of other videos.
        temperature: τ, above 0.

    Raises:
        ValueError: the temperature is not above 0, or an anchor has no positive or no negative.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} must be above 0")
    require_pairs(positive, negative)
    cosine = F.normalize(anchors, dim=-1) @ F.normalize(keys, dim=-1).T
    logits = cosine / temperature
    among_positives = logits.masked_fill(~positive, float("-inf")).logsumexp(dim=-1)
    among_all = logits.masked_fill(~(positive | negative), float("-inf")).logsumexp(dim=-1)
    return (among_all - among_positives).mean()


def require_pairs(
    positive: Bool[Tensor, "anchors keys"], negative: Bool[Tensor, "anchors keys"]
) -> None:
    """Check that each anchor has something to be near to and something to be far from.

    Raises:
        ValueError: there is no anchor, or one has no positive or no negative key.
    """
    for name, pairs in (("positive", positive), ("negative", negative)):
        found = pairs.any(dim=-1)
        if not found.numel():
            raise ValueError("anchors: 0 received, at least 1 is needed")
        if not bool(found.all()):
            first = int((~found).nonzero()[0])
            raise ValueError(
                f"anchor {first} has no {name} key ({int((~found).sum())} of {found.numel()} "
                "anchors have none); give each video two crops, and each batch two videos"
            )
