"""Files behind an address: whole or not there, tried again, and plain words where it fails."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from selfshot.data import remote
from selfshot.data.remote import Remote
from selfshot.errors import StorageError


@pytest.fixture(params=["folder", "memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name}/deep"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}/deep"


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)


def test_files_come_back(address: str, tmp_path: Path) -> None:
    files = pickle.loads(pickle.dumps(Remote(address)))
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


class Flaky:
    """A filesystem that fails so many times before it works."""

    def __init__(self, inner: Any, failures: int, error: Exception) -> None:
        self.inner, self.failures, self.error = inner, failures, error
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls <= self.failures:
                raise self.error
            return method(*args, **kwargs)

        return call


def test_a_passing_fault_is_tried_again(tmp_path: Path) -> None:
    files = Remote(str(tmp_path))
    files.filesystem = Flaky(files.filesystem, 3, OSError("SLOW_DOWN: reduce your request rate"))
    files.write("a", b"1")
    assert files.read("a") == b"1"


def test_one_that_stays_is_told_with_the_mend(tmp_path: Path) -> None:
    files = Remote(str(tmp_path))
    flaky = files.filesystem = Flaky(files.filesystem, 99, OSError("connection refused"))
    with pytest.raises(StorageError, match=r"connection refused.*run the same command again"):
        files.write("a", b"1")
    assert flaky.calls == remote.ATTEMPTS


@pytest.mark.parametrize(
    "error",
    [PermissionError("no"), OSError("AWS Error ACCESS_DENIED during PutObject operation: no")],
)
def test_what_no_attempt_mends_is_told_at_once(tmp_path: Path, error: Exception) -> None:
    files = Remote(str(tmp_path))
    flaky = files.filesystem = Flaky(files.filesystem, 99, error)
    with pytest.raises(StorageError, match="credentials"):
        files.read("a")
    assert flaky.calls == 1


def test_a_query_stays_behind_the_address() -> None:
    files = object.__new__(Remote)
    files.address = "s3://bucket/here?region=eu-west-1"
    assert files.address_of("store/vis") == "s3://bucket/here/store/vis?region=eu-west-1"
