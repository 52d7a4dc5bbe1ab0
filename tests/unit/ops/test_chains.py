"""Detections of frames become tracks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from selfshot.ops.chains import ABSENT, chain_detections, similarity

FEATURES = torch.eye(7)


def _giou(a: np.ndarray, b: np.ndarray) -> float:
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    union = sum(areas) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def test_similarity_is_the_mean_of_place_and_looks() -> None:
    rng = np.random.default_rng(0)
    corners = [np.sort(rng.uniform(0, 50, (n, 2, 2)), 1).reshape(n, 4) for n in (3, 5)]
    looks = [rng.normal(size=(n, 11)) for n in (3, 5)]
    found = similarity(
        torch.tensor(corners[0]),
        torch.tensor(looks[0]),
        torch.tensor(corners[1]),
        torch.tensor(looks[1]),
    )
    for i, j in itertools.product(range(3), range(5)):
        cosine = looks[0][i] @ looks[1][j]
        cosine /= np.linalg.norm(looks[0][i]) * np.linalg.norm(looks[1][j])
        expected = ((1 + _giou(corners[0][i], corners[1][j])) / 2 + cosine) / 2
        assert found[i, j] == pytest.approx(expected)


def _moving(starts: list[tuple[float, float]], time: int) -> list[torch.Tensor]:
    """Boxes of 10 × 8 that move to the right by 3."""
    return [
        torch.tensor([[x + 3.0 * t, y, x + 3.0 * t + 10, y + 8.0] for x, y in starts])
        for t in range(time)
    ]


def test_things_keep_their_track_in_whatever_order_they_are_found() -> None:
    boxes = _moving([(0, 0), (30, 40), (5, 60)], 5)
    orders = [torch.randperm(3, generator=torch.Generator().manual_seed(t)) for t in range(5)]
    weights = torch.tensor([0.5, 0.9, 0.7])
    found = chain_detections(
        [frame[order] for frame, order in zip(boxes, orders, strict=True)],
        [weights[order] for order in orders],
        [FEATURES[:3][order] for order in orders],
        most=3,
        min_similarity=0.5,
    )
    things = np.array([[orders[t][place] for t, place in enumerate(row)] for row in found])
    assert things.tolist() == [[1] * 5, [2] * 5, [0] * 5]


def test_an_absence_is_bridged_and_another_thing_is_another_track() -> None:
    (first, second), *_ = _moving([(0, 0), (40, 40)], 1)
    found = chain_detections(
        [first[None], torch.zeros(0, 4), torch.stack([second, first]), first[None]],
        [torch.tensor(s) for s in ([0.8], [], [0.9, 0.6], [0.7])],
        [FEATURES[:1], FEATURES[:0], FEATURES[[1, 0]], FEATURES[:1]],
        most=4,
        min_similarity=0.5,
    )
    assert found.tolist() == [
        [0, ABSENT, 1, 0],
        [ABSENT, ABSENT, 0, ABSENT],
        [ABSENT] * 4,
        [ABSENT] * 4,
    ]


def test_unlike_detections_are_not_chained_and_the_surest_tracks_are_kept() -> None:
    boxes = [_moving([(20 * t, 30 * t)], 1)[0] for t in range(3)]
    apart = chain_detections(
        boxes,
        [torch.tensor([s]) for s in (0.2, 0.9, 0.4)],
        [FEATURES[t : t + 1] for t in range(3)],
        most=2,
        min_similarity=0.5,
    )
    assert apart.tolist() == [[ABSENT, 0, ABSENT], [ABSENT, ABSENT, 0]]


def test_no_detection_at_all() -> None:
    none = [torch.zeros(0, 4)] * 2
    found = chain_detections(
        none, [torch.zeros(0)] * 2, [FEATURES[:0]] * 2, most=3, min_similarity=0.0
    )
    assert found.tolist() == [[ABSENT, ABSENT]] * 3
