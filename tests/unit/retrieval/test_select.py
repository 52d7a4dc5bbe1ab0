"""Each kind of supports, through its one interface; and searches that more than one video asks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from refusals import refused
from selfshot.config.supports import SUPPORT_KINDS, SupportsConfig
from selfshot.retrieval.describe import QueryEmbedding
from selfshot.retrieval.index import build_index, unit_vectors
from selfshot.retrieval.search import CorpusSearch, SearchResult
from selfshot.retrieval.select import CROP_SHARE, SELECTORS, Query, Sources, Supports, select

CLIPS, DIM = 211, 7
NAMES = [f"clip-{row:03d}" for row in range(CLIPS)]
CORPUS = unit_vectors(np.random.default_rng(1).normal(size=(CLIPS, DIM)).astype(np.float32), NAMES)
INDEX = build_index(CORPUS, NAMES)
VIDEOS = {
    video: QueryEmbedding(
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
    Query("3:cat", 3, "cat", 0, frozenset({NAMES[7], "gone"})),
    Query("5:dog", 5, "dog", 1),
]
PAIRS = {"3:cat": (8, 13), "5:dog": (13, 8)}


def sources(
    search: CorpusSearch, videos: dict[int, QueryEmbedding], own: dict[int, str] | None = None
) -> Sources:
    """Everything that is found in a corpus by one way to describe the videos."""
    found = {q.key: search(videos[q.video], 11, q.own_source) for q in QUERIES}
    return Sources(
        search, {"windows": found, "seen_penalty": found}, videos.__getitem__, "windows", PAIRS,
        lambda video: frozenset([own[video]] if own and video in own else []),
    )  # fmt: skip


def selected(of: Sources, kind: str, shots: int, extra: int = 0) -> list[Supports]:
    return [SELECTORS[kind](of, query, shots, extra) for query in QUERIES]


def best(video: int, of: dict[int, QueryEmbedding] = VIDEOS) -> np.ndarray:
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


def test_random_clips_are_those_of_the_fold_and_not_of_the_own_source() -> None:
    searched = np.arange(5, 40, 2)
    of = sources(CorpusSearch(INDEX, 1.0, rows=searched), VIDEOS)
    one, other = selected(of, "random", 15, 2)
    # Clip 7 is one of 18, and the first query's own.
    assert set(one.supports) == {NAMES[row] for row in searched if row != 7}
    assert len(set(other.supports)) == 17
    assert selected(of, "random", 17) == [one, other]
    assert SELECTORS["random"](of, dataclasses.replace(QUERIES[1], fold=2), 17, 0) != other


@pytest.mark.parametrize("videos", [VIDEOS, PENALISED])
def test_random_clips_have_scores_that_choose_nothing(videos: dict[int, QueryEmbedding]) -> None:
    search = CorpusSearch(INDEX, 1.0)
    for query, one in zip(QUERIES, selected(sources(search, videos), "random", 7), strict=True):
        assert one.supports == search.draw(7, [query.fold, 29, query.video], query.own_source)
        scores = best(query.video, of=videos)[[NAMES.index(str(clip)) for clip in one.supports]]
        np.testing.assert_allclose(one.scores, scores, atol=1e-5)


@pytest.fixture
def all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfshot.retrieval.search.CANDIDATES", CLIPS)


def test_oracle_videos_are_the_pairs() -> None:
    of = sources(CorpusSearch(INDEX, 1.0), VIDEOS)
    assert [one.supports for one in selected(of, "oracle", 1)] == [(8,), (13,)]
    assert [one.supports for one in selected(of, "query_itself", 1)] == [(3,), (5,)]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("videos", [VIDEOS, PENALISED])
@pytest.mark.parametrize("kind", ["self_shot", "seen_penalty"])
def test_retrieved_clips_are_the_nearest(
    share: bool, videos: dict[int, QueryEmbedding], kind: str
) -> None:
    rows = np.arange(0, CLIPS, 3) if share else None
    outside = set(range(CLIPS)) - set(rows.tolist()) if rows is not None else set()
    of = sources(CorpusSearch(INDEX, 1.0, rows=rows), videos)
    one, other = selected(of, kind, 5, 4)
    assert one.supports == ranked(best(3, videos), outside | {7}, 9)
    assert of.found["windows"]["3:cat"].own_source == (0 if share else 1)
    assert other.supports == ranked(best(5, videos), outside, 9)
    assert max(other.scores) <= 1
    found = [NAMES.index(str(clip)) for clip in other.supports]
    np.testing.assert_allclose(other.scores, best(5, of=videos)[found], atol=1e-5)


@pytest.mark.parametrize("by", [1, 3])
@pytest.mark.parametrize("videos", [VIDEOS, PENALISED])
@pytest.mark.usefixtures("all_candidates")
def test_an_expanded_query_is_searched_again(by: int, videos: dict[int, QueryEmbedding]) -> None:
    seen = videos[5]
    found = CorpusSearch(INDEX, 0.9, expand_by=by)(seen, 11)
    cosines = np.array([[float(vector @ clip) for clip in CORPUS] for vector in seen.vectors])
    weighted = cosines.copy()
    weighted -= 0 if seen.penalty is None else seen.penalty[:, None]
    near = set(np.flatnonzero(cosines.max(0) > 0.9).tolist())
    first = [NAMES.index(name) for name in ranked(weighted.max(0), near, by)]
    windows = np.mean([seen.vectors[weighted[:, row].argmax()] for row in first], axis=0)
    mean = windows / 2 + np.mean([CORPUS[row] for row in first], axis=0) / 2
    scores = (weighted.max(0) + CORPUS @ (mean / np.linalg.norm(mean))) / 2
    assert found.clip_ids == ranked(scores, near, 11) and found.near_duplicates == len(near)
    assert found.scores[0] == pytest.approx(scores[NAMES.index(found.clip_ids[0])], abs=1e-5)


@pytest.mark.parametrize("labelled", [1, 2])
@pytest.mark.parametrize("seen", [VIDEOS, PENALISED])
@pytest.mark.usefixtures("all_candidates")
def test_semi_shot_finds_what_query_and_labelled_videos_are_near_to(
    labelled: int, seen: dict[int, QueryEmbedding]
) -> None:
    search = CorpusSearch(INDEX, 1.0)
    one = selected(sources(search, seen, own={8: NAMES[11]}), "semi_shot", labelled, 5)[0]
    videos = PAIRS["3:cat"][:labelled]
    scores = np.mean([best(video, of=seen) for video in (3, *videos)], axis=0)
    clips = ranked(scores, {7, 11}, 5)
    assert one.supports == (*videos, *clips)
    found = search.together([seen[video] for video in (3, *videos)], 5, {NAMES[7], NAMES[11]})
    expected = [scores[NAMES.index(clip)] for clip in clips]
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def test_near_duplicates_of_the_labelled_are_left_out() -> None:
    videos = [QueryEmbedding(CORPUS[[3]]), QueryEmbedding(CORPUS[[4]])]
    one = CorpusSearch(INDEX, 0.999).together(videos, 19)
    assert one.near_duplicates == 1 and not {NAMES[3], NAMES[4]} & set(one.clip_ids)
    alone = CorpusSearch(build_index(CORPUS[:1], ["only"]), 0.999)
    nothing = alone.together([QueryEmbedding(CORPUS[[0]])] * 2, 3)
    assert nothing == SearchResult((), (), near_duplicates=1)


@pytest.mark.parametrize("share", [0.3, CROP_SHARE, 1.0])
def test_crops_lie_within_the_query(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfshot.retrieval.select.CROP_SHARE", share)
    of = sources(CorpusSearch(INDEX, 1.0), VIDEOS)
    for kind in ("temporal_crops", "spatial_crops"):
        one, other = selected(of, kind, 3, 2)
        assert len(one.supports) == 5 and one != other
        assert selected(of, kind, 3)[0].supports == one.supports[:3]
        for crop in one.supports:
            assert isinstance(crop, dict) and crop["video"] == 3
            left, top, right, bottom = crop.get("box") or (crop["start"], 0, crop["end"], share)
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert right - left == pytest.approx(share) == bottom - top
        assert len({str(crop) for crop in one.supports}) == (1 if share == 1 else 5)


def test_every_kind_that_is_chosen_has_its_function() -> None:
    chosen = {
        name for name, kind in SUPPORT_KINDS.items() if kind.shots != "none" and not kind.reads
    }
    assert set(SELECTORS) == chosen
    assert {kind.reads for kind in SUPPORT_KINDS.values() if kind.reads} <= chosen
    wanted = SupportsConfig(semi_shot=((1, 3), (2, 1)), extra=(0, 2)).chosen(tuple(chosen))
    of = sources(CorpusSearch(INDEX, 1.0), VIDEOS)
    entry = select(of, QUERIES[0], wanted)
    assert entry["query_itself"] == [3] and len(entry["self_shot"]) == len(entry["random"]) == 7
    assert len(entry["semi_shot_1"]) == 4 and entry["semi_shot_2"][:2] == [8, 13]
    # Two labelled videos for seven shots are repeated in their order.
    assert entry["oracle"] == [8, 13, 8, 13, 8, 13, 8]
    scored = {name for name in entry if name.endswith("_scores")}
    assert scored == {"self_shot_scores", "seen_penalty_scores", "random_scores"}
    without = SupportsConfig().chosen(("self_shot",))
    assert set(without) == {"query_itself", "random", "self_shot", "oracle"}


def test_a_query_without_any_clip() -> None:
    alone = CorpusSearch(build_index(CORPUS[:1], ["only"]), 0.9)
    of = sources(alone, dict.fromkeys((3, 5), QueryEmbedding(CORPUS[[0]])))
    with refused("supports.duplicate_cosine"):
        select(of, QUERIES[0], {"self_shot": ("self_shot", 1, 0)})
