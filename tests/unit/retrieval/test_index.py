"""The flat index against a plain comparison, and the shards that feed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfshot.retrieval.building import load_index
from selfshot.retrieval.embeddings import read_embeddings, read_quarantine
from selfshot.retrieval.index import build_index, empty_index, train_index

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(23, 7)).astype(np.float32)
IDS = [f"clip{row:02d}" for row in range(23)]
QUERIES = RANDOM.normal(size=(5, 7)).astype(np.float32) * 13


def by_hand(subset: list[str], k: int) -> tuple[np.ndarray, list[list[str]]]:
    rows = [IDS.index(clip_id) for clip_id in subset]
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    cosines = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True) @ unit[rows].T
    order = np.argsort(-cosines, axis=1)[:, :k]
    best = [[subset[column] for column in line] for line in order]
    return np.take_along_axis(cosines, order, axis=1), best


@pytest.mark.parametrize("k", [1, 3, 11])
@pytest.mark.parametrize("subset", [None, IDS[4:19:2] + IDS[19:]])
def test_search(k: int, subset: list[str] | None, tmp_path: Path) -> None:
    build_index(VECTORS, IDS).save(tmp_path)
    index = load_index(tmp_path)
    assert len(index) == 23 and index.dim == 7
    scores, found = index.search(QUERIES, k, subset)
    expected_scores, expected = by_hand(subset or IDS, k)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert found.tolist() == expected


def test_vectors_have_length_one_and_keep_their_order() -> None:
    index = build_index(VECTORS, IDS)
    rows = [11, 2, 2]
    expected = VECTORS[rows] / np.linalg.norm(VECTORS[rows], axis=1, keepdims=True)
    np.testing.assert_allclose(index.vectors([IDS[row] for row in rows]), expected, atol=1e-6)


def test_ties_come_in_the_order_of_the_index() -> None:
    index = build_index(np.ones((5, 3), dtype=np.float32), list("edcba"))
    assert index.search(np.ones((1, 3), dtype=np.float32), 3)[1].tolist() == [["e", "d", "c"]]


def test_mistakes() -> None:
    index = build_index(VECTORS, IDS)
    zero = VECTORS.copy()
    zero[3] = 0
    with pytest.raises(ValueError, match="clip03"):
        build_index(zero, IDS)
    with pytest.raises(ValueError, match="more than once"):
        build_index(VECTORS[:2], ["a", "a"])
    with pytest.raises(ValueError, match="one row a clip"):
        build_index(VECTORS, IDS[:-1])
    with pytest.raises(ValueError, match="k: 24"):
        index.search(QUERIES, 24)
    with pytest.raises(ValueError, match="k: 3"):
        index.search(QUERIES, 3, IDS[:2])
    with pytest.raises(ValueError, match="unknown"):
        index.search(QUERIES, 1, ["unknown"])
    with pytest.raises(ValueError, match="dim 7"):
        index.search(QUERIES[:, :6], 1)


def test_read_embeddings_leaves_quarantine_out(tmp_path: Path) -> None:
    for shard, rows in enumerate([range(5), range(5, 7)]):
        bad = [row in (1, 5, 6) for row in rows]
        vectors = VECTORS[list(rows)].copy()
        vectors[bad] = np.nan
        table = {
            "clip_id": [IDS[row] for row in rows],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 7),
            "status": ["quarantined" if flag else "embedded" for flag in bad],
            "error": ["broken" if flag else None for flag in bad],
        }
        pq.write_table(pa.table(table), tmp_path / f"shard-{shard:05d}.parquet")
    ids, vectors = read_embeddings(tmp_path)
    assert ids == [IDS[row] for row in (0, 2, 3, 4)]
    np.testing.assert_array_equal(vectors, VECTORS[[0, 2, 3, 4]])
    assert read_quarantine(tmp_path) == [(IDS[row], "broken") for row in (1, 5, 6)]
    with pytest.raises(ValueError, match="no shard"):
        read_embeddings(tmp_path / "nothing")


def test_a_training_that_fails_by_itself_is_not_blamed_on_the_clips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAISS raises a RuntimeError also where a GPU has no memory left."""
    index = empty_index("IVF2,PQ2", 4)

    def train(sample: np.ndarray) -> None:
        raise RuntimeError("Error: 'err == cudaSuccess' failed: out of memory")

    monkeypatch.setattr(index, "train", train)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_index(index, np.eye(4, dtype=np.float32), use_gpu=False)
