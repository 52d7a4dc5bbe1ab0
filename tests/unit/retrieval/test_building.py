"""Indexes built from shards: near to exact search, measured as they say, resumed when killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.retrieval.conftest import WriteShards, clustered

from refusals import refused
from selfshot.errors import UserError
from selfshot.retrieval import building
from selfshot.retrieval.building import (
    BuildSettings,
    build_from_embeddings,
    choose_factory,
    load_index,
)
from selfshot.retrieval.embeddings import (
    count_embedded,
    iterate_blocks,
    iterate_ids,
    sample_embeddings,
)
from selfshot.retrieval.exact import ExactSearch
from selfshot.retrieval.index import build_index, unit_vectors

CLIPS, DIM = 1511, 24
BAD = (0, 17, 18, 700, 1510)
APPROXIMATE = ("IVF23,Flat", "IVF11,PQ6", "IVF11,RaBitQ2", "OPQ6,IVF11,PQ6")


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "TIMED_S", 0.0)
    monkeypatch.setattr(building, "PART_ROWS", 400)
    monkeypatch.setattr(building, "HELD_QUERIES", 101)


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
    facts = build_from_embeddings(embeddings, folder, scratch, BuildSettings(**given))
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
    assert facts["factory"] == "Flat" and facts["clips"] == len(names)
    index = load_index(tmp_path / "flat")
    queries = clustered(13, DIM, seed=9)
    wanted = exact_rows(queries, vectors, 7)
    _, found = index.search(queries, 7)
    assert found.tolist() == [[names[row] for row in line] for line in wanted]


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_approximate_indexes_are_as_good_as_they_say(
    factory: str, shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, names, vectors = shards
    facts = build(
        folder, tmp_path / "made", factory=factory, target_recall=0.9, refine_factor=11
    )
    assert facts == json.loads((tmp_path / "made" / "metadata.json").read_text())
    assert facts["recall"] > 0.8 and facts["factory"] == factory
    index = load_index(tmp_path / "made")
    assert index.nprobe == facts["nprobe"] and index.dim == DIM and index.refine_factor == 11
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
    np.testing.assert_allclose(own, unit, atol=2e-3)
    query = queries[:1] / np.linalg.norm(queries[0])
    assert scores[0, 0] == pytest.approx(float((query @ own[:1].T)[0, 0]), abs=2e-3)
    index.nprobe = index.nlist
    if factory.endswith("Flat"):
        assert index.search(queries, 5)[1].tolist() == [[names[r] for r in line] for line in wanted]


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_subsets_are_searched_alone(
    factory: str, shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, names, _ = shards
    build(folder, tmp_path / "made", factory=factory, nprobe=3)
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
    ("factory", "killed_after"),
    [("IVF23,Flat", "train"), ("IVF11,PQ6", "add"), ("IVF11,RaBitQ4", "merge")],
)
def test_a_killed_build_goes_on(
    factory: str,
    killed_after: str,
    shards: tuple[Path, list[str], np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _, _ = shards
    build(folder, tmp_path / "whole", factory=factory, nprobe=4)
    write, written = building.write_index, []

    def write_some(index: Any, path: Path) -> None:
        if (killed_after == "add" and len(written) == 3) or (killed_after == "train" and written):
            raise KeyboardInterrupt
        written.append(path)
        write(index, path)

    scratch = tmp_path / "killed" / "scratch"
    scratch.mkdir(parents=True)
    settings = BuildSettings(factory=factory, nprobe=4)
    with monkeypatch.context() as broken:
        broken.setattr(building, "write_index", write_some)
        if killed_after == "merge":
            broken.setattr(building, "measure", lambda *args: 1 / 0)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            build_from_embeddings(folder, tmp_path / "killed", scratch, settings)
    monkeypatch.setattr(building, "train_index", lambda *args, **kwargs: 1 / 0)
    said: list[str] = []
    build_from_embeddings(folder, tmp_path / "killed", scratch, settings, said.append)
    assert any("going on" in line for line in said) == (killed_after != "train")
    queries = clustered(31, DIM, seed=3)
    one, other = load_index(tmp_path / "whole"), load_index(tmp_path / "killed")
    for mine, its in zip(one.search(queries, 7), other.search(queries, 7), strict=True):
        assert mine.tolist() == its.tolist()


def test_a_folder_is_moved_with_its_lists(
    shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, _, _ = shards
    build(folder, tmp_path / "here.partial", factory="IVF7,Flat")
    before = load_index(tmp_path / "here.partial").search(np.ones((1, DIM)), 5)
    (tmp_path / "here.partial").rename(tmp_path / "there")
    after = load_index(tmp_path / "there").search(np.ones((1, DIM)), 5)
    assert before[1].tolist() == after[1].tolist()


def test_nprobe_reaches_the_target_recall(
    shards: tuple[Path, list[str], np.ndarray], tmp_path: Path
) -> None:
    folder, _, _ = shards
    found = {}
    for target in (0.5, 0.99):
        facts = build(
            folder, tmp_path / str(target), factory="IVF23,Flat", target_recall=target
        )
        found[target] = facts["nprobe"]
        tried = {point["nprobe"]: point["recall"] for point in facts["sweep"]}
        assert tried[facts["nprobe"]] >= target
        assert all(recall < target for nprobe, recall in tried.items() if nprobe < found[target])
    assert found[0.5] < found[0.99] <= 23
    by_hand = build(folder, tmp_path / "hand", factory="IVF23,Flat", nprobe=2)
    assert by_hand["nprobe"] == 2 and len(by_hand["sweep"]) == 1


def test_the_factory_follows_size_and_memory() -> None:
    def factory(clips: int, dim: int = 128, **given: Any) -> str:
        return choose_factory(clips, dim, BuildSettings(**{"kind": "auto"} | given))[0]

    assert factory(3000) == factory(237_000, 768) == "Flat"
    assert factory(10_000_000) == factory(100_000_000) == "IVF6721,RaBitQ2"
    assert factory(10_000_000, memory_gb=0.5) == factory(10**9) == "IVF6721,RaBitQ1"
    assert factory(10_000_000, kind="ivf_pq") == "IVF6721,PQ64"
    assert factory(10_000_000, 768, kind="ivf_pq") == "IVF6721,PQ64"
    assert factory(1000, 72, kind="ivf_pq") == "IVF25,PQ36"
    assert factory(1, 3, kind="ivf_rabitq") == "IVF1,RaBitQ2"
    assert factory(1, 3, factory="IVF1,Flat") == "IVF1,Flat"
    with refused("index.kind"):
        factory(10**8, kind="flat")


@pytest.mark.parametrize(
    ("factory", "setting", "message"),
    [
        ("IVF7,PQ5", "index.factory", "vectors of 24"),
        ("nonsense", "index.factory", "not possible"),
        ("HNSW32", "index.factory", "an inverted file"),
        ("IVF7,PQ6,RFlat", "index.factory", "an inverted file"),
        ("IVF2000,Flat", "index", "take index.kind flat"),
    ],
)
def test_impossible_factories(
    factory: str,
    setting: str,
    message: str,
    shards: tuple[Path, list[str], np.ndarray],
    tmp_path: Path,
) -> None:
    # FAISS's own words, with the line of its source, are no part of the golden file.
    with pytest.raises(UserError, match=message) as caught:
        build(shards[0], tmp_path / "made", factory=factory)
    assert caught.value.setting == setting
