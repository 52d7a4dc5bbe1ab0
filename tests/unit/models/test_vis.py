"""The assembled transformer: shapes, and what supports may and may not change."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from selfshot.models import vis
from selfshot.models.backbone import SmallBackbone
from selfshot.models.vis import SelfShotVIS, masks_at

BATCH, HEIGHT, WIDTH, INSTANCES, DIM = 2, 32, 24, 3, 12
OUTPUTS = ("foreground_logits", "boxes_cxcywh", "mask_logits", "common_logits")


def _model(**changes: Any) -> SelfShotVIS:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "heads": 2,
        "encoder_layers": 1,
        "fuser_layers": 2,
        "decoder_layers": 3,
        "ffn_dim": 13,
        "dropout": 0.0,
        "num_instances": INSTANCES,
        "deformable": False,
        "query_positions": True,
        "support_positions": True,
    }
    return SelfShotVIS(SmallBackbone(8, DIM), **(settings | changes)).eval()


def _frames(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, HEIGHT, WIDTH, 3), generator=generator).to(torch.uint8)


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return all(torch.allclose(ours[k], theirs[k], rtol=1e-3, atol=1e-4) for k in OUTPUTS)


@pytest.mark.parametrize("time", [1, 5])
@pytest.mark.parametrize("shots", [1, 3])
def test_output_shapes(time: int, shots: int) -> None:
    with torch.no_grad():
        outputs = _model()(_frames(BATCH, time), _frames(BATCH, shots, 2, seed=1))
    assert outputs["foreground_logits"].shape == (BATCH, INSTANCES, time, 2)
    assert outputs["boxes_cxcywh"].shape == (BATCH, INSTANCES, time, 4)
    assert outputs["mask_logits"].shape == (BATCH, INSTANCES, time, HEIGHT // 4, WIDTH // 4)
    assert outputs["common_logits"].shape == (BATCH, time, HEIGHT // 8, WIDTH // 8)
    assert outputs["boxes_cxcywh"].min() >= 0 and outputs["boxes_cxcywh"].max() <= 1
    assert len(outputs["auxiliary"]) == 2
    for layer in outputs["auxiliary"]:
        assert set(layer) == {"foreground_logits", "boxes_cxcywh"}
        assert layer["boxes_cxcywh"].shape == outputs["boxes_cxcywh"].shape


@torch.no_grad()
def test_the_order_of_supports_means_nothing() -> None:
    model, query, supports = _model(), _frames(BATCH, 3), _frames(BATCH, 3, 2, seed=1)
    plain = model(query, supports)
    assert _same(model(query, supports[:, [2, 0, 1]]), plain)
    assert not _same(model(query, supports[:, :2]), plain), "but each support counts"


@torch.no_grad()
def test_no_support_is_defined_in_every_spelling() -> None:
    model, query = _model(), _frames(BATCH, 3)
    none = model(query, None)
    assert all(none[name].isfinite().all() for name in OUTPUTS)
    assert _same(model(query, _frames(BATCH, 0, 2)), none)
    features = model.encode(query, is_support=False)
    assert _same(model.predict(features, features.tokens[:, :0]), none)
    assert not _same(model(query, _frames(BATCH, 1, 2, seed=1)), none)


@torch.no_grad()
def test_without_fuser_supports_are_not_used() -> None:
    model, query = _model(fuser=False), _frames(BATCH, 3)
    assert _same(model(query, _frames(BATCH, 2, 2, seed=1)), model(query, None))
    assert not [name for name, _ in model.named_parameters() if "fuser" in name]


@torch.no_grad()
def test_together_is_one_after_another() -> None:
    model, query, supports = _model(), _frames(BATCH, 3), _frames(BATCH, 3, 2, seed=1)
    features = model.encode(query, is_support=False)
    shots = [model.encode(supports[:, i], is_support=True).tokens for i in range(3)]
    assert features.shape == (3, 4, 3) and features.tokens.shape == (BATCH, 36, DIM)
    # One support is encoded as if it were alone: its positions start anew.
    assert _same(model.predict(features, torch.cat(shots, 1)), model(query, supports))


@torch.no_grad()
@pytest.mark.parametrize("branch", ["query", "support"])
def test_each_branch_has_its_own_switch_of_positions(branch: str) -> None:
    clip, backward = _frames(1, 3), _frames(1, 3).flip(1)
    is_support = branch == "support"
    for switched in (True, False):
        model = _model(**{f"{branch}_positions": switched})
        forward = model.encode(clip, is_support=is_support).tokens.unflatten(1, (3, 12))
        reverse = model.encode(backward, is_support=is_support).tokens.unflatten(1, (3, 12))
        same = torch.allclose(forward.flip(1), reverse, rtol=1e-4, atol=1e-5)
        assert same != switched
        other = model.encode(clip, is_support=not is_support).tokens.unflatten(1, (3, 12))
        assert torch.allclose(other, forward) == switched


@torch.no_grad()
def test_clips_of_a_batch_do_not_mix() -> None:
    model, query, supports = _model(), _frames(BATCH, 3), _frames(BATCH, 2, 2, seed=1)
    whole, second = model(query, supports), model(query[1:], supports[1:])
    assert _same({name: whole[name][1:] for name in OUTPUTS}, second)


def test_guide_is_the_common_class_and_the_own_frame() -> None:
    common = torch.randn(BATCH, 4, 5, generator=torch.Generator().manual_seed(0)) * 20
    bias = _model()._guide(common)
    assert bias.shape == (BATCH, 1, INSTANCES * 4, 4 * 5)
    for b, i, t, s, p in itertools.product(*map(range, (BATCH, INSTANCES, 4, 4, 5))):
        place = max(-math.log1p(math.exp(-common[b, s, p].item())), -vis.OTHER_PLACE)
        expected = place - (0 if s == t else vis.OTHER_FRAME)
        assert bias[b, 0, i * 4 + t, s * 5 + p].item() == pytest.approx(expected, abs=1e-4)


def test_every_weight_is_trained() -> None:
    model = _model(deformable=True).train()
    outputs = model(_frames(BATCH, 2), _frames(BATCH, 2, 2, seed=1))
    layers = [*outputs["auxiliary"], outputs]
    loss = outputs["mask_logits"].square().mean() + outputs["common_logits"].square().mean()
    for layer in layers:
        loss = loss + layer["foreground_logits"].square().mean() + layer["boxes_cxcywh"].mean()
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_masks_at() -> None:
    logits = torch.full((2, 3, 5, 7, 11), -1.0)
    logits[1, 2, 4, :3] = 1.0
    masks = masks_at(logits, 28, 44)
    assert masks.shape == (2, 3, 5, 28, 44) and masks.dtype == torch.bool
    assert masks[1, 2, 4, :12].all() and not masks[1, 2, 4, 12:].any()
    assert masks.sum() == 12 * 44
    assert masks_at(logits[0, 0], 7, 11).shape == (5, 7, 11)
