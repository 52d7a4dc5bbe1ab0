"""Precision, recall and mean AP against loops that count."""

from __future__ import annotations

import numpy as np
import pytest

from selfshot.retrieval.judge import (
    Ranking,
    average_precision,
    precision_at,
    ranking_scores,
    recall_at,
)

FOUND = [
    Ranking(["dog", "cat", "dog"], "dog", 4),
    Ranking(["cat", "cat", "cat"], "dog", 2),
    Ranking([], "dog", 1),
    Ranking(["dog"], "dog", 1),
]


def test_precision_at() -> None:
    assert precision_at(FOUND, 1) == pytest.approx(2 / 4)
    assert precision_at(FOUND, 2) == pytest.approx((1 / 2 + 0 + 0 + 1) / 4)
    assert precision_at(FOUND, 3) == pytest.approx((2 / 3 + 0 + 0 + 1) / 4)
    assert precision_at([], 5) == 0.0


def test_recall_at() -> None:
    assert recall_at(FOUND, 1) == pytest.approx((1 / 4 + 0 + 0 + 1) / 4)
    assert recall_at(FOUND, 3) == pytest.approx((2 / 4 + 0 + 0 + 1) / 4)


def test_average_precision() -> None:
    assert average_precision(FOUND[0], 3) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision(FOUND[0], 2) == pytest.approx(1 / 2)
    assert average_precision(FOUND[3], 50) == 1.0
    rng = np.random.default_rng(0)
    for depth in (1, 7, 31):
        classes = [str(kind) for kind in rng.integers(3, size=23)]
        hits, total = 0, 0.0
        for rank, name in enumerate(classes[:depth], start=1):
            if name == "1":
                hits += 1
                total += hits / rank
        one = Ranking(classes, "1", 11)
        assert average_precision(one, depth) == pytest.approx(total / min(11, depth))


def test_all_scores() -> None:
    scores = ranking_scores(FOUND, 3)
    assert set(scores) == {"precision_at", "recall_at", "mAP"}
    assert set(scores["precision_at"]) == {"1", "5"} and set(scores["recall_at"]) == {"1", "3", "5"}
    assert scores["mAP"] == pytest.approx(((1 + 2 / 3) / 3 + 0 + 0 + 1) / 4)
