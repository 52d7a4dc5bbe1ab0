"""The methods beside the paper's, under its interface."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfshot.config.vis import VisConfig
from selfshot.models.backbone import SmallBackbone
from selfshot.models.baselines import siamese_mask_rcnn
from selfshot.models.baselines.siamese_mask_rcnn import (
    SURE,
    Matching,
    SiameseMaskRcnn,
    Size,
    frame_targets,
)
from selfshot.models.features import stack_supports
from selfshot.models.methods import build_vis
from selfshot.models.vis_model import VisModel

DIM, INSTANCES, TIME, HEIGHT, WIDTH = 12, 3, 5, 32, 48
METHODS = ("self_shot", "few_shot_transformer", "siamese_mask_rcnn")
SIZE = Size(11, 17, 1, 3, 5, (2.0, 4.0), proposals=13, samples=8)


def _model(method: str, **changes: Any) -> VisModel:
    torch.manual_seed(3)
    backbone = SmallBackbone(8, DIM)
    if method == "siamese_mask_rcnn":
        return SiameseMaskRcnn(backbone, INSTANCES, size=SIZE, **changes).eval()
    fuser = changes.pop("fuser", True)
    section = {
        "method": method, "heads": 2, "fuser_layers": 2, "decoder_layers": 1, "ffn_dim": 20,
        "num_instances": INSTANCES,
    }  # fmt: skip
    return build_vis(backbone, VisConfig(**section | changes), fuser=fuser).eval()


def _clips(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Blocks, so that neighbouring pixels have something in common.
    small = torch.randint(0, 256, (*shape, HEIGHT // 8, WIDTH // 8, 3), generator=generator)
    return small.repeat_interleave(8, -3).repeat_interleave(8, -2).to(torch.uint8)


@torch.no_grad()
def _predict(model: VisModel, query: torch.Tensor, shots: list[list[torch.Tensor]] | None) -> Any:
    supports = None
    if shots is not None:
        supports = stack_supports(
            [[model.encode(clip[None], is_support=True) for clip in clips] for clips in shots]
        )
    return model.predict(model.encode(query, is_support=False), supports)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shots", [None, 1, 3])
def test_outputs_are_of_one_form(method: str, shots: int | None) -> None:
    model = _model(method)
    query = _clips(2, TIME)
    supports = None
    if shots:
        # Supports of other lengths than the query's, and than each other's.
        clips = [_clips(2 + s, seed=s + 1) for s in range(shots)]
        supports = [clips, clips[::-1]]
    outputs = _predict(model, query, supports)
    stride = 2 if method == "siamese_mask_rcnn" else 4
    assert model.mask_stride == stride
    # The other method's masks have the frames' own pixels.
    cells = 1 if method == "siamese_mask_rcnn" else stride
    assert outputs["foreground_logits"].shape == (2, INSTANCES, TIME, 2)
    assert outputs["boxes_cxcywh"].shape == (2, INSTANCES, TIME, 4)
    masks = outputs["mask_logits"]
    assert masks.shape == (2, INSTANCES, TIME, HEIGHT // cells, WIDTH // cells)
    assert outputs["instances"].shape[:3] == (2, INSTANCES, TIME)
    assert all(outputs[name].isfinite().all() for name in ("foreground_logits", "mask_logits"))


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_supports_does_not_matter(method: str) -> None:
    model = _model(method)
    query, clips = _clips(1, TIME), [_clips(4, seed=s) for s in (5, 6, 7)]
    one, other = (_predict(model, query, [order]) for order in (clips, clips[::-1]))
    for name in ("foreground_logits", "boxes_cxcywh", "mask_logits"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_support_changes_the_answer_and_twice_the_same_does_not(method: str) -> None:
    model = _model(method)
    query, clip = _clips(1, TIME), _clips(4, seed=5)
    one = _predict(model, query, [[clip]])["foreground_logits"]
    twice = _predict(model, query, [[clip, clip]])["foreground_logits"]
    torch.testing.assert_close(one, twice, rtol=1e-3, atol=1e-4)
    other = _predict(model, query, [[_clips(4, seed=9)]])["foreground_logits"]
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_clips_of_a_batch_do_not_see_each_other(method: str) -> None:
    model = _model(method)
    query, clips = _clips(2, TIME), [_clips(4, seed=s) for s in (5, 6)]
    together = _predict(model, query, [[clips[0]], [clips[1]]])
    for b in range(2):
        alone = _predict(model, query[b : b + 1], [[clips[b]]])
        for name in ("foreground_logits", "mask_logits"):
            torch.testing.assert_close(together[name][b], alone[name][0], rtol=1e-3, atol=1e-3)


def test_no_support_is_told_what_the_query_shows() -> None:
    """FST's one way: its common layers leave the support branch as it was encoded."""
    model = _model("few_shot_transformer")
    assert not [name for name, _ in model.named_parameters() if "support_from_query" in name]
    ours = _model("self_shot")
    assert [name for name, _ in ours.named_parameters() if "support_from_query" in name]


