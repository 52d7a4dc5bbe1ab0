"""The labelled clips of seen classes: what is wrong is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refusals import refused
from selfshot.benchmarks.manifest import Benchmark
from selfshot.retrieval.describe import SEEN_FILE, read_seen
from selfshot.studies.retrieving import make_seen


def test_a_benchmark_without_labelled_supports(tmp_path: Path) -> None:
    splits = {"train": ("cat",), "val": (), "test": ("dog",)}
    Benchmark(
        "empty", "folder", 0, 32, 32, 3, classes=splits,
        queries=dict.fromkeys(splits, ()), supports={"train": {"cat": ()}, "test": {"dog": (1,)}},
    ).save(tmp_path)  # fmt: skip
    context: Any = SimpleNamespace(folders={"benchmark": tmp_path})
    folder: Any = SimpleNamespace(path=tmp_path)
    with refused("evaluation.supports"):
        make_seen(context, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]


@pytest.mark.parametrize("content", [None, b"", b"no vectors"])
def test_vectors_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / SEEN_FILE).write_bytes(content)
    with refused():
        read_seen(tmp_path)
