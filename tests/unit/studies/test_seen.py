"""The labelled clips of seen classes: what is wrong is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfshot.benchmarks.manifest import Benchmark
from selfshot.errors import UserError
from selfshot.studies.seen import VECTORS_FILE, embed_seen, read_seen


def test_a_benchmark_without_labelled_supports(tmp_path: Path) -> None:
    sides = {"train": ("cat",), "val": (), "test": ("dog",)}
    Benchmark(
        "empty", "folder", 0, 32, 32, 3, classes=sides,
        queries=dict.fromkeys(sides, ()), supports={"train": {"cat": ()}, "test": {"dog": (1,)}},
    ).save(tmp_path)  # fmt: skip
    unused: Any = None
    with pytest.raises(UserError, match=r"evaluation\.supports: .* no support video .* out"):
        embed_seen(
            tmp_path, 3, benchmark_folder=tmp_path, encoder=unused,
            on_progress=lambda done, total: None,
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]


@pytest.mark.parametrize("content", [None, b"", b"no vectors"])
def test_vectors_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / VECTORS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"seen\.safetensors: it cannot be read: .* again"):
        read_seen(tmp_path)
