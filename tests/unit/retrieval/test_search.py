"""Supports: equal to scoring the whole corpus, without the query itself, and repeatable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selfshot.retrieval.describe import QueryEmbedding
from selfshot.retrieval.index import ClipIndex, build_index
from selfshot.retrieval.search import CorpusSearch, draw

DIM = 7


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_index(rng: np.random.Generator, clips: int) -> tuple[ClipIndex, np.ndarray]:
    vectors = unit(rng.normal(size=(clips, DIM))).astype(np.float32)
    return build_index(vectors, [f"clip-{row:04d}" for row in range(clips)]), vectors


def brute_force(
    corpus: np.ndarray,
    windows: np.ndarray,
    penalty: np.ndarray,
    count: int,
    duplicate: float,
    own: set[int],
) -> tuple[list[str], int]:
    """Every clip against every window: the chosen clips, and how many are near duplicates."""
    scored, duplicates = [], 0
    for row, clip in enumerate(corpus):
        cosines = [float(window @ clip) for window in unit(windows)]
        if row in own:
            continue
        if max(cosines) > duplicate:
            duplicates += 1
            continue
        best = max(c - p for c, p in zip(cosines, penalty, strict=True))
        scored.append((-best, f"clip-{row:04d}"))
    return [name for _, name in sorted(scored)[:count]], duplicates


@pytest.mark.parametrize("windows", [1, 5, 11])
@pytest.mark.parametrize("clips", [13, 101, 997])
@pytest.mark.parametrize("most", [0.0, 0.5, 2.0])
def test_equals_scoring_the_whole_corpus(windows: int, clips: int, most: float) -> None:
    rng = np.random.default_rng([windows, clips])
    index, corpus = random_index(rng, clips)
    for count in (1, 3, 7):
        queries = rng.normal(size=(windows, DIM)).astype(np.float32)
        penalty = rng.uniform(0, most, windows).astype(np.float32)
        own = {int(row) for row in rng.choice(clips, 2, replace=False)}
        names = {f"clip-{row:04d}" for row in own}
        found = CorpusSearch(index, 0.9).nearest(QueryEmbedding(queries, penalty), count, names)
        wanted, duplicates = brute_force(corpus, queries, penalty, count, 0.9, own)
        assert list(found.clip_ids) == wanted
        assert found.near_duplicates == duplicates


def test_scores_are_cosines_less_the_penalty() -> None:
    rng = np.random.default_rng(3)
    index, corpus = random_index(rng, 23)
    query = rng.normal(size=(1, DIM)).astype(np.float32)
    cosines = np.sort(corpus @ unit(query)[0])[::-1][:5]
    for penalty in (None, np.array([0.25], np.float32)):
        found = CorpusSearch(index, 1.0).nearest(QueryEmbedding(query, penalty), 5)
        wanted = cosines - (0 if penalty is None else 0.25)
        np.testing.assert_allclose(found.scores, wanted, atol=2e-6)


def test_near_duplicates_and_own_source_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(5)
    index, corpus = random_index(rng, 19)
    query = corpus[[4]]
    own = ("clip-0002", "clip-0011", "clip-0017")
    found = CorpusSearch(index, 0.995).nearest(QueryEmbedding(query), 19, own)
    assert len(found.clip_ids) == 15 and found.near_duplicates == 1 and found.own_source == 3
    assert not {"clip-0004", *own} & set(found.clip_ids)
    both = CorpusSearch(index, 0.995).nearest(QueryEmbedding(query), 5, ["clip-0004"])
    # A clip of the query's own source is counted as that, even if it is the query itself.
    assert both.near_duplicates == 0 and both.own_source == 1


def test_own_source_is_counted_however_far_its_clips_are() -> None:
    vectors = np.zeros((101, 2), np.float32)
    angles = np.linspace(0, np.pi / 2, 101)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    index = build_index(vectors, [f"{row:03d}" for row in range(101)])
    query = np.array([[1, -0.5]], np.float32)
    found = CorpusSearch(index, 1.0).nearest(QueryEmbedding(query), 2, ["099", "100", "elsewhere"])
    assert found.clip_ids == ("000", "001") and found.own_source == 2


@pytest.mark.parametrize(("copies", "times"), [(7, 1), (29, 2), (41, 3), (97, 3)])
def test_asks_again_when_most_neighbours_are_duplicates(copies: int, times: int) -> None:
    rng = np.random.default_rng(copies)
    others = unit(rng.normal(size=(53, DIM))).astype(np.float32)
    query = unit(rng.normal(size=(1, DIM))).astype(np.float32)
    corpus = np.concatenate([np.repeat(query, copies, axis=0), others])
    index = build_index(corpus, [f"clip-{row:04d}" for row in range(len(corpus))])
    asked: list[int] = []
    search = index.search_rows

    def counted(queries: np.ndarray, k: int, subset: None) -> Any:
        asked.append(k)
        return search(queries, k, subset)

    index.search_rows = counted  # type: ignore[method-assign, assignment]
    found = CorpusSearch(index, 0.99).nearest(QueryEmbedding(query), 3)
    wanted, duplicates = brute_force(corpus, query, np.zeros(1), 3, 0.99, set())
    assert list(found.clip_ids) == wanted and found.near_duplicates == duplicates >= copies
    assert len(asked) == times
    assert asked == sorted(asked) and asked[-1] <= len(index)


def test_fewer_clips_than_wanted() -> None:
    rng = np.random.default_rng(7)
    index, corpus = random_index(rng, 5)
    found = CorpusSearch(index, 0.999).nearest(QueryEmbedding(corpus[[0]]), 11)
    assert len(found.clip_ids) == 4 == len(found.scores) and found.near_duplicates == 1
    alone = build_index(corpus[:1], ["only"])
    nothing = CorpusSearch(alone, 0.999).nearest(QueryEmbedding(corpus[[0]]), 1)
    assert nothing.clip_ids == () and nothing.near_duplicates == 1


def test_ties_are_settled_by_name() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    names = ["f", "b", "e", "a", "d", "c"]
    query = np.array([[2, 1, 0.5]], np.float32)
    for order in (range(6), reversed(range(6))):
        rows = list(order)
        index = build_index(vectors[rows], [names[row] for row in rows])
        found = CorpusSearch(index, 1.0).nearest(QueryEmbedding(query), 6)
        assert found.clip_ids == ("b", "f", "a", "e", "c", "d")


def test_draw() -> None:
    pool = [f"clip-{row}" for row in range(31)]
    drawn = draw(pool, 11, [3, 29, 7])
    assert drawn == draw(pool, 11, [3, 29, 7])
    assert len(set(drawn)) == 11 and set(drawn) <= set(pool)
    assert drawn != draw(pool, 11, [4, 29, 7]) and drawn != draw(pool, 11, [3, 29, 8])
    assert sorted(draw(pool, 31, [0])) == sorted(pool)
    few = draw((5, 6), 7, [1])
    assert len(few) == 7 and set(few) == {5, 6}


def test_draw_is_even() -> None:
    counts = np.bincount([row for seed in range(700) for row in draw(range(7), 3, [seed])])
    assert counts.sum() == 2100 and counts.min() > 240 and counts.max() < 360
