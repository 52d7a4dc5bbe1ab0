"""Figure 5: where the instances look, before and after the fuser."""

from __future__ import annotations

import numpy as np
import torch

from selfshot.config.vis import VisConfig
from selfshot.models.attention_maps import attention_maps
from selfshot.models.backbone import SmallBackbone
from selfshot.models.vis import SelfShotVIS

BATCH, INSTANCES, TIME, HEADS, DIM = 2, 3, 5, 2, 12


def _model() -> SelfShotVIS:
    torch.manual_seed(0)
    section = VisConfig(heads=HEADS, decoder_layers=1, ffn_dim=8, num_instances=INSTANCES)
    return SelfShotVIS(SmallBackbone(8, DIM), section).eval()


def test_maps_are_the_segmenters_attention() -> None:
    model = _model()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (BATCH, TIME, 24, 32, 3), generator=generator).to(torch.uint8)
    query = model.encode(frames, is_support=False)
    support = model.encode(frames.flip(1)[:, :2], is_support=True).as_supports(BATCH)
    with torch.no_grad():
        maps = attention_maps(model, query, support)
        fused, _ = model.fuse(query, support)
        outputs = model.predict(query, support)
    expected = np.zeros((2, BATCH, TIME, 3, 4))
    head = model.segmenter
    for which, pixels in enumerate((query.tokens, fused)):
        located = (pixels + model._positions(query.shape, pixels)).detach()
        located = located.unflatten(1, query.shape)
        for b, t in np.ndindex(BATCH, TIME):
            weight = outputs["foreground_logits"][b, :, t].softmax(-1)[:, 0]
            weight = weight / outputs["foreground_logits"][b, :, t].softmax(-1)[:, 0].sum()
            keys = head.pixel_projection(located[b, t].permute(2, 0, 1)[None])[0].detach()
            for i in range(INSTANCES):
                q = head.instance_projection(outputs["instances"][b, i, t]).detach()
                for h in range(HEADS):
                    part = slice(h * DIM // HEADS, (h + 1) * DIM // HEADS)
                    scores = torch.einsum("c,cyx->yx", q[part], keys[part]) * (DIM / HEADS) ** -0.5
                    share = scores.flatten().softmax(0).view(3, 4)
                    expected[which, b, t] += (share * weight[i] / HEADS).numpy()
    expected /= expected.max((0, 2, 3, 4), keepdims=True)
    for ours, theirs in zip(maps, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=1e-4)


def test_without_fuser_nothing_changes_between() -> None:
    torch.manual_seed(0)
    model = _model()
    model.fuser = None
    frames = torch.randint(0, 256, (1, 2, 24, 32, 3)).to(torch.uint8)
    with torch.no_grad():
        before, after = attention_maps(model, model.encode(frames, is_support=False), None)
    assert torch.equal(before, after)
