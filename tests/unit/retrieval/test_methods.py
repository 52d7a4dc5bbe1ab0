"""Each way to come by supports, through its one interface."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from selfshot.retrieval.index import build_index, unit_vectors
from selfshot.retrieval.methods import (
    Asked,
    OracleVideos,
    QueryCrops,
    RandomClips,
    RetrievedClips,
    SemiShot,
)
from selfshot.retrieval.supports import Described

CLIPS, DIM = 211, 7
NAMES = [f"clip-{row:03d}" for row in range(CLIPS)]
CORPUS = unit_vectors(np.random.default_rng(1).normal(size=(CLIPS, DIM)).astype(np.float32), NAMES)
INDEX = build_index(CORPUS, NAMES)
VIDEOS = {
    video: Described(
        unit_vectors(np.random.default_rng(video).normal(size=(windows, DIM)), NAMES),
    )
    for video, windows in ((3, 1), (5, 4), (8, 2), (13, 3))
}
PENALISED = {
    video: dataclasses.replace(
        one, penalty=np.random.default_rng(video).uniform(0, 0.5, len(one.vectors))
    )
    for video, one in VIDEOS.items()
}
QUERIES = [
    Asked("3:cat", 3, 0, frozenset({NAMES[7], "gone"})),
    Asked("5:dog", 5, 1),
]
PAIRS = {"3:cat": (8, 13), "5:dog": (13, 8)}


def best(video: int, of: dict[int, Described] = VIDEOS) -> np.ndarray:
    """Score of each clip of the corpus by a video's best window."""
    scores, seen = np.full(CLIPS, -9.0), of[video]
    for window, vector in enumerate(seen.vectors):
        off = 0.0 if seen.penalty is None else float(seen.penalty[window])
        for row, clip in enumerate(CORPUS):
            scores[row] = max(scores[row], float(vector @ clip) - off)
    return scores


def ranked(scores: np.ndarray, without: set[int], count: int) -> tuple[str, ...]:
    rows = [row for row in np.argsort(-scores) if row not in without]
    return tuple(NAMES[row] for row in rows[:count])


def test_random_clips_are_those_of_the_seed_and_not_of_the_own_source() -> None:
    searched = np.arange(5, 40, 2)
    method = RandomClips(INDEX, searched)
    one, other = method(QUERIES, 17)
    # Clip 7 is one of 18, and the first query's own.
    assert set(one.supports) == {NAMES[row] for row in searched if row != 7}
    assert len(set(other.supports)) == 17 and other.scores == ()
    assert method(QUERIES[1:], 17) == [other]
    assert method([Asked("5:dog", 5, 2)], 17) != [other]


@pytest.mark.parametrize("videos", [VIDEOS, PENALISED])
def test_random_clips_of_described_queries_have_scores_that_choose_nothing(
    videos: dict[int, Described],
) -> None:
    blind, scored = (
        RandomClips(INDEX, np.arange(CLIPS), describe)(QUERIES, 7)
        for describe in (None, videos.__getitem__)
    )
    assert [one.supports for one in blind] == [one.supports for one in scored]
    for query, one in zip(QUERIES, scored, strict=True):
        scores = best(query.video, of=videos)[[NAMES.index(clip) for clip in one.supports]]
        np.testing.assert_allclose(one.scores, scores, atol=1e-5)


def test_oracle_videos_are_the_pairs() -> None:
    assert [one.supports for one in OracleVideos(PAIRS)(QUERIES, 1)] == [(8,), (13,)]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("videos", [VIDEOS, PENALISED])
