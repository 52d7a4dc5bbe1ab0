"""Eq. 5, 8, 9 and 10, written out in NumPy loops from the paper."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from selfshot.ops.matching import match_tracks
from selfshot.ops.set_loss import set_loss

NO_OBJECT = 0.1
WEIGHTS: dict[str, float] = {
    "foreground": 1.0, "l1": 5.0, "giou": 2.0, "dice": 3.0, "focal": 7.0, "no_object": NO_OBJECT,
}  # fmt: skip
TRACKS_OF_CLIPS = (2, 0, 3)
INSTANCES, TIME, HEIGHT, WIDTH = 5, 7, 11, 13


def _boxes(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(
        np.concatenate([rng.random((*shape, 2)), rng.random((*shape, 2)) * 0.5 + 0.05], -1)
    )


def _layer(rng: np.random.Generator) -> dict[str, torch.Tensor]:
    shape = (len(TRACKS_OF_CLIPS), INSTANCES, TIME)
    return {
        "foreground_logits": torch.from_numpy(rng.normal(size=(*shape, 2))),
        "boxes_cxcywh": _boxes(rng, *shape),
    }


def _example(seed: int = 0) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    rng = np.random.default_rng(seed)
    outputs: dict[str, Any] = _layer(rng)
    shape = (len(TRACKS_OF_CLIPS), INSTANCES, TIME, HEIGHT, WIDTH)
    outputs["mask_logits"] = torch.from_numpy(rng.normal(size=shape))
    outputs["auxiliary"] = [_layer(rng), _layer(rng)]
    targets = []
    for clip, tracks in enumerate(TRACKS_OF_CLIPS):
        present = torch.from_numpy(rng.random((tracks, TIME)) > 0.3)
        masks = torch.from_numpy(rng.random((tracks, TIME, HEIGHT, WIDTH)) > 0.6)
        targets.append(
            {
                "boxes_cxcywh": _boxes(rng, tracks, TIME),
                "present": present,
                "masks": (masks & present[..., None, None]).double(),
                "valid_frames": torch.arange(TIME) < (TIME if clip == 0 else TIME - 2),
            }
        )
    return outputs, targets


# The paper, in loops over plain numbers.


def _softmax_foreground(logits: np.ndarray) -> float:
    return float(math.exp(logits[0]) / (math.exp(logits[0]) + math.exp(logits[1])))


def _l1_of(a: np.ndarray, b: np.ndarray) -> float:
    return sum(abs(float(x) - float(y)) for x, y in zip(a, b, strict=True))


def _giou_of(a: np.ndarray, b: np.ndarray) -> float:
    def corners(box: np.ndarray) -> tuple[float, float, float, float]:
        cx, cy, w, h = (float(v) for v in box)
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    ax0, ay0, ax1, ay1 = corners(a)
    bx0, by0, bx1, by1 = corners(b)
    inter = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


def _box_term(predicted: np.ndarray, target: dict[str, np.ndarray], i: int) -> tuple[float, float]:
    """Eq. 9 apart: mean L1 and mean 1 - GIoU over the frames that count."""
    frames = [t for t in range(TIME) if target["present"][i, t] and target["valid_frames"][t]]
    if not frames:
        return 0.0, 0.0
    l1 = sum(_l1_of(predicted[t], target["boxes_cxcywh"][i, t]) for t in frames)
    giou = sum(1 - _giou_of(predicted[t], target["boxes_cxcywh"][i, t]) for t in frames)
    return l1 / len(frames), giou / len(frames)


def _mask_term(logits: np.ndarray, target: dict[str, np.ndarray], i: int) -> tuple[float, float]:
    """Eq. 10 apart: mean dice and mean focal loss over the frames that count."""
    frames = [t for t in range(TIME) if target["valid_frames"][t]]
    dice = focal = 0.0
    for t in frames:
        both = p_sum = m_sum = pixels = 0.0
        for y, x in np.ndindex(HEIGHT, WIDTH):
            p = 1 / (1 + math.exp(-logits[t, y, x]))
            m = float(target["masks"][i, t, y, x])
            both, p_sum, m_sum = both + p * m, p_sum + p, m_sum + m
            p_true = p if m else 1 - p
            alpha = 0.25 if m else 0.75
            pixels += -alpha * (1 - p_true) ** 2 * math.log(p_true)
        dice += 1 - (2 * both + 1) / (p_sum + m_sum + 1)
        focal += pixels / (HEIGHT * WIDTH)
    return dice / len(frames), focal / len(frames)


def _cost(layer: dict[str, np.ndarray], target: dict[str, np.ndarray], slot: int, i: int) -> float:
    """Eq. 8."""
    frames = [t for t in range(TIME) if target["valid_frames"][t]]
    score = np.mean([_softmax_foreground(layer["foreground_logits"][slot, t]) for t in frames])
    l1, giou = _box_term(layer["boxes_cxcywh"][slot], target, i)
    return (
        -WEIGHTS["foreground"] * float(score)
        + WEIGHTS["l1"] * l1
        + WEIGHTS["giou"] * giou
    )


def _best_slots(layer: dict[str, np.ndarray], target: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Every assignment tried; the cheapest."""
    tracks = len(target["present"])
    return min(
        itertools.permutations(range(INSTANCES), tracks),
        key=lambda slots: sum(_cost(layer, target, slot, i) for i, slot in enumerate(slots)),
    )


