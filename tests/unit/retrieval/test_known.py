"""What labelled clips explain of a query, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from selfshot.retrieval.index import build_index
from selfshot.retrieval.known import KnownClips, familiarity
from selfshot.retrieval.supports import Described, retrieve


def by_loops(vectors: np.ndarray, known: np.ndarray, nearest: int) -> list[float]:
    found = []
    for vector in vectors:
        cosines = [
            float(vector @ clip / np.sqrt(vector @ vector) / np.sqrt(clip @ clip)) for clip in known
        ]
        best = sorted(cosines, reverse=True)[:nearest]
        found.append(sum(best) / len(best))
    return found


@pytest.mark.parametrize(("windows", "clips", "nearest"), [(1, 1, 1), (7, 13, 5), (3, 2, 11)])
def test_is_the_mean_of_the_best_cosines(windows: int, clips: int, nearest: int) -> None:
    rng = np.random.default_rng([windows, clips])
    vectors, known = rng.normal(size=(windows, 17)), rng.normal(size=(clips, 17))
    wanted = by_loops(vectors, known, nearest)
    np.testing.assert_allclose(familiarity(vectors, known, nearest), wanted, atol=1e-6)
    # Neither lengths nor the order of the labelled clips matter.
    again = familiarity(vectors * 3, known[::-1] * 0.2, nearest)
    np.testing.assert_allclose(again, wanted, atol=1e-6)
    handicap = KnownClips(known, nearest, 0.25).handicap(vectors)
    np.testing.assert_allclose(handicap, 0.25 * np.array(wanted), atol=1e-6)


@pytest.mark.parametrize(("clips", "nearest"), [(0, 1), (3, 0)])
def test_nothing_to_compare_with(clips: int, nearest: int) -> None:
    with pytest.raises(ValueError, match="labelled clips and the nearest"):
        familiarity(np.ones((2, 5)), np.ones((clips, 5)), nearest)


def test_a_window_that_is_known_asks_for_less() -> None:
    """Cosine 1 of a window that is a labelled clip, or 0.8 of one that nothing explains."""
    index = build_index(np.eye(3, dtype=np.float32), ["look-alike", "unseen", "other"])
    windows = np.array([[1, 0, 0], [0, 0.8, 0.6]], np.float32)
    known = KnownClips(np.array([[1, 0, 0]], np.float32), 1, 0.5)
    plain = Described(windows, np.ones(2))
    aware = Described(windows, np.ones(2), known.handicap(windows))
    found = retrieve(index, plain, 3, duplicate_cosine=1.1)
    assert found.clip_ids[0] == "look-alike" and found.scores[0] == pytest.approx(1)
    found = retrieve(index, aware, 3, duplicate_cosine=1.1)
    assert found.clip_ids == ("unseen", "other", "look-alike")
    assert found.scores == pytest.approx((0.8, 0.6, 0.5))
