"""Indexes built from shards: near to exact search, measured as they say, resumed when killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.retrieval.conftest import WriteShards, clustered

from selfshot.errors import UserError
from selfshot.retrieval import building
from selfshot.retrieval.building import BuildSettings, build_from_embeddings, load_index
from selfshot.retrieval.embeddings import (
    count_embedded,
    iterate_blocks,
    iterate_ids,
    sample_embeddings,
)
from selfshot.retrieval.exact import ExactSearch
from selfshot.retrieval.index import build_index, unit_vectors
from selfshot.retrieval.kinds import plan_index

CLIPS, DIM = 1511, 24
BAD = (0, 17, 18, 700, 1510)
APPROXIMATE = {
    "ivf_flat": {"lists": 23},
    "ivf_pq": {"lists": 11, "code_bytes": 6, "rerank": 11},
    "hnsw": {"links": 8},
}


@pytest.fixture(autouse=True)
def no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "TIMED_S", 0.0)


@pytest.fixture
def shards(tmp_path: Path, write_shards: WriteShards) -> tuple[Path, list[str], np.ndarray]:
    vectors = clustered(CLIPS, DIM, seed=3)
    broken = vectors.copy()
    broken[list(BAD)] = np.nan
    names = write_shards(tmp_path / "embeddings", broken, (97, 211, 53), bad=BAD)
    return tmp_path / "embeddings", names, np.delete(vectors, BAD, axis=0)


def build(embeddings: Path, folder: Path, **given: Any) -> dict[str, Any]:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    facts = build_from_embeddings(
        embeddings, folder, scratch, BuildSettings(part_rows=400, held_queries=101, **given)
    )
    shutil.rmtree(scratch)
    return facts


def exact_rows(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    def unit(some: np.ndarray) -> np.ndarray:
        return some / np.linalg.norm(some, axis=1, keepdims=True)

    return np.argsort(-unit(queries) @ unit(vectors).T, axis=1)[:, :k]


def test_shards_are_read_in_blocks(shards: tuple[Path, list[str], np.ndarray]) -> None:
    folder, names, vectors = shards
    assert count_embedded(folder) == (len(names), DIM)
    assert [name for part in iterate_ids(folder) for name in part] == names
    for rows, start in ((400, 0), (1, 1490), (313, 626), (97, 100), (5000, 0), (11, 1506)):
        blocks = list(iterate_blocks(folder, rows, start))
        assert [len(ids) for _, ids, _ in blocks[:-1]] == [rows] * (len(blocks) - 1)
        assert [first for first, _, _ in blocks] == list(range(start, len(names), rows))
        assert [name for _, ids, _ in blocks for name in ids] == names[start:]
        if blocks:
            np.testing.assert_array_equal(
                np.concatenate([part for _, _, part in blocks]), vectors[start:]
            )
    rows, sample = sample_embeddings(folder, 101, seed=5)
    assert len(set(rows.tolist())) == 101 and sorted(rows) == rows.tolist()
    np.testing.assert_array_equal(sample, vectors[rows])
    assert sample_embeddings(folder, 101, seed=6)[0].tolist() != rows.tolist()
    assert sample_embeddings(folder, 9999, seed=6)[0].tolist() == list(range(len(names)))


def test_exact_search_in_blocks() -> None:
    vectors = unit_vectors(clustered(211, 7, seed=1), ["clip"] * 211)
    queries = unit_vectors(clustered(13, 7, seed=2), ["query"] * 13)
    search = ExactSearch(queries, 5)
    for start in range(0, 211, 37):
        search.add(start, vectors[start : start + 37])
    assert search.rows.tolist() == exact_rows(queries, vectors, 5).tolist()
    cosines = np.take_along_axis(queries @ vectors.T, search.rows, axis=1)
    np.testing.assert_allclose(search.scores, cosines, atol=1e-6)


def test_made_queries_are_new_and_lie_among_the_others() -> None:
    """As far from their nearest clip as clips are from theirs."""
    rng = np.random.default_rng(4)
    centres = np.repeat(rng.normal(size=(7, 24)), 60, axis=0)
    clips = (centres + 0.3 * rng.normal(size=centres.shape)).astype(np.float32)
    index = build_index(clips, [str(row) for row in range(len(clips))])
    unit = index.vectors_at(np.arange(0, 420, 3))
    made = building.made_queries(index, unit, seed=0)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    nearest = index.search(made, 1)[0][:, 0]
    others = index.search(unit, 2)[0][:, 1]
    assert nearest.max() < 0.999
    assert np.arccos(nearest).mean() == pytest.approx(np.arccos(others).mean(), rel=0.15)


def test_flat_from_shards_is_exact(
    shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, names, vectors = shards
    facts = build(folder, tmp_path / "flat")
    assert facts["exact"] and facts["clips"] == len(names)
    index = load_index(tmp_path / "flat")
    queries = clustered(13, DIM, seed=9)
    wanted = exact_rows(queries, vectors, 7)
    _, found = index.search(queries, 7)
    assert found.tolist() == [[names[row] for row in line] for line in wanted]


@pytest.mark.parametrize("kind", sorted(APPROXIMATE))
def test_approximate_indexes_are_as_good_as_they_say(
    kind: str, shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, names, vectors = shards
    facts = build(folder, tmp_path / "made", kind=kind, wished_recall=0.9, **APPROXIMATE[kind])
    assert facts == json.loads((tmp_path / "made" / "metadata.json").read_text())
    assert facts["recall"] > 0.8 and not facts["exact"]
    index = load_index(tmp_path / "made")
    assert index.plan.kind == kind and index.effort == facts["effort"] and index.dim == DIM
    noise = np.random.default_rng(5).normal(size=(97, DIM))
    queries = (vectors[::15][:97] + 0.4 * noise).astype(np.float32)
    wanted = exact_rows(queries, vectors, 5)
    scores, found = index.search(queries, 5)
    hits = [
        len(set(line) & {names[row] for row in true})
        for line, true in zip(found.tolist(), wanted, strict=True)
    ]
    assert np.mean(hits) / 5 > facts["recall"] - 0.15
    assert (np.diff(scores, axis=1) <= 0).all()
    own = index.vectors([found[0, 0], names[11], names[0]])
    unit = vectors[[names.index(found[0, 0]), 11, 0]]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(own, unit, atol=0.3 if kind == "ivf_pq" else 2e-3)
    query = queries[:1] / np.linalg.norm(queries[0])
    assert scores[0, 0] == pytest.approx(float((query @ own[:1].T)[0, 0]), abs=2e-3)
    index.effort = index.most_effort
    if kind != "ivf_pq":
        assert index.search(queries, 5)[1].tolist() == [[names[r] for r in line] for line in wanted]


@pytest.mark.parametrize("kind", sorted(APPROXIMATE))
def test_subsets_are_searched_alone(
    kind: str, shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, names, _ = shards
    build(folder, tmp_path / "made", kind=kind, effort=3, **APPROXIMATE[kind])
    index = load_index(tmp_path / "made")
    few = [names[row] for row in range(5, 1400, 131)]
    rows = index.clip_ids.share(0.1, seed=7)
    queries = clustered(19, DIM, seed=3)
    for subset, allowed in ((few, set(few)), (rows, set(index.clip_ids.at(rows)))):
        k = min(len(subset), 11)
        scores, found = index.search(queries, k, subset)
        # However thin the subset lies, k of its clips come, each once.
        assert all(len(set(line)) == k and set(line) <= allowed for line in found.tolist())
        assert np.isfinite(scores).all()
    assert set(index.search(queries[:1], len(few), few)[1][0]) == set(few)


@pytest.mark.parametrize(
    ("kind", "killed_after"),
    [("ivf_flat", "train"), ("ivf_pq", "add"), ("hnsw", "add"), ("ivf_flat", "merge")],
)
def test_a_killed_build_goes_on(
    kind: str,
    killed_after: str,
    shards: tuple[Path, list[str], np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _, _ = shards
    given = {"kind": kind, "effort": 4, **APPROXIMATE[kind]}
    build(folder, tmp_path / "whole", **given)
    monkeypatch.setattr(building, "SAVED_EVERY_S", 0.0)
    write, written = building.write_index, []

    def write_some(index: Any, path: Path) -> None:
        if (killed_after == "add" and len(written) == 3) or (killed_after == "train" and written):
            raise KeyboardInterrupt
        written.append(path)
        write(index, path)

    monkeypatch.setattr(building, "write_index", write_some)
    if killed_after == "merge":
        monkeypatch.setattr(building, "measure", lambda *args: 1 / 0)
    scratch = tmp_path / "killed" / "scratch"
    scratch.mkdir(parents=True)
    settings = BuildSettings(part_rows=400, held_queries=101, **given)  # type: ignore[arg-type]
    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        build_from_embeddings(folder, tmp_path / "killed", scratch, settings)
    monkeypatch.undo()
    monkeypatch.setattr(building, "TIMED_S", 0.0)
    if kind != "hnsw":
        monkeypatch.setattr(building, "train_index", lambda *args, **kwargs: 1 / 0)
    said: list[str] = []
    build_from_embeddings(folder, tmp_path / "killed", scratch, settings, said.append)
    assert any("going on" in line for line in said) == (killed_after != "train")
    queries = clustered(31, DIM, seed=3)
    one, other = load_index(tmp_path / "whole"), load_index(tmp_path / "killed")
    if kind == "hnsw":  # two threads do not link a graph alike twice
        one.effort = other.effort = one.most_effort
    for mine, its in zip(one.search(queries, 7), other.search(queries, 7), strict=True):
        assert mine.tolist() == its.tolist()


def test_a_folder_is_moved_with_its_lists(
    shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, _, _ = shards
    build(folder, tmp_path / "here.partial", kind="ivf_flat", lists=7)
    before = load_index(tmp_path / "here.partial").search(np.ones((1, DIM)), 5)
    (tmp_path / "here.partial").rename(tmp_path / "there")
    after = load_index(tmp_path / "there").search(np.ones((1, DIM)), 5)
    assert before[1].tolist() == after[1].tolist()


def test_codes_of_turned_vectors_are_nearer(
    shards: tuple[Path, list[str], np.ndarray], tmp_path: Path, write_shards: WriteShards
) -> None:
    """With variances that differ much, OPQ spreads them over the codes."""
    vectors = np.random.default_rng(2).normal(size=(1009, 12)) * np.geomspace(1, 0.01, 12)
    write_shards(tmp_path / "few", vectors.astype(np.float32), (500,))
    recalls = [
        build(
            tmp_path / "few",
            tmp_path / str(rotation),
            kind="ivf_pq",
            lists=1,
            code_bytes=2,
            rotation=rotation,
        )["recall"]
        for rotation in (False, True)
    ]
    assert recalls[1] > recalls[0] + 0.05


def test_the_effort_reaches_the_wished_recall(
    shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, _, _ = shards
    efforts = {}
    for wished in (0.5, 0.99):
        facts = build(
            folder, tmp_path / str(wished), kind="ivf_flat", lists=23, wished_recall=wished
        )
        efforts[wished] = facts["effort"]
        tried = {point["effort"]: point["recall"] for point in facts["sweep"]}
        assert tried[facts["effort"]] >= wished
        assert all(recall < wished for effort, recall in tried.items() if effort < facts["effort"])
    assert efforts[0.5] < efforts[0.99] <= 23
    by_hand = build(folder, tmp_path / "hand", kind="ivf_flat", lists=23, effort=2)
    assert by_hand["effort"] == 2 and len(by_hand["sweep"]) == 1


SIZES: dict[str, Any] = {
    "memory_gb": 8.0,
    "wished_recall": 0.95,
    "lists": None,
    "code_bytes": None,
    "rotation": False,
    "rerank": 0,
    "links": 32,
    "training_sample": 262_144,
}


def test_the_kind_follows_size_memory_and_wish() -> None:
    def kind(clips: int, dim: int = 128, **given: Any) -> str:
        return plan_index(clips, dim, kind="auto", **SIZES | given).kind

    assert kind(3000) == kind(237_000, 768) == "flat"
    assert kind(10_000_000) == "ivf_flat"
    assert kind(5_000_000, wished_recall=0.99) == "hnsw"
    assert kind(10_000_000, memory_gb=2.0) == kind(100_000_000) == "ivf_pq"
    plan = plan_index(10_000_000, 128, kind="ivf_pq", **SIZES)
    assert plan.code_bytes == 64 and plan.memory_bytes(128) == 72
    assert plan.lists == 262_144 // 39 and plan.disk_bytes(128) == 72
    assert plan_index(10_000_000, 768, kind="ivf_pq", **SIZES).memory_bytes(768) == 72
    assert plan_index(1000, 72, kind="ivf_pq", **SIZES).code_bytes == 36
    assert plan_index(1, 3, kind="ivf_flat", **SIZES).lists == 1
    for message, clips, given in (
        ("memory_gb", 10**8, {"kind": "flat"}),
        ("at least 256", 200, {"kind": "ivf_pq"}),
        ("take 64", 10**6, {"kind": "ivf_pq", "code_bytes": 100}),
    ):
        with pytest.raises(UserError, match=message):
            plan_index(clips, 128, **SIZES | given)