def _loss_in_loops(
    outputs: dict[str, Any], targets: list[dict[str, torch.Tensor]]
) -> dict[str, float]:
    arrays = [{name: part.numpy() for name, part in target.items()} for target in targets]
    count = max(1, sum(len(target["present"]) for target in arrays))
    total = 0.0
    for layer in [*outputs["auxiliary"], outputs]:
        terms = dict.fromkeys(["foreground", "l1", "giou", "dice", "focal"], 0.0)
        weight_sum = 0.0
        for clip, target in enumerate(arrays):
            clip_layer = {
                name: layer[name][clip].numpy() for name in ("foreground_logits", "boxes_cxcywh")
            }
            slots = _best_slots(clip_layer, target)
            for slot, t in itertools.product(range(INSTANCES), range(TIME)):
                if target["valid_frames"][t]:
                    p = _softmax_foreground(clip_layer["foreground_logits"][slot, t])
                    weight = 1.0 if slot in slots else NO_OBJECT
                    terms["foreground"] -= weight * math.log(p if slot in slots else 1 - p)
                    weight_sum += weight
            for i, slot in enumerate(slots):
                l1, giou = _box_term(clip_layer["boxes_cxcywh"][slot], target, i)
                terms["l1"] += l1 / count
                terms["giou"] += giou / count
                if layer is outputs:
                    dice, focal = _mask_term(layer["mask_logits"][clip, slot].numpy(), target, i)
                    terms["dice"] += dice / count
                    terms["focal"] += focal / count
        terms["foreground"] /= weight_sum
        total += sum(WEIGHTS[name] * value for name, value in terms.items())
    return terms | {"total": total}


