"""`selfshot index --embeddings`: made beside its place, gone on with, and never over another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.retrieval.conftest import WriteShards, clustered, write_shards

from refusals import refused
from selfshot.config.load import parse_experiment
from selfshot.retrieval import building
from selfshot.retrieval.building import load_index
from selfshot.studies import corpus

__all__ = ["write_shards"]


def settings(*changes: str) -> Any:
    return parse_experiment("name: index", "the defaults", changes)


def test_an_index_of_embeddings(
    tmp_path: Path, write_shards: WriteShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "TIMED_S", 0.0)
    monkeypatch.setattr(building, "PART_ROWS", 90)
    vectors = clustered(307, 12, seed=1)
    names = write_shards(tmp_path / "embeddings", vectors, (100,), bad=(3,))
    how = settings("index.factory=IVF5,Flat")
    where = {"embeddings": tmp_path / "embeddings", "out": tmp_path / "index"}
    with monkeypatch.context() as broken:
        broken.setattr(building, "merge_lists", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            corpus.index(how, **where)
    assert not where["out"].exists()
    with monkeypatch.context() as trained:
        trained.setattr(building, "train_index", lambda *given, **more: 1 / 0)
        # Other settings begin anew; the same ones go on.
        with pytest.raises(ZeroDivisionError):
            corpus.index(settings("index.factory=IVF6,Flat"), **where)
    corpus.index(how, **where)
    assert {path.name for path in tmp_path.iterdir()} == {"embeddings", "index"}
    index = load_index(where["out"])
    assert list(index.clip_ids) == names and index.nlist == 5
    assert not (where["out"] / "scratch").exists()
    assert np.isfinite(index.search(vectors[:1], 3)[0]).all()
    with refused():
        corpus.index(how, **where)
