from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfshot.files import (
    PARTIAL,
    atomic_file,
    atomic_folder,
    digest_bytes,
    digest_file,
    digest_pieces,
    partial_name,
    remove_partial_files,
    try_lock,
    write_atomically,
)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_atomically(path, "öne")
    with pytest.raises(OSError, match="No space"), atomic_file(path) as partial:
        partial.write_text("half")
        assert path.read_text(encoding="utf-8") == "öne"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]
    assert path.read_text(encoding="utf-8") == "öne"
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path, partial = tmp_path / "out", tmp_path / "scratch" / "out"
    partial.mkdir(parents=True)
    (partial / "left").write_text("by a kill")
    with pytest.raises(RuntimeError), atomic_folder(path, partial) as new:
        assert new == partial and not list(new.iterdir()) and not path.exists()
        raise RuntimeError
    assert not path.exists() and not partial.exists()
    path.mkdir()
    with atomic_folder(path) as new:
        (new / "a").write_text("made")
    assert [one.name for one in path.iterdir()] == ["a"]
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as new:
        (new / "b").write_text("made")
    assert [one.name for one in path.iterdir()] == ["a"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "scratch"]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    names = {partial_name("a"), partial_name("a")}
    assert len(names) == 2 and all(map(PARTIAL.fullmatch, names))
    (tmp_path / "deep").mkdir()
    for name in (*names, "a", ".hidden"):
        (tmp_path / "deep" / name).touch()
    remove_partial_files(tmp_path)
    assert {one.name for one in (tmp_path / "deep").iterdir()} == {"a", ".hidden"}


def test_digests_are_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9999
    (tmp_path / "a").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert digest == digest_bytes(content) == digest_file(tmp_path / "a")
    assert digest == digest_pieces([content[:77], b"", content[77:]])


HOLD = """
import sys
from pathlib import Path
from selfshot.files import file_lock
say = lambda text: print(text, flush=True)
with file_lock(Path(sys.argv[1]), say, "the toy"):
    say("held")
"""


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None and try_lock(tmp_path / "lock") is None
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        said = other.stdout.readline()
        assert said == "the toy: another process works on it; waiting until it ends\n"
        lock.release()
        assert other.stdout.read() == "held\n"
