"""Eq. 1, 2, 6 and 7, written out in NumPy loops from the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selfshot.ops.nce import mil_nce_loss
from selfshot.ops.rank import rank_loss

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
SHAPES = [(2, 3, 5), (5, 13, 7), (7, 11, 2), (1, 2, 3)]


def _pairs(num_anchors: int, num_keys: int, dim: int, *, double: bool = False) -> Pairs:
    """Vectors of random lengths; pairs of all three kinds, as many positives as chance gives."""
    rng = np.random.default_rng(num_anchors * 100 + num_keys)
    dtype = torch.float64 if double else torch.float32
    anchors = torch.from_numpy(rng.normal(size=(num_anchors, dim)) * 3).to(dtype)
    keys = torch.from_numpy(rng.normal(size=(num_keys, dim)) * 0.2).to(dtype)
    kind = rng.integers(0, 3, size=(num_anchors, num_keys))
    kind[:, 0], kind[:, -1] = 1, 2
    return anchors, keys, torch.from_numpy(kind == 1), torch.from_numpy(kind == 2)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def _nce_in_loops(pairs: Pairs, temperature: float) -> float:
    anchors, keys, positive, negative = (part.numpy() for part in pairs)
    losses = []
    for i, anchor in enumerate(anchors):
        above = below = 0.0
        for j, key in enumerate(keys):
            term = math.exp(_cosine(anchor, key) / temperature)
            above += term if positive[i, j] else 0.0
            below += term if positive[i, j] or negative[i, j] else 0.0
        losses.append(-math.log(above / below))
    return float(np.mean(losses))


def _rank_of(anchor: np.ndarray, b: int, group: list[int], keys: np.ndarray, tau: float) -> float:
    rank = 1.0
    for c in group:
        if c != b:
            difference = _cosine(anchor, keys[c]) - _cosine(anchor, keys[b])
            rank += 1 / (1 + math.exp(-difference / tau))
    return rank


def _rank_in_loops(pairs: Pairs, temperature: float, form: str) -> float:
    anchors, keys, positive, negative = (part.numpy() for part in pairs)
    losses = []
    for i, anchor in enumerate(anchors):
        ours = np.flatnonzero(positive[i]).tolist()
        everything = ours + np.flatnonzero(negative[i]).tolist()
        ratios = [
            _rank_of(anchor, b, ours, keys, temperature)
            / _rank_of(anchor, b, everything, keys, temperature)
            for b in ours
        ]
        losses.append(-math.log(sum(ratios) if form == "paper" else sum(ratios) / len(ratios)))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_nce_is_equation_1(shape: tuple[int, int, int], temperature: float) -> None:
    pairs = _pairs(*shape, double=True)
    ours = mil_nce_loss(*pairs, temperature=temperature).item()
    assert ours == pytest.approx(_nce_in_loops(pairs, temperature), rel=1e-9, abs=1e-12)
    single = mil_nce_loss(*_pairs(*shape), temperature=temperature).item()
    assert single == pytest.approx(ours, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_one_positive_nce_is_mocos_loss(shape: tuple[int, int, int]) -> None:
    """MoCo's pseudo-code: a cross entropy whose right answer is the positive's logit."""
    anchors, keys, positive, negative = _pairs(*shape, double=True)
    first = positive.to(torch.int8).argmax(1)
    one = torch.zeros_like(positive)
    one[torch.arange(len(anchors)), first] = True
    ours = mil_nce_loss(anchors, keys, one, negative & ~one, temperature=0.2).item()
    losses = []
    for i, anchor in enumerate(anchors.numpy()):
        others = [j for j in range(len(keys)) if negative[i, j]]
        logits = np.array([_cosine(anchor, keys[j].numpy()) for j in [int(first[i]), *others]])
        shifted = logits / 0.2 - (logits / 0.2).max()
        losses.append(math.log(np.exp(shifted).sum()) - shifted[0])
    assert ours == pytest.approx(float(np.mean(losses)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("form", ["ap", "paper"])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_rank_is_equations_2_6_7(
    shape: tuple[int, int, int], temperature: float, form: str
) -> None:
    pairs = _pairs(*shape, double=True)
    ours = rank_loss(*pairs, temperature=temperature, form=form).item()  # type: ignore[arg-type]
    assert ours == pytest.approx(_rank_in_loops(pairs, temperature, form), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss", [mil_nce_loss, rank_loss])
class TestBoth:
    """What must hold for either loss."""

    def test_the_order_of_keys_and_anchors_means_nothing(self, loss) -> None:
        anchors, keys, positive, negative = _pairs(5, 13, 7)
        generator = torch.Generator().manual_seed(0)
        k, a = torch.randperm(13, generator=generator), torch.randperm(5, generator=generator)
        before = loss(anchors, keys, positive, negative, temperature=0.1)
        after = loss(anchors[a], keys[k], positive[a][:, k], negative[a][:, k], temperature=0.1)
        torch.testing.assert_close(before, after)

    def test_the_length_of_vectors_means_nothing(self, loss) -> None:
        anchors, keys, positive, negative = _pairs(5, 13, 7)
        before = loss(anchors, keys, positive, negative, temperature=0.1)
        after = loss(anchors * 17, keys / 5, positive, negative, temperature=0.1)
        torch.testing.assert_close(before, after)

    def test_keys_that_are_neither_take_no_part(self, loss) -> None:
        anchors, keys, positive, negative = _pairs(5, 13, 7)
        positive[:, 3] = negative[:, 3] = False
        before = loss(anchors, keys, positive, negative, temperature=0.1)
        keys[3] = 100.0
        torch.testing.assert_close(before, loss(anchors, keys, positive, negative, temperature=0.1))

    def test_gradient(self, loss) -> None:
        anchors, keys, positive, negative = _pairs(3, 7, 5, double=True)
        anchors.requires_grad_()
        keys.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda a, k: loss(a, k, positive, negative, temperature=0.3), (anchors, keys)
        )

    def test_a_small_temperature_stays_finite(self, loss) -> None:
        anchors, keys, positive, negative = _pairs(5, 13, 7)
        anchors.requires_grad_()
        value = loss(anchors, keys, positive, negative, temperature=1e-4)
        value.backward()
        assert value.isfinite() and anchors.grad is not None and anchors.grad.isfinite().all()

    def test_an_anchor_without_positives_is_an_error(self, loss) -> None:
        anchors, keys, positive, negative = _pairs(5, 13, 7)
        positive[2] = False
        with pytest.raises(ValueError, match="anchor 2 has no positive key"):
            loss(anchors, keys, positive, negative, temperature=0.1)

    def test_an_anchor_without_negatives_is_an_error(self, loss) -> None:
        anchors, keys, positive, negative = _pairs(5, 13, 7)
        negative[4] = False
        with pytest.raises(ValueError, match="anchor 4 has no negative key"):
            loss(anchors, keys, positive, negative, temperature=0.1)

    def test_no_anchor_is_an_error(self, loss) -> None:
        anchors, keys, positive, negative = _pairs(5, 13, 7)
        with pytest.raises(ValueError, match="anchors: 0 received"):
            loss(anchors[:0], keys, positive[:0], negative[:0], temperature=0.1)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
    def test_a_temperature_that_is_not_above_0_is_an_error(self, loss, temperature) -> None:
        with pytest.raises(ValueError, match=r"temperature: .* must be above 0"):
            loss(*_pairs(2, 3, 5), temperature=temperature)


def test_a_perfect_ranking_costs_nothing() -> None:
    anchors = torch.eye(3)[:1]
    keys = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [-1.0, 0.0, 0.2], [0.0, 1.0, 0.0]])
    positive = torch.tensor([[True, True, False, False]])
    value = rank_loss(anchors, keys, positive, ~positive, temperature=0.01)
    assert value.item() == pytest.approx(0.0, abs=1e-6)


def test_the_two_forms_differ_by_the_log_of_the_number_of_positives() -> None:
    pairs = _pairs(1, 11, 5)
    gap = rank_loss(*pairs, temperature=0.1) - rank_loss(*pairs, temperature=0.1, form="paper")
    assert gap.item() == pytest.approx(math.log(int(pairs[2].sum())), rel=1e-5)
