"""Shards without Ray: rows in any order become whole files, once, and the account is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusals import refused
from selfshot.data.corpus_manifest import Manifest, ManifestFile, open_manifest
from selfshot.data.storage import Storage
from selfshot.distributed.embedding import _take_stock
from selfshot.distributed.shards import ShardWriter, Slice, make_slices, read_finished
from selfshot.errors import StorageError
from selfshot.retrieval.embeddings import read_embeddings, read_quarantine

DIM = 5
SETTINGS = {"encoder": "a", "num_frames": 3}


def write_manifest(folder: Path, *lengths: int) -> Manifest:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    row = 0
    for number, length in enumerate(lengths):
        names = [f"clip-{row + at:03d}" for at in range(length)]
        empty = pa.nulls(length, pa.float64())
        table = {"clip_id": names, "uri": names, "start_s": empty, "end_s": empty}
        pq.write_table(pa.table(table), folder / f"part-{number}.parquet")
        row += length
    return open_manifest(str(folder))


def batch(
    rows: list[int], broken: tuple[int, ...] = (), damaged: tuple[int, ...] = ()
) -> dict[str, np.ndarray]:
    vectors = np.array([[row + 0.25 * at for at in range(DIM)] for row in rows], np.float32)
    return {
        "row": np.array(rows),
        "clip_id": np.array([f"clip-{row:03d}" for row in rows], dtype=object),
        "embedding": vectors,
        "error": np.array(["torn" if row in broken else "" for row in rows], dtype=object),
        "decoded": np.array([4 if row in damaged else 7 for row in rows], dtype=np.int32),
        "expected": np.full(len(rows), 7, dtype=np.int32),
        "decode_s": np.full(len(rows), 0.5),
        "model_s": np.full(len(rows), 0.25),
    }


def writer_for(manifest: Manifest, out: Path | str, **more: Any) -> ShardWriter:
    settings = {"dtype": "float32", "max_share": 1.0, "on_progress": None, **more}
    shards = settings.pop("clips_per_shard", 4)
    storage = Storage(out, "--out")
    return ShardWriter(storage, make_slices(manifest, shards), SETTINGS, **settings)


def test_slices_do_not_reach_over_files(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 7, 3)
    slices = make_slices(manifest, 4)
    assert [(part.first, part.start, part.stop) for part in slices] == [
        (0, 0, 4), (4, 4, 7), (0, 7, 10),
    ]  # fmt: skip
    longer = make_slices(write_manifest(tmp_path / "m", 7, 3, 2), 4)
    assert longer[:3] == slices and len(longer) == 4


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_in_any_order_become_whole_shards(tmp_path: Path, dtype: str) -> None:
    manifest = write_manifest(tmp_path / "m", 7, 3)
    writer = writer_for(manifest, tmp_path / "out", dtype=dtype)
    writer.take(batch([8, 2, 5], broken=(5,)))
    writer.take(batch([0, 6, 9, 1]))
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError, match=r"missing: \['shard-00000"):
        writer.check_whole()
    writer.take(batch([7, 4, 3]))
    writer.check_whole()
    assert (writer.done, writer.quarantined, writer.parts) == (10, 1, {})
    assert writer.seconds["decode"] == pytest.approx(5) and writer.seconds["model"] == 2.5
    ids, vectors = read_embeddings(tmp_path / "out")
    rows = [row for row in range(10) if row != 5]
    assert ids == [f"clip-{row:03d}" for row in rows]
    np.testing.assert_array_equal(vectors, batch(rows)["embedding"])
    assert read_quarantine(tmp_path / "out") == [("clip-005", "torn")]
    table = pq.read_table(tmp_path / "out" / "shard-00001.parquet")
    assert table["embedding"].type.list_size == DIM
    assert table["embedding"].type.value_type.to_pandas_dtype() == np.dtype(dtype)


def test_a_clip_that_comes_twice_is_noticed(tmp_path: Path) -> None:
    writer = writer_for(write_manifest(tmp_path / "m", 4), tmp_path / "out")
    writer.take(batch([0, 1]))
    with pytest.raises(RuntimeError, match="came twice"):
        writer.take(batch([1, 3]))


def test_frames_that_were_salvaged_are_counted(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 8)
    writer = writer_for(manifest, tmp_path / "out")
    writer.take(batch([0, 1, 2, 3], broken=(1,), damaged=(0, 1)))
    # A later run counts those of the shards that it finds.
    later = resumed(manifest, tmp_path / "out")
    later.take(batch([4, 5, 6, 7], damaged=(7,)))
    assert later.check_whole() == {"salvaged": 2, "salvaged_frames": 8}
    table = pq.read_table(tmp_path / "out" / "shard-00000.parquet")
    assert table["decoded_frames"].to_pylist() == [4, 4, 7, 7]
    assert table["expected_frames"].to_pylist() == [7, 7, 7, 7]


def test_what_was_begun_is_forgotten_and_what_is_whole_stays(tmp_path: Path) -> None:
    writer = writer_for(write_manifest(tmp_path / "m", 8), tmp_path / "out")
    writer.take(batch([0, 1, 2, 3, 4, 5], broken=(1, 5)))
    writer.forget_unfinished()
    assert (writer.done, writer.quarantined, writer.unfinished()) == (4, 1, [1])
    writer.take(batch([4, 5, 6, 7], broken=(5,)))
    writer.check_whole()
    assert (writer.done, writer.quarantined) == (8, 2)


def resumed(manifest: Manifest, out: Path | str, retry: bool = False, **more: Any) -> ShardWriter:
    writer = writer_for(manifest, out, **more)
    _take_stock(writer, writer.storage, retry, lambda text: None)
    return writer


@pytest.mark.parametrize("address", ["{tmp}/out", "memory://shards/{tmp}"])
def test_a_later_run_takes_stock(tmp_path: Path, address: str) -> None:
    out = address.format(tmp=tmp_path)
    manifest = write_manifest(tmp_path / "m", 7, 3)
    first = writer_for(manifest, out)
    first.take(batch([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], broken=(4,)))
    again = resumed(manifest, out)
    assert (again.unfinished(), again.quarantined, again.done) == ([], 1, 10)
    again.check_whole()
    assert resumed(manifest, out, retry=True).unfinished() == [1]
    # A file that was added changes no shard; one that was changed is embedded again.
    longer = write_manifest(tmp_path / "m", 7, 3, 2)
    assert resumed(longer, out).unfinished() == [3]
    assert resumed(write_manifest(tmp_path / "m", 7, 2, 2), out).unfinished() == [2, 3]
    # A shard that was cut short is as good as absent, and what is left over is removed.
    storage = Storage(out, "--out")
    storage.write("shard-00000.parquet", storage.read("shard-00000.parquet")[:-9])
    storage.write("shard-00009.parquet", b"of a longer manifest")
    storage.write(".shard-00001.parquet.11-0123abcd.partial", b"half")
    assert resumed(write_manifest(tmp_path / "m", 7, 3), out).unfinished() == [0]
    assert "shard-00009.parquet" not in storage.sizes()
    assert not [name for name in storage.sizes() if name.startswith(".")]


@pytest.mark.parametrize("first", range(1, 7))
def test_an_outage_is_no_absent_shard(tmp_path: Path, fail: Any, first: int) -> None:
    manifest, out = write_manifest(tmp_path / "m", 8), f"memory://{tmp_path.name}"
    writer_for(manifest, out).take(batch(list(range(8))))
    again = writer_for(manifest, out)
    assert len(read_finished(again.storage)) == 2
    failing = fail(again.storage, OSError("503 Slow Down"), first)
    try:
        assert len(read_finished(again.storage)) == 2 and failing.calls < first
    except StorageError:
        assert failing.calls >= first
    assert len(read_finished(Storage(out, "--out"))) == 2


def test_shards_of_other_settings_are_refused(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 4)
    writer_for(manifest, tmp_path / "out").take(batch([0, 1, 2, 3]))
    other = writer_for(manifest, tmp_path / "out")
    other.settings = {**SETTINGS, "encoder": "b"}
    with refused():
        _take_stock(other, other.storage, False, lambda text: None)


def test_too_many_broken_clips_end_the_run(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 20)
    writer = writer_for(manifest, tmp_path / "out", max_share=0.1)
    writer.take(batch([0, 1, 2, 3, 4, 5, 6, 7], broken=(2, 3)))
    with refused("embedding.max_quarantine_share"):
        writer.take(batch([8, 9], broken=(9,)))
    # Mended files must be decoded again: the shards that hold broken clips are gone.
    assert list(read_finished(writer.storage)) == ["shard-00001.parquet"]


def test_a_run_in_which_nothing_works_ends_early(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 1000)
    writer = writer_for(manifest, tmp_path / "out", max_share=0.9)
    rows = list(range(199))
    writer.take(batch(rows, broken=tuple(rows)))
    with refused():
        writer.take(batch([199, 200], broken=(199, 200)))


def test_a_slice_is_cut_without_a_gap() -> None:
    file = ManifestFile("part.parquet", 17, "0" * 64)
    part = Slice("shard-00001.parquet", file, first=4, start=104, stop=117)
    pieces = part.cut(5)
    assert [(one.first, one.start, one.stop) for one in pieces] == [
        (4, 104, 109),
        (9, 109, 114),
        (14, 114, 117),
    ]
    assert all((one.name, one.file) == (part.name, part.file) for one in pieces)
