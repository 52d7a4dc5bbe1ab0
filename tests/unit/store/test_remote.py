"""Finished stages behind an address: there when whole, checked by hash, the first one stays."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfshot.data.storage import Storage
from selfshot.errors import StorageError
from selfshot.store import remote
from selfshot.store.folders import RemoteFolder, is_safe
from selfshot.store.remote import DamagedError, SharedStore, parts_of

STAGE, KEY = "vis", "0123456789abcdef"


@pytest.fixture(autouse=True)
def _small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 50)


def finished(folder: Path, files: Mapping[str, bytes], key: str = KEY, note: str = "") -> Path:
    """A finished stage's folder."""
    listed = {}
    for name, content in sorted(files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {"stage": STAGE, "key": key, "note": note, "files": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


FILES = {
    "a.bin": b"a" * 20,
    "deep/b.bin": b"b" * 31,
    "deep/er/empty": b"",
    "z.bin": bytes(range(200)),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    return SharedStore(Storage(str(tmp_path / "storage")))


def upload_of(store: SharedStore) -> str:
    pointer = store.pointer(STAGE, KEY)
    assert pointer is not None
    return f"store/{STAGE}/{KEY}/{pointer.upload}"


def test_a_stage_comes_back_as_it_was(store: SharedStore, tmp_path: Path) -> None:
    made = finished(tmp_path / "made", FILES)
    assert store.keys(STAGE) == set() and not store.fetch(STAGE, KEY, tmp_path / "got")
    assert store.publish(STAGE, KEY, made)
    assert store.keys(STAGE) == {KEY}
    assert store.fetch(STAGE, KEY, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(made)
    assert len([n for n in store.storage.sizes(upload_of(store)) if n.startswith("part-")]) == 3
    for name, content in FILES.items():
        assert store.read_file(STAGE, KEY, name) == content
    assert store.read_file(STAGE, KEY, "no.bin") is None


def test_only_the_pointer_says_that_it_is_there(store: SharedStore, tmp_path: Path) -> None:
    store.publish(STAGE, KEY, finished(tmp_path / "made", FILES))
    store.storage.remove(f"store/{STAGE}/{KEY}.json")
    assert store.keys(STAGE) == set() and store.pointer(STAGE, KEY) is None
    assert not store.fetch(STAGE, KEY, tmp_path / "got") and not (tmp_path / "got").exists()


def test_parts_that_are_there_are_not_sent_again(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = finished(tmp_path / "made", FILES)
    store.publish(STAGE, KEY, made)
    upload = upload_of(store)
    store.storage.remove(f"store/{STAGE}/{KEY}.json")
    store.storage.remove(f"{upload}/part-00001")
    store.storage.write(f"{upload}/part-00002", b"half")
    sent: list[str] = []
    join = Storage.join
    monkeypatch.setattr(Storage, "join", lambda s, p, name: sent.append(name) or join(s, p, name))
    assert store.publish(STAGE, KEY, made)
    assert sorted(sent) == [f"{upload}/part-00001", f"{upload}/part-00002"]
    assert store.fetch(STAGE, KEY, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(made)


@pytest.mark.parametrize("what", ["flipped", "cut", "longer", "gone", "manifest", "no manifest"])
def test_damage_is_seen_and_mended_by_the_next_upload(
    store: SharedStore, tmp_path: Path, what: str
) -> None:
    said: list[str] = []
    store = SharedStore(store.storage, said.append)
    made = finished(tmp_path / "made", FILES)
    store.publish(STAGE, KEY, made)
    upload = upload_of(store)
    part, manifest = f"{upload}/part-00002", f"{upload}/manifest.json"
    content = store.storage.read(part)
    if what == "flipped":
        store.storage.write(part, content[:-1] + b"!")
    elif what == "cut":
        store.storage.write(part, content[:-1])
    elif what == "longer":
        first = f"{upload}/part-00000"
        store.storage.write(first, b"x" + store.storage.read(first))
    elif what == "gone":
        store.storage.remove(part)
    elif what == "manifest":
        store.storage.write(manifest, store.storage.read(manifest).replace(b"z.bin", b"y.bin"))
    else:
        store.storage.remove(manifest)
    name = "a.bin" if what == "longer" else "z.bin"
    assert SharedStore(store.storage, said.append).read_file(STAGE, KEY, name) is None
    assert said
    assert not store.fetch(STAGE, KEY, tmp_path / "got")
    assert not (tmp_path / "got").exists() and not list(tmp_path.glob("*.fetched"))
    assert any("cannot be used" in line and "made again" in line for line in said)
    assert store.publish(STAGE, KEY, made)
    assert upload_of(store) != upload and store.fetch(STAGE, KEY, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(made)


def test_the_first_of_two_stays(store: SharedStore, tmp_path: Path) -> None:
    other = SharedStore(store.storage)
    first = finished(tmp_path / "first", FILES)
    assert store.publish(STAGE, KEY, first)
    pointer = store.pointer(STAGE, KEY)
    # The same files under another manifest are no other result.
    assert other.publish(STAGE, KEY, finished(tmp_path / "same", FILES, note="later"))
    second = finished(tmp_path / "second", FILES | {"a.bin": b"c" * 20})
    assert not other.publish(STAGE, KEY, second)
    assert store.pointer(STAGE, KEY) == pointer
    assert other.fetch(STAGE, KEY, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(first)


def test_two_that_upload_at_once_do_not_mix(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finished(tmp_path / "first", FILES)
    second = finished(tmp_path / "second", {name: b"2" + one for name, one in FILES.items()})
    other = SharedStore(store.storage)
    join, inside = Storage.join, []

    def meanwhile(self: Storage, paths: list[Path], name: str) -> None:
        if not inside:
            inside.append(True)
            assert other.publish(STAGE, KEY, second)
        join(self, paths, name)

    monkeypatch.setattr(Storage, "join", meanwhile)
    monkeypatch.setattr(remote, "AT_ONCE", 1)
    assert not store.publish(STAGE, KEY, first)
    assert store.fetch(STAGE, KEY, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(second)


@pytest.mark.parametrize(
    "name", ["../out", "/etc/passwd", "a/../../b", "a//b", "", ".", "a\\b", "manifest.json"]
)
def test_a_manifest_may_not_lead_out(store: SharedStore, tmp_path: Path, name: str) -> None:
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    said = json.dumps({"stage": STAGE, "key": KEY, "files": {name: entry}}).encode()
    base = f"store/{STAGE}/{KEY}"
    upload = "0" * 16
    store.storage.write(f"{base}/{upload}/manifest.json", said)
    store.storage.write(f"{base}/{upload}/part-00000", b"x")
    pointer = {"upload": upload, "sha256": hashlib.sha256(said).hexdigest(), "part_bytes": 50}
    store.storage.write(f"{base}.json", json.dumps(pointer).encode())
    found = store.pointer(STAGE, KEY)
    assert found is not None
    with pytest.raises(DamagedError, match="may not be there"):
        store.manifest(STAGE, KEY, found)
    assert not store.fetch(STAGE, KEY, tmp_path / "in" / "got")
    assert not (tmp_path / "in" / "got").exists() and not (tmp_path / "in" / "out").exists()


@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_any_pointer_is_read_or_refused(content: bytes) -> None:
    files = Storage("memory://pointers")
    files.write(f"store/{STAGE}/{KEY}.json", content)
    assert SharedStore(files).pointer(STAGE, KEY) is None


@pytest.mark.parametrize("upload", ["../../other", "0" * 15, "", "0" * 16 + "/x"])
def test_a_pointer_may_not_lead_elsewhere(store: SharedStore, upload: str) -> None:
    said = {"upload": upload, "sha256": "0" * 64, "part_bytes": 5}
    store.storage.write(f"store/{STAGE}/{KEY}.json", json.dumps(said).encode())
    assert store.pointer(STAGE, KEY) is None


@given(
    st.lists(st.integers(0, 40), max_size=30), st.integers(1, 60)
)
def test_parts_hold_every_file_once_in_order(sizes: list[int], part_bytes: int) -> None:
    files = {f"{number:03d}": size for number, size in enumerate(sizes)}
    parts = parts_of(files, part_bytes)
    assert [name for part in parts for name in part] == list(files)
    for part in parts:
        assert part and (len(part) == 1 or sum(files[name] for name in part) <= part_bytes)


@given(st.lists(st.binary(max_size=70), max_size=12), st.integers(1, 90), st.randoms())
def test_files_are_cut_where_they_were_joined(
    contents: list[bytes], step: int, rng: random.Random
) -> None:
    import tempfile

    whole, pieces = b"".join(contents), []
    while whole:
        size = rng.randint(1, step)
        pieces.append(whole[:size])
        whole = whole[size:]
    wanted = [(str(n), len(c), hashlib.sha256(c).hexdigest()) for n, c in enumerate(contents)]
    with tempfile.TemporaryDirectory() as folder:
        remote._cut(iter(pieces), wanted, Path(folder))
        assert [(Path(folder) / str(n)).read_bytes() for n in range(len(contents))] == contents


def test_a_part_that_comes_wrong_once_is_read_again(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(STAGE, KEY, finished(tmp_path / "made", FILES))
    pieces, calls = Storage.pieces, []

    def wrong(self: Storage, name: str):
        calls.append(name)
        if len(calls) <= 2:
            yield b"aaa"
        else:
            yield from pieces(self, name)

    monkeypatch.setattr(Storage, "pieces", wrong)
    monkeypatch.setattr(remote, "AT_ONCE", 1)
    assert store.fetch(STAGE, KEY, tmp_path / "got")


@pytest.mark.parametrize("times", [1, 99])
def test_an_outage_is_no_absence(tmp_path: Path, times: int, fail: Any) -> None:
    """Whatever call fails: the stage that was first stays, or the error says that storage does."""
    files = Storage(f"memory://{tmp_path.name}")
    first, other = finished(tmp_path / "a", FILES), finished(tmp_path / "b", {"z.bin": b"other"})
    assert SharedStore(files).publish(STAGE, KEY, first)
    there = {name: files.read(name) for name in files.sizes("", deep=True)}
    whole, outages = files.filesystem, 0
    for call in range(1, 60):
        failing = fail(files, OSError("503 Slow Down"), call, times)
        store = SharedStore(files)
        try:
            assert store.pointer(STAGE, KEY) is not None
            assert not store.publish(STAGE, KEY, other)
            assert store.fetch(STAGE, KEY, tmp_path / f"got-{call}")
            assert store.read_file(STAGE, KEY, "a.bin") == FILES["a.bin"]
        except StorageError:
            outages += 1
        done = failing.calls < call
        files.filesystem = whole
        now = {name: files.read(name) for name in files.sizes("", deep=True)}
        assert {name: now[name] for name in there} == there
        if done:
            break
    assert done and (outages == 0 if times == 1 else outages == call - 1)


def test_a_remote_folder_sends_and_brings(tmp_path: Path) -> None:
    files = Storage(str(tmp_path / "storage"))
    here, there = tmp_path / "here", tmp_path / "there"
    finished(here, {"history.jsonl": b"1\n", "export/a.bin": b"1", "export/b/c.bin": b"22"})
    remote = RemoteFolder(files, "store/vis/key.partial", here)
    remote.push("history.jsonl", "export", "not there")
    other = RemoteFolder(files, "store/vis/key.partial", there)
    assert other.pull("history.jsonl") and not other.pull("never")
    assert other.pull_folder("export") == 2
    assert contents(there) == {
        "history.jsonl": b"1\n", "export/a.bin": b"1", "export/b/c.bin": b"22",
    }  # fmt: skip
    (here / "history.jsonl").write_bytes(b"1\n2\n")
    remote.push("history.jsonl")
    assert other.pull("history.jsonl", missing=True)
    assert (there / "history.jsonl").read_bytes() == b"1\n"
    assert other.pull("history.jsonl") and (there / "history.jsonl").read_bytes() == b"1\n2\n"
    files.write("store/vis/key.partial/.hidden", b"1")
    assert other.pull_folder(missing=True) == 0
    other.remove("export")
    other.remove("history.jsonl")
    other.remove()
    assert files.sizes("", deep=True) == {}


@pytest.mark.parametrize("name", ["a", "a/b.c", "..a", "a..b/c"])
def test_plain_names_are_safe(name: str) -> None:
    assert is_safe(name)
