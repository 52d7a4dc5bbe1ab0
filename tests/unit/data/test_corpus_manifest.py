"""Corpus manifests as streams: what is read, what is refused, in how much memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusals import refused
from selfshot.data.corpus_manifest import check_manifest, open_manifest, place_of, read_rows


def write(path: Path, ids: list[str], row_group_size: int = 7, **columns: Any) -> None:
    table = {
        "clip_id": ids,
        "uri": [f"{clip}.mp4" for clip in ids],
        "start_s": pa.nulls(len(ids), pa.float64()),
        "end_s": pa.nulls(len(ids), pa.float64()),
        "source_id": ids,
        **columns,
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=row_group_size)


def ids(start: int, stop: int) -> list[str]:
    return [f"clip-{number:04d}" for number in range(start, stop)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "m" / "part-0.parquet", ids(0, 31))
    write(tmp_path / "m" / "part-1.parquet", ids(31, 42), bytes=[3] * 11, offset=[512] * 11)
    return tmp_path / "m"


def test_rows_come_from_the_groups_that_hold_them(folder: Path) -> None:
    manifest = open_manifest(str(folder))
    assert [file.rows for file in manifest.files] == [31, 11]
    assert manifest.clips == 42 and manifest.root == str(folder)
    check_manifest(manifest)
    for start, stop in ((0, 31), (6, 8), (7, 14), (20, 21), (28, 31)):
        rows = read_rows(manifest, manifest.files[0], start, stop)
        assert rows["clip_id"].to_pylist() == ids(start, stop)
        assert rows["offset"].null_count == stop - start
    last = read_rows(manifest, manifest.files[1], 9, 11)
    assert last["clip_id"].to_pylist() == ids(40, 42)
    assert last["offset"].to_pylist() == [512, 512] and last["bytes"].to_pylist() == [3, 3]


def test_a_change_of_any_byte_is_another_manifest(folder: Path) -> None:
    before = open_manifest(str(folder)).files
    write(folder / "part-1.parquet", ids(31, 42), bytes=[3] * 11, offset=[513] * 11)
    after = open_manifest(str(folder)).files
    assert before[0] == after[0] and before[1].sha256 != after[1].sha256


@pytest.mark.parametrize("hashes_at_once", [5, 1 << 24])
def test_an_unsorted_list_is_searched_for_twins_in_bounded_memory(
    tmp_path: Path, hashes_at_once: int
) -> None:
    shuffled = np.random.default_rng(3).permutation(ids(0, 37)).tolist()
    write(tmp_path / "m" / "a.parquet", shuffled[:20])
    write(tmp_path / "m" / "b.parquet", shuffled[20:])
    check_manifest(open_manifest(str(tmp_path / "m")), hashes_at_once)
    write(tmp_path / "m" / "c.parquet", ["other", shuffled[11]])
    with refused():
        check_manifest(open_manifest(str(tmp_path / "m")), hashes_at_once)


@pytest.mark.parametrize(
    "uri",
    ["../x.mp4", "a/../../x.mp4", "/etc/passwd", "", "file:///etc/passwd", "FILE://x", "zip://a::b"],
)
def test_paths_out_of_the_corpus_are_refused(tmp_path: Path, uri: str) -> None:
    write(tmp_path / "m.parquet", ["a", "b"], uri=["a.mp4", uri])
    with refused():
        check_manifest(open_manifest(str(tmp_path / "m.parquet")))


@pytest.mark.parametrize("uri", ["a..b.mp4", "b/..c/d.mp4", "s3://bucket/a.mp4", "é ü.mp4"])
def test_other_paths_and_addresses_are_not(tmp_path: Path, uri: str) -> None:
    write(tmp_path / "m.parquet", ["a"], uri=[uri])
    check_manifest(open_manifest(str(tmp_path / "m.parquet")))


@pytest.mark.parametrize(
    "columns",
    [
        {"clip_id": ["a", None]},
        {"clip_id": ["a", ""]},
        {"start_s": [0.0, 2.0], "end_s": [None, 2.0]},
        {"start_s": [0.0, -1.0]},
        {"start_s": [0.0, float("nan")]},
        {"offset": [None, 512], "bytes": [4, None]},
        {"offset": [None, -1], "bytes": [4, 4]},
    ],
)
def test_rows_that_make_no_sense(tmp_path: Path, columns: dict[str, Any]) -> None:
    write(tmp_path / "m.parquet", ["a", "b"], **columns)
    with refused():
        check_manifest(open_manifest(str(tmp_path / "m.parquet")))


def test_what_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused():
        open_manifest(str(tmp_path / "empty"))
    (tmp_path / "text.parquet").write_text("clip_id")
    with refused():
        open_manifest(str(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "narrow.parquet")
    with refused():
        open_manifest(str(tmp_path / "narrow.parquet"))
    write(tmp_path / "none.parquet", [])
    with refused():
        open_manifest(str(tmp_path / "none.parquet"))


def test_places() -> None:
    assert place_of("/clips/", "a/b.mp4") == "/clips/a/b.mp4"
    assert place_of("s3://bucket/x", "a.mp4") == "s3://bucket/x/a.mp4"
    assert place_of("/clips", "s3://other/a.mp4") == "s3://other/a.mp4"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"clips": 3}', b'{"root": 3}', b'{"root": null}']
)
def test_facts_that_cannot_be_read(folder: Path, content: bytes) -> None:
    (folder / "corpus.json").write_bytes(content)
    with refused():
        open_manifest(str(folder))
    assert open_manifest(str(folder), root="videos").root == "videos"
