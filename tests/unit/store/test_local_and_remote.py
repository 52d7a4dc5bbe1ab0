"""Output folders of several machines over one storage: fetched, not made again, never mixed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from selfshot.data.storage import Storage
from selfshot.errors import StorageError
from selfshot.store.local import Store, verify
from selfshot.store.remote import SharedStore

SOURCE = Path(__file__).resolve().parents[3] / "platform"


def store_of(tmp_path: Path, machine: str, said: list[str] | None = None) -> Store:
    say = (said if said is not None else []).append
    shared = SharedStore(Storage(str(tmp_path / "storage")), say)
    return Store(tmp_path / machine / "store", say, shared)


def make(store: Store, text: str = "hello") -> tuple[Path, bool]:
    """A stage, and whether it had to be made."""
    with store.stage("train", 1, {"steps": 5}, {}) as folder:
        made = not folder.done
        if made:
            (folder.path / "deep").mkdir(exist_ok=True)
            (folder.path / "deep" / "weights.bin").write_text(text)
            (folder.path / "empty").touch()
            folder.finish(metrics={"loss": 0.5})
        return folder.final, made


def test_what_one_machine_made_another_has(tmp_path: Path) -> None:
    first, made = make(store_of(tmp_path, "a"))
    assert made
    second, made = make(store_of(tmp_path, "b"), "other")
    assert not made and verify(second) == [] and second != first
    assert (second / "deep" / "weights.bin").read_text() == "hello"
    assert (second / "manifest.json").read_bytes() == (first / "manifest.json").read_bytes()


def test_an_emptied_output_folder_is_filled_again(tmp_path: Path) -> None:
    make(store_of(tmp_path, "a"))
    shutil.rmtree(tmp_path / "a")
    folder, made = make(store_of(tmp_path, "a"))
    assert not made and verify(folder) == []


def test_a_damaged_folder_is_fetched_and_damaged_storage_is_made_again(tmp_path: Path) -> None:
    said: list[str] = []
    folder, _ = make(store_of(tmp_path, "a"))
    (folder / "empty").unlink()
    folder, made = make(store_of(tmp_path, "a", said))
    assert not made and verify(folder) == [] and "quarantined as" in said[0]
    (part,) = (tmp_path / "storage").rglob("part-*")
    part.write_bytes(b"jello")
    shutil.rmtree(tmp_path / "a")
    folder, made = make(store_of(tmp_path, "a", said))
    assert made and "its SHA-256 is not the manifest's" in said[-1]
    other, made = make(store_of(tmp_path, "b"))
    assert not made and (other / "deep" / "weights.bin").read_text() == "hello"


def test_what_was_made_before_there_was_storage_is_sent(tmp_path: Path) -> None:
    make(Store(tmp_path / "a" / "store"))
    assert not (tmp_path / "storage").exists()
    _, made = make(store_of(tmp_path, "a"))
    assert not made
    _, made = make(store_of(tmp_path, "b"))
    assert not made


def test_of_two_that_made_the_same_stage_the_first_is_everybodys(tmp_path: Path) -> None:
    said: list[str] = []
    late = store_of(tmp_path, "late", said)
    with late.stage("train", 1, {"steps": 5}, {}) as folder:
        (folder.path / "deep").mkdir()
        (folder.path / "deep" / "weights.bin").write_text("late")
        (folder.path / "empty").touch()
        make(store_of(tmp_path, "early"), "early")
        folder.finish()
        assert (folder.final / "deep" / "weights.bin").read_text() == "early"
    assert any("another machine's result is in storage and is taken" in line for line in said)
    aside = folder.final.with_name(f"{folder.key}.other-1")
    assert (aside / "deep" / "weights.bin").read_text() == "late"
    assert verify(folder.final) == []


def test_a_stage_that_fails_while_another_machine_finished_it_is_taken(tmp_path: Path) -> None:
    late = store_of(tmp_path, "late")
    with late.stage("train", 1, {"steps": 5}, {}) as folder:
        (folder.path / "half").touch()
        assert not late.overtaken(folder) and (folder.path / "half").exists()
        make(store_of(tmp_path, "early"), "early")
        assert late.overtaken(folder) and folder.done
        assert (folder.final / "deep" / "weights.bin").read_text() == "early"
        assert not folder.final.with_name(f"{folder.key}.partial").exists()


def test_files_are_found_without_their_stage(tmp_path: Path) -> None:
    folder, _ = make(store_of(tmp_path, "a"))
    other = store_of(tmp_path, "b")
    found = other.find_file("train", folder.name, "deep/weights.bin")
    assert found is not None and found.read_text() == "hello"
    assert not (other.root / "train" / folder.name).exists()
    assert other.find_file("train", folder.name, "no") is None
    assert other.find("train", "0" * 16) is None
    whole = other.find("train", folder.name)
    assert whole is not None and verify(whole) == []


def test_storage_that_is_away_leaves_the_result_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path, "a")

    def away(self: Storage, *args: object) -> None:
        raise OSError("connection refused")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "_written", away)
        with pytest.raises(StorageError, match="run the same command again"):
            make(store)
    folder, made = make(store_of(tmp_path, "a"))
    assert not made and verify(folder) == []
    _, made = make(store_of(tmp_path, "b"))
    assert not made


@pytest.mark.parametrize("before", ["manifest.json", ".json"])
def test_a_kill_before_the_pointer_leaves_no_half_stage(tmp_path: Path, before: str) -> None:
    code = f"""
        import sys, time
        sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parent)!r}]
        from pathlib import Path
        from selfshot.data.storage import Storage
        write = Storage.write
        def stop(self, name, content):
            if name.endswith({before!r}) and ({before!r} != ".json" or "manifest" not in name):
                print("ready", flush=True)
                time.sleep(60)
            write(self, name, content)
        Storage.write = stop
        from test_local_and_remote import make, store_of
        make(store_of(Path({str(tmp_path)!r}), "a"))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    shared = SharedStore(Storage(str(tmp_path / "storage")))
    assert shared.keys("train") == set()
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "storage").rglob("part-*")}
    assert parts
    folder, made = make(store_of(tmp_path, "a"))
    assert not made and shared.keys("train") == {folder.name}
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    other, made = make(store_of(tmp_path, "b"))
    assert not made and verify(other) == []
    assert json.loads((other / "manifest.json").read_text())["metrics"] == {"loss": 0.5}