def test_matching_compares_with_the_prototype() -> None:
    matching = Matching(7)
    features, prototypes = torch.randn(3, 7, 4, 5), torch.randn(3, 7)
    apart = (features - prototypes[:, :, None, None]).abs()
    weight, bias = matching.reduce.weight[:, :, 0, 0], matching.reduce.bias
    expected = torch.einsum("oi,bihw->bohw", weight, torch.cat([features, apart], 1))
    expected = (expected + bias[:, None, None]).clamp_min(0)
    torch.testing.assert_close(matching(features, prototypes), expected)


def _mask_rcnn() -> SiameseMaskRcnn:
    model = _model("siamese_mask_rcnn")
    assert isinstance(model, SiameseMaskRcnn)
    return model


def test_padding_is_in_no_prototype() -> None:
    model = _mask_rcnn()
    clip = _clips(1, 4, seed=5)
    padded = torch.cat([clip, _clips(1, 3, seed=8)], 1)
    valid = torch.tensor([[True] * 4 + [False] * 3])
    with torch.no_grad():
        alone = model.encode(clip, is_support=True).prototype
        cut = model._prototypes(*model._pyramid(padded), valid)
    torch.testing.assert_close(cut, alone, rtol=1e-4, atol=1e-5)


def _targets(rng: torch.Generator, batch: int) -> list[dict[str, torch.Tensor]]:
    """Two tracks a clip, each a rectangle."""
    targets = []
    for _ in range(batch):
        masks = torch.zeros(2, TIME, HEIGHT, WIDTH)
        boxes = torch.zeros(2, TIME, 4)
        for track in range(2):
            top, left = 3 + 11 * track, 5 + 13 * track
            masks[track, :, top : top + 12, left : left + 16] = 1
            centre = [(left + 8) / WIDTH, (top + 6) / HEIGHT, 16 / WIDTH, 12 / HEIGHT]
            boxes[track] = torch.tensor(centre)
        present = torch.rand(2, TIME, generator=rng) > 0.3
        masks *= present[..., None, None]
        boxes *= present[..., None]
        valid = torch.arange(TIME) < TIME - 1
        targets.append(
            {"masks": masks, "boxes_cxcywh": boxes, "present": present, "valid_frames": valid}
        )
    return targets


def test_targets_of_a_frame() -> None:
    (target,) = _targets(torch.Generator().manual_seed(1), 1)
    target["present"][:, 0] = torch.tensor([True, False])
    target["boxes_cxcywh"][0, 0] = torch.tensor([13 / WIDTH, 9 / HEIGHT, 16 / WIDTH, 12 / HEIGHT])
    found = frame_targets(target, 0, HEIGHT, WIDTH)
    torch.testing.assert_close(found["boxes"], torch.tensor([[5.0, 3.0, 21.0, 15.0]]))
    assert found["labels"].tolist() == [1] and found["masks"].shape == (1, HEIGHT, WIDTH)
    target["boxes_cxcywh"][0, 0, 2] = 0.4 / WIDTH
    assert not len(frame_targets(target, 0, HEIGHT, WIDTH)["boxes"])


def test_losses_reach_every_weight_and_no_padding() -> None:
    model = _mask_rcnn().train()
    model.backbone.freeze_norms = True
    model.train()
    batch = _targets(torch.Generator().manual_seed(2), 2)
    query, supports = _clips(2, TIME), _clips(2, 2, 4, seed=4)
    lengths = torch.tensor([[4, 3], [2, 4]])

    def losses(query: torch.Tensor, supports: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # Regions are drawn.
        return model.losses(query, supports, lengths, batch)

    found = losses(query, supports)
    assert set(found) == {
        "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask",
    }  # fmt: skip
    sum(found.values()).backward()  # type: ignore[union-attr]
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    query[:, -1] = 255 - query[:, -1]
    supports[0, 1, 3:] = 0
    supports[1, 0, 2:] = 0
    again = losses(query, supports)
    for name, value in found.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-5)


def test_an_episode_without_an_instance_and_without_supports() -> None:
    model = _mask_rcnn().train()
    targets = _targets(torch.Generator().manual_seed(2), 1)
    for name in ("masks", "boxes_cxcywh", "present"):
        targets[0][name] = targets[0][name][:0]
    empty = torch.zeros(1, 0, TIME, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    found = model.losses(_clips(1, TIME), empty, torch.zeros(1, 0, dtype=torch.int64), targets)
    assert all(value.isfinite() for value in found.values())
    assert found["loss_mask"] == 0 and found["loss_box_reg"] == 0


def test_nothing_found_is_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siamese_mask_rcnn, "MIN_SCORE", 1.0)
    model = _model("siamese_mask_rcnn")
    outputs = _predict(model, _clips(1, TIME), [[_clips(4, seed=5)]])
    assert (outputs["mask_logits"] == -SURE).all()
    assert (outputs["foreground_logits"][..., 0] == -SURE).all()
