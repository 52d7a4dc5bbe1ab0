"""The store: atomic, reused, resumed after kill -9, alone on a key, and honest about damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from selfshot.store.local import MANIFEST, Store, hash_files, stage_key, verify

SETTINGS = {"steps": 5, "rate": 0.1, "nested": {"b": [1, 2], "a": None}}


def make(store: Store, text: str = "hello") -> Path:
    with store.stage("train", 1, SETTINGS, {"data": "abc"}, seeds=(7,)) as folder:
        if not folder.done:
            (folder.path / "deep").mkdir(exist_ok=True)
            (folder.path / "deep" / "weights.bin").write_text(text)
            (folder.path / "empty").touch()
            (folder.scratch / "checkpoint").write_text("not kept")
            folder.finish(metrics={"loss": 0.5})
        return folder.path


def child(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """A process that works in the store, says so, and then stays until it is killed."""
    source = Path(__file__).resolve().parents[3] / "platform"
    code = f"""
import sys, time
from pathlib import Path
from typing import Any
sys.path.insert(0, {str(source)!r})
from selfshot.store.local import Store
store = Store(Path({str(tmp_path)!r}))
with store.stage("slow", 1, {{}}, {{}}) as folder:
{textwrap.indent(textwrap.dedent(body), "    ")}
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_key_depends_on_everything_and_on_no_order() -> None:
    key = stage_key("a", 1, {"x": 1, "y": 2}, {"p": "1", "q": "2"})
    assert key == stage_key("a", 1, {"y": 2, "x": 1}, {"q": "2", "p": "1"})
    assert len(key) == 16 and int(key, 16) >= 0
    others = [
        stage_key("b", 1, {"x": 1, "y": 2}, {"p": "1", "q": "2"}),
        stage_key("a", 2, {"x": 1, "y": 2}, {"p": "1", "q": "2"}),
        stage_key("a", 1, {"x": 1, "y": 3}, {"p": "1", "q": "2"}),
        stage_key("a", 1, {"x": 1, "y": 2}, {"p": "1", "q": "3"}),
    ]
    assert len({key, *others}) == 5
    with pytest.raises(ValueError):
        stage_key("a", 1, {"x": float("nan")}, {})


def test_finished_once_and_reused(tmp_path: Path) -> None:
    path = make(Store(tmp_path))
    manifest = json.loads((path / MANIFEST).read_text())
    assert set(manifest["files"]) == {"deep/weights.bin", "empty"}
    assert manifest["files"]["deep/weights.bin"]["bytes"] == 5
    assert manifest["settings"] == SETTINGS and manifest["inputs"] == {"data": "abc"}
    assert manifest["seeds"] == [7] and manifest["metrics"] == {"loss": 0.5}
    assert manifest["key"] == path.name and manifest["seconds"] >= 0
    assert not (path / "scratch").exists() and not path.with_name(f"{path.name}.partial").exists()
    said: list[str] = []
    assert make(Store(tmp_path, said.append), "other") == path
    assert (path / "deep" / "weights.bin").read_text() == "hello" and not said
    assert verify(path) == []


def test_an_exception_leaves_no_result_and_keeps_the_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.stage("train", 1, SETTINGS, {"data": "abc"}) as folder:
        (folder.path / "half").write_text("half")
        raise RuntimeError
    assert not folder.final.exists()
    with store.stage("train", 1, SETTINGS, {"data": "abc"}) as again:
        assert not again.done and (again.path / "half").read_text() == "half"


@pytest.mark.parametrize("harm", ["missing", "short", "no manifest", "bad manifest"])
def test_damage_is_quarantined_and_made_again(tmp_path: Path, harm: str) -> None:
    path = make(Store(tmp_path))
    weights = path / "deep" / "weights.bin"
    for number in (1, 2):
        if harm == "missing":
            weights.unlink()
        elif harm == "short":
            weights.write_text("hell")
        elif harm == "no manifest":
            (path / MANIFEST).unlink()
        else:
            (path / MANIFEST).write_text("{")
        said: list[str] = []
        assert make(Store(tmp_path, said.append)) == path
        assert len(said) == 1 and f"damaged-{number}" in said[0]
        assert weights.read_text() == "hello" and verify(path) == []
        assert path.with_name(f"{path.name}.damaged-{number}").is_dir()


def test_verify_finds_what_sizes_hide(tmp_path: Path) -> None:
    path = make(Store(tmp_path))
    (path / "deep" / "weights.bin").write_text("hellO")
    (path / "new").touch()
    assert verify(path) == ["deep/weights.bin has changed", "new is not in the manifest"]
    (path / "empty").unlink()
    assert "empty is missing" in verify(path)


def test_kill_9_frees_the_lock_and_keeps_the_work(tmp_path: Path) -> None:
    process = child(tmp_path, '(folder.path / "half").write_text("half")\ntime.sleep(2.5)')
    said: list[str] = []
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Store(tmp_path, said.append).stage("slow", 1, {}, {}) as folder:
        assert not folder.done and not said
        assert (folder.path / "half").read_text() == "half"
        folder.finish()
        assert folder.manifest["seconds"] >= 2  # the killed attempt counts


def test_kill_9_after_finish_leaves_it_finished(tmp_path: Path) -> None:
    process = child(tmp_path, '(folder.path / "whole").write_text("whole")\nfolder.finish()')
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Store(tmp_path).stage("slow", 1, {}, {}) as folder:
        assert folder.done and verify(folder.path) == []


def test_second_process_waits_and_says_so(tmp_path: Path) -> None:
    process = child(tmp_path, "pass")
    said: list[str] = []

    def on_message(message: str) -> None:
        said.append(message)
        process.kill()

    began = time.monotonic()
    with Store(tmp_path, on_message).stage("slow", 1, {}, {}) as folder:
        assert not folder.done
    process.wait()
    assert len(said) == 1 and "another process" in said[0] and time.monotonic() - began < 10


def test_hashes_of_many_files_are_right(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / str(number)).write_text(str(number))
    hashes = hash_files(tmp_path)
    assert len(hashes) == 2000
    known = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert hashes["1"] == {"bytes": 1, "sha256": known}


def test_time_that_is_noted_while_a_stage_is_finished_is_none_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path).stage("train", 1, {}, {}) as folder:
        (folder.path / "weights").write_text("1")
        remove = os.rmdir

        def remove_late(*path: Any, **where: Any) -> None:
            beat = threading.Thread(target=folder._note_seconds)
            beat.start()
            beat.join(0.5)
            remove(*path, **where)

        with monkeypatch.context() as patched:
            patched.setattr(os, "rmdir", remove_late)
            folder.finish()
    assert list(folder.manifest["files"]) == ["weights"]
    assert not (folder.final / "scratch").exists()