def test_retrieved_clips_are_the_nearest(share: bool, videos: dict[int, Described]) -> None:
    searched = np.arange(0, CLIPS, 3) if share else None
    outside = set(range(CLIPS)) - set(searched.tolist()) if searched is not None else set()
    method = RetrievedClips(INDEX, videos.__getitem__, 1.0, searched)
    one, other = method(QUERIES, 11)
    assert one.supports == ranked(best(3, videos), outside | {7}, 11)
    assert one.own_source == (0 if share else 1)
    assert other.supports == ranked(best(5, videos), outside, 11)
    assert list(other.scores) != [] and max(other.scores) <= 1
    rows = [NAMES.index(str(clip)) for clip in other.supports]
    np.testing.assert_allclose(other.scores, best(5, of=videos)[rows], atol=1e-5)


@pytest.mark.parametrize("by", [1, 3])
@pytest.mark.parametrize("videos", [VIDEOS, PENALISED])
def test_an_expanded_query_asks_again(by: int, videos: dict[int, Described]) -> None:
    method = RetrievedClips(INDEX, videos.__getitem__, 0.9, None, by, CLIPS)
    (found,) = method(QUERIES[1:], 11)
    seen = videos[5]
    cosines = np.array([[float(vector @ clip) for clip in CORPUS] for vector in seen.vectors])
    weighted = cosines.copy()
    weighted -= 0 if seen.penalty is None else seen.penalty[:, None]
    near = set(np.flatnonzero(cosines.max(0) > 0.9).tolist())
    first = [NAMES.index(name) for name in ranked(weighted.max(0), near, by)]
    windows = np.mean([seen.vectors[weighted[:, row].argmax()] for row in first], axis=0)
    asked = windows / 2 + np.mean([CORPUS[row] for row in first], axis=0) / 2
    scores = (weighted.max(0) + CORPUS @ (asked / np.linalg.norm(asked))) / 2
    assert found.supports == ranked(scores, near, 11) and found.near_duplicates == len(near)
    assert found.scores[0] == pytest.approx(scores[NAMES.index(str(found.supports[0]))], abs=1e-5)


@pytest.mark.parametrize("labelled", [1, 2])
@pytest.mark.parametrize("seen", [VIDEOS, PENALISED])
def test_semi_shot_finds_what_query_and_labelled_videos_are_near_to(
    labelled: int, seen: dict[int, Described]
) -> None:
    method = SemiShot(
        INDEX,
        seen.__getitem__,
        PAIRS,
        lambda video: frozenset({NAMES[11]} if video == 8 else ()),
        labelled,
        candidates=CLIPS,
        duplicate_cosine=1.0,
    )
    (one,) = method(QUERIES[:1], labelled + 5)
    videos = PAIRS["3:cat"][:labelled]
    scores = np.mean([best(video, of=seen) for video in (3, *videos)], axis=0)
    clips = ranked(scores, {7, 11}, 5)
    assert one.supports == (*videos, *clips)
    expected = [scores[NAMES.index(clip)] for clip in clips]
    np.testing.assert_allclose(one.scores, expected, atol=1e-5)
    assert method(QUERIES[:1], 1)[0].supports == videos[:1]


def test_semi_shot_leaves_near_duplicates_of_the_labelled_out() -> None:
    videos = {0: Described(CORPUS[[3]]), 1: Described(CORPUS[[4]])}
    method = SemiShot(
        INDEX, videos.__getitem__, {"0:a": (1,)}, lambda video: frozenset(), 1, 50, 0.999
    )
    (one,) = method([Asked("0:a", 0, 0)], 20)
    assert one.near_duplicates == 1 and not {NAMES[3], NAMES[4]} & set(one.supports)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_crops_lie_within_the_query(share: float) -> None:
    for of in ("time", "space"):
        one, other = QueryCrops(of, share)(QUERIES, 5)
        assert len(one.supports) == 5 and one != other
        assert QueryCrops(of, share)(QUERIES, 3)[0].supports == one.supports[:3]
        for crop in one.supports:
            assert isinstance(crop, dict) and crop["video"] == 3
            left, top, right, bottom = crop.get("box") or (crop["start"], 0, crop["end"], share)
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert right - left == pytest.approx(share) == bottom - top
        assert len({str(crop) for crop in one.supports}) == (1 if share == 1 else 5)
