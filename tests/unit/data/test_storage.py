"""Files behind an address: whole or not there, tried again, and plain words where it fails."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusals import refused
from selfshot.data.storage import ATTEMPTS, Storage
from selfshot.errors import StorageError


@pytest.fixture(params=["folder", "memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name}/deep"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}/deep"


def test_files_come_back(address: str, tmp_path: Path) -> None:
    files = pickle.loads(pickle.dumps(Storage(address)))
    files.check()
    assert files.sizes("") == {} and files.size("a/b.bin") is None
    files.write("a/b.bin", b"12345")
    (tmp_path / "one").write_bytes(b"678")
    files.join([tmp_path / "one", tmp_path / "one"], "a/c/d.bin")
    assert files.sizes("a") == {"b.bin": 5}
    assert files.sizes("", deep=True) == {"a/b.bin": 5, "a/c/d.bin": 6}
    assert files.read("a/b.bin") == b"12345" and files.read_part("a/c/d.bin", 2, 3) == b"867"
    files.download("a/c/d.bin", tmp_path / "new" / "two")
    assert (tmp_path / "new" / "two").read_bytes() == b"678678"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["two"]
    files.remove("a/b.bin")
    files.remove("a/b.bin")
    files.remove_folder("a")
    files.remove_folder("a")
    assert files.sizes("", deep=True) == {}
    with pytest.raises(FileNotFoundError):
        files.read("a/b.bin")
    with pytest.raises(FileNotFoundError):
        files.download("a/b.bin", tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.fixture
def away(tmp_path: Path) -> Storage:
    files = Storage(f"memory://{tmp_path.name}")
    files.write("a", b"0123456789")
    return files


def test_a_passing_fault_is_tried_again(away: Storage, fail: Any) -> None:
    fail(away, OSError("SLOW_DOWN: reduce your request rate"), times=3)
    away.write("b", b"1")
    assert away.read("b") == b"1"


def test_one_that_stays_is_told_with_the_mend(away: Storage, fail: Any) -> None:
    failing = fail(away, OSError("connection refused"))
    with refused(kind=StorageError):
        away.write("b", b"1")
    assert failing.calls == ATTEMPTS


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("no"),
        OSError("AWS Error ACCESS_DENIED during PutObject operation: no"),
        OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: none"),
        OSError("When listing objects\nUnable to locate credentials"),
    ],
)
def test_what_no_attempt_mends_is_told_at_once(away: Storage, error: Exception, fail: Any) -> None:
    failing = fail(away, error)
    for work in (lambda: away.read("a"), away.sizes, lambda: away.size("a")):
        failing.calls = 0
        with refused(kind=StorageError):
            work()
        assert failing.calls == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("torn")])
def test_a_local_disk_is_not_tried_again(tmp_path: Path, error: OSError, fail: Any) -> None:
    for address in (tmp_path, f"file://{tmp_path}"):
        files = Storage(address, "--out")
        failing = fail(files, error)
        with refused(kind=StorageError):
            files.write("a", b"1")
        assert failing.calls == 1


@pytest.mark.parametrize("first", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("times", [1, ATTEMPTS])
def test_a_read_goes_on_where_it_failed(away: Storage, first: int, times: int, fail: Any) -> None:
    """Calls: 1 opens the file, 2, 3 and 4 read; where one fails, the next opens it again."""
    fail(away, OSError("connection reset by peer"), first, times)
    got = []
    try:
        with away.open("a") as file:
            while piece := file.read(4):
                got.append(piece)
    except StorageError:
        assert times == ATTEMPTS and first <= 4
    else:
        assert times == 1 or first > 4
        assert got == [b"0123", b"4567", b"89"]


def test_a_read_that_is_cut_short_is_not_the_end(away: Storage) -> None:
    class Short:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def open_input_file(self, path: str) -> Any:
            file = self.inner.open_input_file(path)
            return SimpleNamespace(
                seek=file.seek, size=file.size, close=file.close, read=lambda n: file.read(n)[:3]
            )

    away.filesystem = Short(away.filesystem)
    with refused(kind=StorageError):
        away.read("a")


def test_only_what_is_not_there_is_not_there(away: Storage, fail: Any) -> None:
    assert away.sizes("none") == {} and away.size("none") is None
    with pytest.raises(FileNotFoundError):
        away.read("none")
    fail(away, OSError("503"))
    for work in (lambda: away.sizes("none"), lambda: away.size("none"), lambda: away.read("none")):
        with refused(kind=StorageError):
            work()


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_of_fsspec_too_only_what_is_not_there_is_not_there(
    away: Storage, monkeypatch: pytest.MonkeyPatch, times: int, first: int
) -> None:
    """fsspec's `exists`, `isfile`, `isdir` and `find` say no, or nothing, where it fails."""
    away.write("deep/er/b", b"1")
    memory, calls = type(away.filesystem.handler.fs), 0
    monkeypatch.setattr("selfshot.data.storage.FIRST_WAIT_S", 0.0)
    expected = {"a": 10, "deep/er/b": 1}

    def failing(name: str) -> Any:
        method = getattr(memory, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if first <= calls < first + times:
                raise OSError("503 Slow Down")
            return method(*args, **kwargs)

        return call

    for name in ("info", "ls"):
        monkeypatch.setattr(memory, name, failing(name))
    wanted: list[tuple[Any, Any]] = [
        (lambda: away.sizes("", deep=True), expected),
        (lambda: away.sizes("none"), {}),
        (lambda: away.size("a"), 10),
        (lambda: away.read("a"), b"0123456789"),
        (lambda: away.remove("deep/er/b"), None),
    ]
    for work, result in wanted:
        calls = 0
        try:
            assert work() == result
        except StorageError as error:
            assert times > 1 and "503" in str(error)
        else:
            assert times == 1 or calls < first
    monkeypatch.undo()
    assert (away.size("deep/er/b") is None) == (times == 1 or first > 1)


def test_a_place_that_vanished_cannot_be_written(away: Storage, fail: Any) -> None:
    fail(away, FileNotFoundError("no such bucket"))
    with refused(kind=StorageError):
        away.write("b", b"1")


@pytest.mark.parametrize("first", range(1, 6))
def test_damaged_parquet_and_an_outage_are_told_apart(away: Storage, first: int, fail: Any) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": range(999)}), sink)
    whole = sink.getvalue().to_pybytes()
    away.write("whole", whole)
    away.write("footer", whole[:-60] + b"\xff" * 52 + whole[-8:])
    with pytest.raises(OSError, match="deserialize"):
        pq.read_table(away.open("footer"))
    failing = fail(away, OSError("503"), first)
    try:
        assert pq.read_table(away.open("whole")).num_rows == 999
    except StorageError:
        assert failing.calls >= first
    else:
        assert failing.calls < first


@pytest.mark.parametrize("address", ["{tmp}/deep/folder", "memory://stored/folder"])
def test_what_a_kill_left_half_written_is_removed(tmp_path: Path, address: str) -> None:
    files = Storage(address.format(tmp=tmp_path), "--out")
    files.write("a.json", b"one")
    files.write("a.json", b"two!")
    files.write(".b.parquet.17-0123abcd.partial", b"left by a kill")
    assert files.read("a.json") == b"two!" and files.sizes()["a.json"] == 4
    files.remove_partial()
    assert files.sizes() == {"a.json": 4}


def test_addresses_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    with refused(kind=StorageError):
        Storage(tmp_path / "file", "--out").write("a", b"")
    with refused("--out"):
        Storage("nosuch://x", "--out")
    with refused("--out", kind=StorageError):
        Storage("ftp://127.0.0.1:9/x", "--out")


def test_a_query_stays_behind_the_address() -> None:
    files = object.__new__(Storage)
    files.address = "s3://bucket/here?region=eu-west-1"
    assert files.address_of("store/vis") == "s3://bucket/here/store/vis?region=eu-west-1"


@pytest.mark.parametrize("appear_whole", [False, True], ids=["moved", "object store"])
def test_of_an_upload_that_fails_nothing_stays(tmp_path: Path, appear_whole: bool) -> None:
    (tmp_path / "one").write_bytes(b"1" * 1000)
    storage = Storage(tmp_path / "there")
    storage.write("other", b"")
    storage._appear_whole = appear_whole
    with refused(kind=StorageError):
        storage.join([tmp_path / "one", tmp_path / "gone"], "part")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["other"]
