"""The assembled transformer: shapes, and what supports may and may not change."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfshot.config.vis import VariantsConfig, VisConfig
from selfshot.models import attention_prior as prior
from selfshot.models import vis
from selfshot.models.backbone import SmallBackbone, normalise_frames
from selfshot.models.features import ClipFeatures, SupportFeatures, stack_supports
from selfshot.models.vis import SelfShotVIS, masks_at

BATCH, HEIGHT, WIDTH, INSTANCES, DIM = 2, 32, 24, 3, 12
ARGUMENTS = ("fuser", "clip_frames", "checkpointing")
OUTPUTS = ("foreground_logits", "boxes_cxcywh", "mask_logits", "common_logits")


def _model(**changes: Any) -> SelfShotVIS:
    torch.manual_seed(0)
    arguments = {name: changes.pop(name) for name in ARGUMENTS if name in changes}
    settings: dict[str, Any] = {
        "heads": 2, "fuser_layers": 2, "decoder_layers": 3, "ffn_dim": 13,
        "num_instances": INSTANCES,
    }  # fmt: skip
    backbone = SmallBackbone(8, DIM)
    return SelfShotVIS(backbone, VisConfig(**settings | changes), **arguments).eval()


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
@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_the_order_of_supports_means_nothing(order: list[int]) -> None:
    model, query, supports = _model(), _frames(BATCH, 3), _frames(BATCH, 5, 2, seed=1)
    plain = model(query, supports)
    assert _same(model(query, supports[:, order]), plain)
    assert not _same(model(query, supports[:, :4]), plain), "but each support counts"


@torch.no_grad()
def test_a_support_given_twice_says_nothing_new() -> None:
    """The sinks count once for each support, so their share does not fall either."""
    model, query, supports = _model(), _frames(BATCH, 3), _frames(BATCH, 1, 2, seed=1)
    features = model.encode(query, is_support=False)
    shot = model.encode(supports[:, 0], is_support=True)
    once, twice = (
        SupportFeatures(
            shot.tokens[:, None].expand(-1, shots, -1, -1),
            shot.prototype[:, None].expand(-1, shots, -1),
        )
        for shots in (1, 2)
    )
    torch.testing.assert_close(*(model._similarity(features, them) for them in (twice, once)))
    expected = model(query, supports)
    assert _same(model.predict(features, once), expected)
    assert _same(model.predict(features, twice), expected)
    assert _same(model(query, supports.expand(-1, 2, -1, -1, -1, -1)), expected)


@torch.no_grad()
def test_no_support_is_defined_in_every_spelling() -> None:
    model, query = _model(), _frames(BATCH, 3)
    none = model(query, None)
    assert all(none[name].isfinite().all() for name in OUTPUTS)
    assert _same(model(query, _frames(BATCH, 0, 2)), none)
    features = model.encode(query, is_support=False)
    assert _same(model.predict(features, None), none)
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
    shots = [model.encode(supports[:, i], is_support=True) for i in range(3)]
    assert features.shape == (3, 4, 3) and features.tokens.shape == (BATCH, 36, DIM)
    # One support is encoded as if it were alone: its positions start anew.
    together = SupportFeatures(
        torch.stack([shot.tokens for shot in shots], 1),
        torch.stack([shot.prototype for shot in shots], 1),
    )
    assert together.tokens.shape == (BATCH, 3, 24, DIM)
    assert together.prototypes.shape == (BATCH, 3, DIM + model.backbone.fine_channels)
    assert _same(model.predict(features, together), model(query, supports))


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


def test_the_prior_is_the_common_class_the_own_frame_and_the_track() -> None:
    generator, height, width, time = torch.Generator().manual_seed(0), 2, 3, 4
    common = torch.randn(BATCH, time, height, width, generator=generator) * 20
    centres = torch.rand(BATCH, INSTANCES, time, 2, generator=generator)
    bias = prior.attention_prior(common, centres)
    assert bias.shape == (BATCH, 1, INSTANCES * time, time * height * width)
    bias = bias.view(BATCH, INSTANCES, time, time, height, width)
    for b, i, t, s, y, x in np.ndindex(*bias.shape):
        place = max(-math.log1p(math.exp(-common[b, s, y, x].item())), -prior.OTHER_PLACE)
        across = centres[b, i, t, 0].item() - (x + 0.5) / width
        down = centres[b, i, t, 1].item() - (y + 0.5) / height
        far = min((across**2 + down**2) / (2 * prior.REFERENCE_REACH**2), prior.OTHER_PLACE)
        expected = place - far - (0 if s == t else prior.OTHER_FRAME)
        assert bias[b, i, t, s, y, x].item() == pytest.approx(expected, abs=1e-4)


def test_prior_boxes_are_moments_of_its_attention() -> None:
    shape = time, height, width = 4, 5, 3
    generator = torch.Generator().manual_seed(0)
    queries, pixels = INSTANCES * time, time * height * width
    bias = 3 * torch.randn(BATCH, 1, queries, pixels, generator=generator)
    boxes = prior.prior_boxes(bias, shape)
    assert boxes.shape == (BATCH, INSTANCES, time, 4)
    y, x = (np.indices((height, width)) + 0.5) / np.array([height, width])[:, None, None]
    for b, i, t in np.ndindex(BATCH, INSTANCES, time):
        scores = np.exp(bias[b, 0, i * time + t].double().numpy())
        share = (scores / scores.sum()).reshape(shape).sum(0)
        mean_x, mean_y = (share * x).sum(), (share * y).sum()
        wide = math.sqrt(12 * (share * (x - mean_x) ** 2).sum())
        high = math.sqrt(12 * (share * (y - mean_y) ** 2).sum())
        expected = [mean_x, mean_y, wide, high]
        np.testing.assert_allclose(boxes[b, i, t].numpy(), expected, rtol=0, atol=1e-5)


def test_similarity_is_the_mean_and_the_best_cosine() -> None:
    model = _model()
    sizes = [DIM, model.backbone.fine_channels]
    generator = torch.Generator().manual_seed(0)
    directions, prototypes = (
        torch.cat(
            [
                torch.nn.functional.normalize(
                    torch.randn(BATCH, count, size, generator=generator), dim=-1
                )
                for size in sizes
            ],
            -1,
        )
        for count in (7, 5)
    )
    nothing = torch.empty(0)
    query = ClipFeatures(nothing, directions, nothing, nothing, (1, 1, 7))
    similarity = model._similarity(query, SupportFeatures(nothing, prototypes))
    assert similarity.shape == (BATCH, 7, 4)
    for b, p in itertools.product(range(BATCH), range(7)):
        expected = []
        for level, channels in enumerate((slice(None, DIM), slice(DIM, None))):
            known = prototypes[b, :, channels].double().numpy()
            cosines = known @ directions[b, p, channels].double().numpy()
            for value in (cosines.mean(), cosines.max()):
                centre, scale = vis.SIMILARITY_CENTRE[level], vis.SIMILARITY_SCALE[level]
                expected.append((value - centre) / scale)
        np.testing.assert_allclose(similarity[b, p].numpy(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_prototype_is_the_mean_direction_of_objects() -> None:
    model = _model()
    clip = _frames(BATCH, 2)
    features = model.encode(clip, is_support=True)
    tokens, fine = model.backbone(normalise_frames(clip).flatten(0, 1))
    height, width = tokens.shape[-2:]
    # Each token's stride-4 features are the mean of the four cells that it covers.
    parts = fine.unflatten(3, (width, 2)).unflatten(2, (height, 2)).mean((3, 5))
    flat, flat_parts = (
        x.unflatten(0, (BATCH, 2)).movedim(2, -1).flatten(1, 3) for x in (tokens, parts)
    )
    for b in range(BATCH):
        objects = model.object_head(flat[b])[:, 0].sigmoid().double().numpy()
        rows = []
        for values in (flat[b], flat_parts[b]):
            units = (values / values.norm(dim=-1, keepdim=True)).double().numpy()
            mean = objects @ units
            rows.append((units, mean / np.linalg.norm(mean)))
        units, expected = (np.concatenate(part, -1) for part in zip(*rows, strict=True))
        np.testing.assert_allclose(features.directions[b].numpy(), units, rtol=0, atol=1e-5)
        np.testing.assert_allclose(features.prototype[b].numpy(), expected, rtol=0, atol=1e-5)


def test_every_weight_is_trained() -> None:
    model = _model(deformable=True).train()
    outputs = model(_frames(BATCH, 2), _frames(BATCH, 2, 2, seed=1))
    layers = [*outputs["auxiliary"], outputs]
    loss = outputs["mask_logits"].square().mean() + outputs["common_logits"].square().mean()
    for layer in layers:
        loss = loss + layer["foreground_logits"].square().mean() + layer["boxes_cxcywh"].mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    # A softmax without a sink does not change when all keys move alike.
    without_sink = [".attention.k.bias", "self_attention.k.bias", "cross_attention.k.bias"]
    stages = ("fuser.", "decoder.", "segmenter.", "similarity_", "common_head.", "object_head.")
    still = [
        name
        for name, gradient in gradients.items()
        if name.startswith(stages) and not name.endswith(tuple(without_sink))
        if gradient is None or not gradient.isfinite().all() or not gradient.any()
    ]
    assert not still


PAPER = dict.fromkeys(VariantsConfig.model_fields, False)


def _paper_model(time: int = 3, **changes: Any) -> SelfShotVIS:
    settings = {"decoder_layers": 2, "dropout": 0.1, "deformable": True, "variants": PAPER}
    return _model(**{**settings, "clip_frames": time, **changes})


class TestPaper:
    """The same definition with every variant off."""

    @pytest.mark.parametrize("shots", [0, 1, 3])
    def test_outputs(self, shots: int) -> None:
        model = _paper_model()
        with torch.no_grad():
            outputs = model(_frames(BATCH, 3), _frames(BATCH, shots, 2, seed=1))
        assert outputs["mask_logits"].shape == (BATCH, INSTANCES, 3, HEIGHT // 8, WIDTH // 8)
        assert outputs["boxes_cxcywh"].shape == (BATCH, INSTANCES, 3, 4)
        assert "common_logits" not in outputs and model.mask_stride == 8
        assert all(outputs[name].isfinite().all() for name in OUTPUTS[:3])

    def test_nothing_of_the_variants_is_left(self) -> None:
        names = [name for name, _ in _paper_model().named_parameters()]
        marks = ("sink", "similarity", "common", "object_head", "reference", "segmenter.fine",
                 "segmenter.context")  # fmt: skip
        assert not [name for name in names if any(mark in name for mark in marks)]
        assert _paper_model().instance_queries.shape == (INSTANCES, 3, DIM)

    @torch.no_grad()
    def test_supports_matter_and_their_order_does_not(self) -> None:
        model, query, supports = _paper_model(), _frames(BATCH, 3), _frames(BATCH, 3, 2, seed=1)
        whole, other = model(query, supports), model(query, supports[:, [2, 0, 1]])
        fewer = model(query, supports[:, :1])
        for name in ("foreground_logits", "boxes_cxcywh", "mask_logits"):
            torch.testing.assert_close(other[name], whole[name], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(fewer["boxes_cxcywh"], whole["boxes_cxcywh"], atol=1e-5)

    def test_every_weight_is_trained(self) -> None:
        model = _paper_model().train()
        outputs = model(_frames(BATCH, 3), _frames(BATCH, 2, 2, seed=1))
        loss = outputs["mask_logits"].square().mean()
        for layer in [*outputs["auxiliary"], outputs]:
            loss = loss + layer["foreground_logits"].square().mean()
            loss = loss + layer["boxes_cxcywh"].square().mean()
        loss.backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None]

    @pytest.mark.parametrize("switch", sorted(PAPER))
    def test_each_variant_by_itself(self, switch: str) -> None:
        model = _paper_model(variants=PAPER | {switch: True})
        with torch.no_grad():
            outputs = model(_frames(1, 3), _frames(1, 2, 2, seed=1))
        plain = _paper_model()
        with torch.no_grad():
            others = plain(_frames(1, 3), _frames(1, 2, 2, seed=1))
        masks = outputs["mask_logits"], others["mask_logits"]
        assert masks[0].isfinite().all()
        assert masks[0].shape != masks[1].shape or not torch.equal(*masks)

    @torch.no_grad()
    def test_starts_from_zeros(self) -> None:
        model = _paper_model()
        seen: list[Tensor] = []
        model.decoder.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        model(_frames(1, 3), None)
        assert not seen[0].any()

    def test_a_longer_clip_has_no_instance_queries(self) -> None:
        with pytest.raises(AssertionError, match="longer than T"):
            _paper_model(time=2)(_frames(1, 3), None)


@pytest.mark.parametrize("paper", [False, True])
def test_checkpointing_changes_nothing(paper: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vis, "FRAMES_AT_ONCE", 2)  # of the seven frames of query and supports
    query, supports = _frames(1, 3), _frames(1, 2, 2, seed=1)
    gradients = []
    for checkpointing in (False, True):
        make = _paper_model if paper else _model
        model = make(checkpointing=checkpointing, dropout=0.3).train()
        model.backbone.freeze_norms = True
        model.train()
        torch.manual_seed(5)
        outputs = model(query, supports)
        loss = outputs["mask_logits"].square().mean() + outputs["boxes_cxcywh"].mean()
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_only_what_is_read_is_kept() -> None:
    clip = _frames(BATCH, 2)
    assert _model().encode(clip, is_support=False).fine.shape == (BATCH, 2, 16, 8, 6)
    assert not _model().encode(clip, is_support=True).fine.numel()
    assert not _paper_model().encode(clip, is_support=False).fine.numel()


@torch.no_grad()
@pytest.mark.parametrize("paper", [False, True])
def test_padding_is_never_read(paper: bool) -> None:
    """Padded clips give what they give alone, whatever the padding holds."""
    model = _paper_model(time=5) if paper else _model()
    lengths, shot_lengths = [3, 5, 3], [[2, 1], [3, 3], [3, 2]]
    query, supports = _frames(3, 5), _frames(3, 2, 3, seed=1)
    outputs = model(query, supports, lengths, shot_lengths)
    spoilt_query, spoilt_supports = query.clone(), supports.clone()
    for b, length in enumerate(lengths):
        spoilt_query[b, length:] = 77
        for k, shot_length in enumerate(shot_lengths[b]):
            spoilt_supports[b, k, shot_length:] = 99
    spoilt = model(spoilt_query, spoilt_supports, lengths, shot_lengths)
    names = OUTPUTS[:3] if paper else OUTPUTS
    for name in names:
        assert torch.equal(spoilt[name], outputs[name])
    for b, length in enumerate(lengths):
        features = model.encode(query[b : b + 1, :length], is_support=False)
        shots = [
            model.encode(supports[b : b + 1, k, :shot_length], is_support=True)
            for k, shot_length in enumerate(shot_lengths[b])
        ]
        alone = model.predict(features, stack_supports([shots]))
        for name in names:
            whole, part = outputs[name][b], alone[name][0]
            time = 0 if name == "common_logits" else 1
            torch.testing.assert_close(
                whole.narrow(time, 0, length), part, rtol=1e-3, atol=1e-4
            )
            assert not whole.narrow(time, length, 5 - length).any()
    assert len(outputs["auxiliary"]) == len(alone["auxiliary"])
    assert outputs["auxiliary"][0]["boxes_cxcywh"].shape == (3, INSTANCES, 5, 4)


@torch.no_grad()
def test_features_that_were_kept_are_as_good_as_fresh_ones() -> None:
    model, query, supports = _model(), _frames(BATCH, 3), _frames(BATCH, 2, 5, seed=1)
    kept = [model.encode(supports[b], is_support=True).clips() for b in range(BATCH)]
    features = model.encode(query, is_support=False)
    assert _same(model.predict(features, stack_supports(kept)), model(query, supports))
    other = model.predict(model.encode(query.flip(1), is_support=False), stack_supports(kept))
    assert _same(other, model(query.flip(1), supports)), "and serve another query"


def test_masks_at() -> None:
    logits = torch.full((2, 3, 5, 7, 11), -1.0)
    logits[1, 2, 4, :3] = 1.0
    masks = masks_at(logits, 28, 44)
    assert masks.shape == (2, 3, 5, 28, 44) and masks.dtype == torch.bool
    assert masks[1, 2, 4, :12].all() and not masks[1, 2, 4, 12:].any()
    assert masks.sum() == 12 * 44
    assert masks_at(logits[0, 0], 7, 11).shape == (5, 7, 11)