def _compute(outputs: dict[str, Any], targets: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    terms = set_loss(outputs, targets, WEIGHTS)
    return {name: value.item() for name, value in terms.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_is_the_papers_equations(seed: int) -> None:
    outputs, targets = _example(seed)
    ours, expected = _compute(outputs, targets), _loss_in_loops(outputs, targets)
    assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_focal_is_torchvisions() -> None:
    outputs, targets = _example()
    for target in targets:
        target["valid_frames"][:] = True
    expected = 0.0
    for clip, target in enumerate(targets):
        slots, tracks = match_tracks(
            outputs["foreground_logits"][clip],
            outputs["boxes_cxcywh"][clip],
            target["boxes_cxcywh"],
            target["present"],
            WEIGHTS,
        )
        pixels = sigmoid_focal_loss(
            outputs["mask_logits"][clip, slots], target["masks"][tracks], alpha=0.25, gamma=2
        )
        expected += pixels.mean((1, 2, 3)).sum().item()
    count = sum(TRACKS_OF_CLIPS)
    assert _compute(outputs, targets)["focal"] == pytest.approx(expected / count, rel=1e-6)


def test_padding_frames_change_nothing() -> None:
    outputs, targets = _example()
    before = _compute(outputs, targets)
    rng = np.random.default_rng(9)
    for clip, target in enumerate(targets):
        padding = ~target["valid_frames"]
        for layer in [outputs, *outputs["auxiliary"]]:
            for part in (value for value in layer.values() if isinstance(value, torch.Tensor)):
                noise = rng.random((INSTANCES, int(padding.sum()), *part.shape[3:]))
                part[clip][:, padding] = torch.from_numpy(noise)
        target["present"][:, padding] ^= True
        target["masks"][:, padding] = 1 - target["masks"][:, padding]
        target["boxes_cxcywh"][:, padding] = 0.3
    assert _compute(outputs, targets) == pytest.approx(before, rel=1e-6)


def test_absent_frames_have_no_box_and_count_for_the_mask() -> None:
    outputs, targets = _example()
    before = _compute(outputs, targets)
    for target in targets:
        target["boxes_cxcywh"][~target["present"]] = float("nan")
    assert _compute(outputs, targets) == pytest.approx(before, rel=1e-6)

    absent_everywhere = copy.deepcopy(targets)
    for target in absent_everywhere:
        target["present"][:] = False
        target["masks"][:] = 0
    after = _compute(outputs, absent_everywhere)
    assert after["l1"] == after["giou"] == 0
    assert after["dice"] > before["dice"] > 0
    assert after["foreground"] > 0


def test_the_order_of_instances_and_tracks_means_nothing() -> None:
    outputs, targets = _example()
    before = _compute(outputs, targets)
    order = torch.tensor([3, 0, 4, 2, 1])
    for layer in [outputs, *outputs["auxiliary"]]:
        for name in ("foreground_logits", "boxes_cxcywh", "mask_logits"):
            if name in layer:
                layer[name] = layer[name][:, order]
    for target in targets:
        for name in ("boxes_cxcywh", "present", "masks"):
            target[name] = target[name].flip(0)
    assert _compute(outputs, targets) == pytest.approx(before, rel=1e-6)


def test_no_track_at_all_leaves_the_class_term() -> None:
    outputs, targets = _example()
    for target in targets:
        for name in ("boxes_cxcywh", "present", "masks"):
            target[name] = target[name][:0]
    terms = _compute(outputs, targets)
    assert terms["l1"] == terms["giou"] == terms["dice"] == terms["focal"] == 0
    assert terms["total"] == pytest.approx(terms["foreground"] + terms["auxiliary"])
    assert terms["foreground"] > 0


def test_more_tracks_than_instances_match_the_cheapest() -> None:
    outputs, targets = _example()
    few = {name: value[:, :2] for name, value in outputs.items() if name != "auxiliary"}
    terms = set_loss(few, targets, WEIGHTS)
    assert all(value.isfinite() for value in terms.values())
    assert terms["auxiliary"].item() == 0


def test_gradients_are_finite_and_reach_only_what_is_matched() -> None:
    outputs, targets = _example()
    leaves = [outputs["foreground_logits"], outputs["boxes_cxcywh"], outputs["mask_logits"]]
    for leaf in leaves:
        leaf.requires_grad_()
    targets[0]["boxes_cxcywh"][~targets[0]["present"]] = 0
    set_loss(outputs, targets, WEIGHTS)["total"].backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    touched = outputs["mask_logits"].grad.flatten(2).abs().sum(-1) > 0
    assert touched.sum(-1).tolist() == list(TRACKS_OF_CLIPS)


def test_a_given_number_of_tracks_divides_box_and_mask() -> None:
    outputs, targets = _example()
    ours = set_loss(outputs, targets, WEIGHTS)
    doubled = set_loss(outputs, targets, WEIGHTS, num_tracks=10.0)
    assert sum(TRACKS_OF_CLIPS) == 5
    for name in ("l1", "giou", "dice", "focal"):
        assert doubled[name].item() == pytest.approx(ours[name].item() / 2)
    assert doubled["foreground"].item() == ours["foreground"].item()


def test_matching_pairs_in_the_order_of_tracks() -> None:
    outputs, targets = _example()
    for clip, target in enumerate(targets):
        layer = {
            name: outputs[name][clip].numpy() for name in ("foreground_logits", "boxes_cxcywh")
        }
        slots, tracks = match_tracks(
            outputs["foreground_logits"][clip],
            outputs["boxes_cxcywh"][clip],
            target["boxes_cxcywh"],
            target["present"],
            WEIGHTS,
            valid_frames=target["valid_frames"],
        )
        arrays = {name: part.numpy() for name, part in target.items()}
        assert tuple(slots.tolist()) == _best_slots(layer, arrays)
        assert tracks.tolist() == list(range(len(target["present"])))


def test_predictions_that_are_not_numbers_are_named() -> None:
    outputs, targets = _example()
    outputs["boxes_cxcywh"][0, 1, 2, 3] = float("nan")
    targets[0]["present"][:] = True
    with pytest.raises(FloatingPointError, match="matching cost is not finite"):
        set_loss(outputs, targets, WEIGHTS)


def test_a_swapped_axis_is_refused() -> None:
    outputs, targets = _example()
    outputs["boxes_cxcywh"] = outputs["boxes_cxcywh"].transpose(1, 2)
    outputs["auxiliary"] = []
    with pytest.raises(Exception, match=r"match_batch|Type-check"):
        set_loss(outputs, targets, WEIGHTS)
