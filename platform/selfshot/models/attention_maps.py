"""Where the instances look, before and after the fuser (Figure 5)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from selfshot.models.features import ClipFeatures, SupportFeatures
from selfshot.models.vis import SelfShotVIS


@torch.no_grad()
def attention_maps(
    model: SelfShotVIS, query: ClipFeatures, support: SupportFeatures | None
) -> tuple[Float[Tensor, "batch time height width"], Float[Tensor, "batch time height width"]]:
    """Attention of the instance features 𝓓 to E_q and to 𝓕, on one scale for both.

    The attention is the segmenter's own: each instance of a frame against the pixels of that
    frame, a softmax over them, the mean over heads. Instances count by their foreground
    probability. The two maps differ in nothing but the pixels that are attended to: the encoder's
    output, or what the fuser made of it with the supports.

    Returns:
        before and after, each divided by the larger of both maxima of its clip.
    """
    fused, _ = model.fuse(query, support)
    outputs = model.predict(query, support)
    instances = outputs["instances"]
    weight = outputs["foreground_logits"].softmax(-1)[..., 0]
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-6)
    queries = model.segmenter.instance_projection(instances)
    queries = queries.unflatten(-1, (model.segmenter.heads, -1))
    maps = []
    for pixels in (query.tokens, fused):
        located = model.segmenter_pixels(pixels, query.shape)
        frames = located.unflatten(1, query.shape).permute(0, 1, 4, 2, 3).flatten(0, 1)
        scores = model.segmenter.attention_scores(
            queries, model.segmenter.pixel_projection(frames)
        )
        batch, count, time = weight.shape
        attention = scores.flatten(2).softmax(-1).mean(1).unflatten(0, (batch, time, count))
        heat = (attention * weight.transpose(1, 2)[..., None]).sum(2)
        maps.append(heat.unflatten(-1, query.shape[1:]))
    before, after = maps
    largest = torch.maximum(before.flatten(1).amax(1), after.flatten(1).amax(1))
    scale = largest.clamp_min(1e-9)[:, None, None, None]
    return before / scale, after / scale
