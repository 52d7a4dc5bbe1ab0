"""What labelled clips explain of a query, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from selfshot.retrieval.describe import QueryEmbedding, seen_similarity
from selfshot.retrieval.index import build_index
from selfshot.retrieval.search import CorpusSearch


def by_loops(vectors: np.ndarray, seen: np.ndarray, nearest: int) -> list[float]:
    found = []
    for vector in vectors:
        cosines = [
            float(vector @ clip / np.sqrt(vector @ vector) / np.sqrt(clip @ clip)) for clip in seen
        ]
        best = sorted(cosines, reverse=True)[:nearest]
        found.append(sum(best) / len(best))
    return found


@pytest.mark.parametrize(("windows", "clips", "nearest"), [(1, 1, 1), (7, 13, 5), (3, 2, 11)])
def test_is_the_mean_of_the_best_cosines(windows: int, clips: int, nearest: int) -> None:
    rng = np.random.default_rng([windows, clips])
    vectors, seen = rng.normal(size=(windows, 17)), rng.normal(size=(clips, 17))
    wanted = by_loops(vectors, seen, nearest)
    np.testing.assert_allclose(seen_similarity(vectors, seen, nearest), wanted, atol=1e-6)
    # Neither lengths nor the order of the labelled clips matter.
    again = seen_similarity(vectors * 3, seen[::-1] * 0.2, nearest)
    np.testing.assert_allclose(again, wanted, atol=1e-6)


@pytest.mark.parametrize(("clips", "nearest"), [(0, 1), (3, 0)])
def test_nothing_to_compare_with(clips: int, nearest: int) -> None:
    with pytest.raises(ValueError, match="labelled clips and the nearest"):
        seen_similarity(np.ones((2, 5)), np.ones((clips, 5)), nearest)


def test_a_window_that_is_seen_asks_for_less() -> None:
    """Cosine 1 of a window that is a labelled clip, or 0.8 of one that nothing explains."""
    index = build_index(np.eye(3, dtype=np.float32), ["look-alike", "unseen", "other"])
    windows = np.array([[1, 0, 0], [0, 0.8, 0.6]], np.float32)
    similarity = seen_similarity(windows, np.array([[1, 0, 0]], np.float32), 1)
    plain, aware = QueryEmbedding(windows), QueryEmbedding(windows, np.float32(0.5) * similarity)
    found = CorpusSearch(index, 1.1).nearest(plain, 3)
    assert found.clip_ids[0] == "look-alike" and found.scores[0] == pytest.approx(1)
    found = CorpusSearch(index, 1.1).nearest(aware, 3)
    assert found.clip_ids == ("unseen", "other", "look-alike")
    assert found.scores == pytest.approx((0.8, 0.6, 0.5))
