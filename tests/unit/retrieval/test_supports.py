"""Supports: equal to scoring the whole corpus, without the query itself, and repeatable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selfshot.retrieval.index import ClipIndex, build_index
from selfshot.retrieval.supports import Described, draw, retrieve

DIM = 7


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_index(rng: np.random.Generator, clips: int) -> tuple[ClipIndex, np.ndarray]:
    vectors = unit(rng.normal(size=(clips, DIM))).astype(np.float32)
    return build_index(vectors, [f"clip-{row:04d}" for row in range(clips)]), vectors


def brute_force(
    corpus: np.ndarray,
    windows: np.ndarray,
    foreground: np.ndarray,
    count: int,
    power: float,
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
        best = max(c * f**power for c, f in zip(cosines, foreground, strict=True))
        scored.append((-best, f"clip-{row:04d}"))
    return [name for _, name in sorted(scored)[:count]], duplicates


@pytest.mark.parametrize("windows", [1, 5, 11])
@pytest.mark.parametrize("clips", [13, 101, 997])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_equals_scoring_the_whole_corpus(windows: int, clips: int, power: float) -> None:
    rng = np.random.default_rng([windows, clips])
    index, corpus = random_index(rng, clips)
    for count in (1, 3, 7):
        queries = rng.normal(size=(windows, DIM)).astype(np.float32)
        foreground = rng.uniform(0.05, 1, windows).astype(np.float32)
        own = {int(row) for row in rng.choice(clips, 2, replace=False)}
        found = retrieve(
            index,
            Described(queries, foreground),
            count,
            duplicate_cosine=0.9,
            own_source={f"clip-{row:04d}" for row in own},
            foreground_power=power,
        )
        wanted, duplicates = brute_force(corpus, queries, foreground, count, power, 0.9, own)
        assert list(found.clip_ids) == wanted
        assert found.near_duplicates == duplicates


def test_scores_are_cosines_whatever_the_foreground() -> None:
    rng = np.random.default_rng(3)
    index, corpus = random_index(rng, 23)
    query = rng.normal(size=(1, DIM)).astype(np.float32)
    settings: dict[str, Any] = {"duplicate_cosine": 1.0, "foreground_power": 3.0}
    found = retrieve(index, Described(query, np.array([0.5], np.float32)), 5, **settings)
    cosines = np.sort(corpus @ unit(query)[0])[::-1][:5]
    np.testing.assert_allclose(found.scores, cosines, atol=2e-6)


def test_a_window_of_much_foreground_wins() -> None:
    """Cosine 0.8 at foreground 0.9 before cosine 1 at foreground 0.1; without power after it."""
    index = build_index(np.eye(3, dtype=np.float32), ["a", "b", "c"])
    windows = np.array([[1, 0, 0], [0, 0.8, 0.6]], np.float32)
    foreground = np.array([0.1, 0.9], np.float32)
    settings: dict[str, Any] = {"duplicate_cosine": 1.0}
    with_power = retrieve(
        index, Described(windows, foreground), 3, foreground_power=1.0, **settings
    )
    assert with_power.clip_ids == ("b", "c", "a")
    assert with_power.scores == pytest.approx((0.8, 0.6, 1.0))
    assert retrieve(index, Described(windows, foreground), 3, **settings).clip_ids == (
        "a",
        "b",
        "c",
    )


def test_near_duplicates_and_own_source_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(5)
    index, corpus = random_index(rng, 19)
    query = corpus[[4]]
    own = ("clip-0002", "clip-0011", "clip-0017")
    found = retrieve(
        index, Described(query, np.ones(1, np.float32)), 19, duplicate_cosine=0.995, own_source=own
    )
    assert len(found.clip_ids) == 15 and found.near_duplicates == 1 and found.own_source == 3
    assert not {"clip-0004", *own} & set(found.clip_ids)
    both = retrieve(
        index,
        Described(query, np.ones(1, np.float32)),
        5,
        duplicate_cosine=0.995,
        own_source=["clip-0004"],
    )
    # A clip of the query's own source is counted as that, even if it is the query itself.
    assert both.near_duplicates == 0 and both.own_source == 1


def test_own_source_is_counted_however_far_its_clips_are() -> None:
    vectors = np.zeros((101, 2), np.float32)
    angles = np.linspace(0, np.pi / 2, 101)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    index = build_index(vectors, [f"{row:03d}" for row in range(101)])
    query, foreground = np.array([[1, -0.5]], np.float32), np.ones(1, np.float32)
    found = retrieve(
        index,
        Described(query, foreground),
        2,
        duplicate_cosine=1.0,
        own_source=["099", "100", "elsewhere"],
    )
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
    found = retrieve(index, Described(query, np.ones(1, np.float32)), 3, duplicate_cosine=0.99)
    wanted, duplicates = brute_force(corpus, query, np.ones(1), 3, 0.0, 0.99, set())
    assert list(found.clip_ids) == wanted and found.near_duplicates == duplicates >= copies
    assert len(asked) == times
    assert asked == sorted(asked) and asked[-1] <= len(index)


def test_fewer_clips_than_wanted() -> None:
    rng = np.random.default_rng(7)
    index, corpus = random_index(rng, 5)
    found = retrieve(
        index, Described(corpus[[0]], np.ones(1, np.float32)), 11, duplicate_cosine=0.999
    )
    assert len(found.clip_ids) == 4 == len(found.scores) and found.near_duplicates == 1
    alone = build_index(corpus[:1], ["only"])
    nothing = retrieve(
        alone, Described(corpus[[0]], np.ones(1, np.float32)), 1, duplicate_cosine=0.999
    )
    assert nothing.clip_ids == () and nothing.near_duplicates == 1


def test_ties_are_settled_by_name() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    names = ["f", "b", "e", "a", "d", "c"]
    query = np.array([[2, 1, 0.5]], np.float32)
    for order in (range(6), reversed(range(6))):
        rows = list(order)
        index = build_index(vectors[rows], [names[row] for row in rows])
        found = retrieve(index, Described(query, np.ones(1, np.float32)), 6, duplicate_cosine=1.0)
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
