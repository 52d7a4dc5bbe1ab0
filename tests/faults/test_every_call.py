"""Each thing that is done with storage, with each of its calls failing: once, and from then on.

What comes back is what an undisturbed call gives, or a `StorageError`; done again without a fault,
it gives the same as if there had been none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty import KINDS, PASSING, Plan
from tally import TALLY

from selfshot.benchmarks.corpus_build import Cutting, build_manifest
from selfshot.benchmarks.corpus_items import of_videos
from selfshot.data.corpus_manifest import check_manifest, open_manifest, read_rows
from selfshot.data.storage import Storage
from selfshot.distributed.embedding import _take_stock
from selfshot.distributed.shards import ShardWriter, make_slices
from selfshot.distributed.training import _drop_unreadable
from selfshot.errors import StorageError
from selfshot.store import remote
from selfshot.store.folders import RemoteFolder
from selfshot.store.local import Store
from selfshot.store.remote import SharedStore

STAGE, KEY = "vis", "0123456789abcdef"
FILES = {"a.bin": b"a" * 20, "deep/b.bin": b"b" * 31, "deep/empty": b"", "z.bin": bytes(range(200))}


@dataclasses.dataclass
class Place:
    """A folder of this machine, and storage that is prepared in it."""

    folder: Path

    @property
    def address(self) -> str:
        return f"faulty://{self.folder}/storage"

    @property
    def storage(self) -> Storage:
        return Storage(self.address)

    @property
    def shared(self) -> SharedStore:
        return SharedStore(self.storage)

    @property
    def stored(self) -> dict[str, str]:
        """What storage holds but for what was left half written: names and digests."""
        return digests(self.folder / "storage")

    def stage(self, name: str, note: str = "") -> Path:
        """A finished stage's folder."""
        folder, listed = self.folder / name, {}
        for file, content in FILES.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            listed[file] = {"bytes": len(content), "sha256": sha256}
        manifest = {"stage": STAGE, "key": KEY, "note": note, "files": listed}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder


def digests(folder: Path) -> dict[str, str]:
    """Names and digests of the files below a folder, without hidden ones."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in found.items()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/"))
    }


def nothing(place: Place) -> None:
    (place.folder / "storage").mkdir()


def published(place: Place) -> None:
    place.shared.publish(STAGE, KEY, place.stage("made"))


def publish(place: Place) -> Any:
    return place.shared.publish(STAGE, KEY, place.stage("made")), place.stored


def publish_second(place: Place) -> Any:
    return place.shared.publish(STAGE, KEY, place.stage("second", "of another")), place.stored


def fetch(place: Place) -> Any:
    final = place.folder / "got"
    shutil.rmtree(final, ignore_errors=True)
    return place.shared.fetch(STAGE, KEY, final), digests(final)


def fetch_absent(place: Place) -> Any:
    return place.shared.fetch(STAGE, "f" * 16, place.folder / "got")


def ask(place: Place) -> Any:
    shared = place.shared
    one = shared.read_file(STAGE, KEY, "deep/b.bin"), shared.read_file(STAGE, KEY, "none")
    return str(one), sorted(shared.keys(STAGE)), str(shared.pointer(STAGE, KEY))


def make_stage(place: Place) -> Any:
    """The store of an output folder: the stage is made once, and sent."""
    store = Store(place.folder / "output", shared=place.shared)
    with store.stage("train", 1, {"steps": 5}, {}) as folder:
        if not folder.done:
            (folder.path / "weights.bin").write_bytes(b"12345")
            # A second making would be other bytes, as those of another machine are.
            made = place.folder / "made"
            made.write_text(str(int(made.read_text()) + 1 if made.exists() else 1))
            (folder.path / "times").write_text(made.read_text())
            folder.finish()
        key = folder.key
    names = sorted(path.name for path in (place.folder / "output" / "train").iterdir())
    (pointer,) = (place.folder / "storage" / "store" / "train").glob("*.json")
    return (
        (folder.final / "times").read_text(),
        [name for name in names if not name.endswith(".lock")] == [key],
        pointer.name == f"{key}.json",
    )


def other_machine_made(place: Place) -> None:
    make_stage(place)
    shutil.rmtree(place.folder / "output")


def mirrored(place: Place) -> None:
    folder = place.folder / "work"
    for name in ("export/w", "export/deep/v", "history"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    RemoteFolder(place.storage, "work", folder).push("export", "history")


def push(place: Place) -> Any:
    mirrored(place)
    return place.stored


def pull(place: Place) -> Any:
    remote = RemoteFolder(place.storage, "work", place.folder / "other")
    remote.pull_folder()
    return remote.pull("history"), remote.pull("none"), digests(place.folder / "other")


def remove(place: Place) -> Any:
    remote = RemoteFolder(place.storage, "work", place.folder / "work")
    remote.remove("history")
    remote.remove()
    return place.stored


def check(place: Place) -> Any:
    place.storage.check()
    return place.stored


def read(place: Place) -> Any:
    storage = place.storage
    part = storage.read_part("work/history", 2, 3)
    storage.download("work/export/w", place.folder / "downloaded")
    there = storage.sizes("work", deep=True), storage.size("work/none"), storage.sizes("none")
    return str(part), (place.folder / "downloaded").read_text(), there


def checkpoints(place: Place) -> None:
    import ray

    run = place.folder / "storage" / "run"
    (run / "checkpoint_1").mkdir(parents=True)
    (run / "checkpoint_1" / "weights").write_text("1")
    state = {
        "ray_version": ray.__version__,
        "checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}],
    }
    (run / "checkpoint_manager_snapshot.json").write_text(json.dumps(state))


def keep_checkpoints(place: Place) -> Any:
    _drop_unreadable(place.storage, "run")
    return place.stored


def videos(place: Place) -> None:
    (place.folder / "videos").mkdir()
    for name in "abcde":
        (place.folder / "videos" / f"{name}.mp4").write_text(name)


def list_corpus(place: Place) -> Any:
    """`corpus build --out`: a file for every two videos."""
    root = str(place.folder / "videos")
    facts = build_manifest(
        of_videos(root, []), root, f"{place.address}/corpus", cutting=Cutting(), items_per_file=2,
        workers=2, made_from="a test", on_message=lambda text: None,
    )  # fmt: skip
    return facts["clips"], place.stored


def listed(place: Place) -> None:
    videos(place)
    list_corpus(place)


def read_corpus(place: Place) -> Any:
    manifest = open_manifest(f"{place.address}/corpus")
    check_manifest(manifest)
    rows = [read_rows(manifest, file, 0, file.rows).to_pylist() for file in manifest.files]
    return str(manifest), str(rows)


def embed(place: Place) -> Any:
    """What `selfshot embed` does with its shards, without Ray; returns them, and who was embedded.

    A run goes on with the shards of an earlier one.
    """
    manifest = open_manifest(str(place.folder / "clips.parquet"))
    storage = Storage(f"{place.address}/embedded", "--out")
    writer = ShardWriter(
        storage, make_slices(manifest, 4), {"encoder": "a"}, dtype="float32", max_share=1.0,
        on_progress=None,
    )  # fmt: skip
    _take_stock(writer, storage, False, lambda text: None)
    there = sorted(set(range(3)) - set(writer.unfinished()))
    stored = [name for name in place.stored if name.endswith(".parquet")]
    assert [f"embedded/shard-{number:05d}.parquet" for number in there] == stored
    for index in writer.unfinished():
        rows = np.arange(writer.slices[index].start, writer.slices[index].stop)
        writer.take(
            {
                "row": rows,
                "clip_id": np.array([f"clip-{row}" for row in rows], dtype=object),
                "embedding": np.stack([rows, rows + 0.5], axis=1).astype(np.float32),
                "error": np.array([""] * len(rows), dtype=object),
                "decoded": np.full(len(rows), 3),
                "expected": np.full(len(rows), 3),
                "decode_s": np.zeros(len(rows)),
                "model_s": np.zeros(len(rows)),
            }
        )
    writer.check_whole()
    storage.write("summary.json", b"{}")
    return place.stored


def clips(place: Place) -> None:
    nothing(place)
    names = [f"clip-{row}" for row in range(10)]
    empty = pa.nulls(10, pa.float64())
    columns = {"clip_id": names, "uri": names, "start_s": empty, "end_s": empty}
    pq.write_table(pa.table(columns), place.folder / "clips.parquet")


def half_embedded(place: Place) -> None:
    clips(place)
    embed(place)
    (place.folder / "storage" / "embedded" / "shard-00001.parquet").unlink()


WORK: dict[str, tuple[Callable[[Place], None], Callable[[Place], Any]]] = {
    "publish": (nothing, publish),
    "publish what is there": (published, publish),
    "publish what another machine made": (published, publish_second),
    "fetch": (published, fetch),
    "fetch what is not there": (published, fetch_absent),
    "ask": (published, ask),
    "make a stage": (nothing, make_stage),
    "reuse a stage": (make_stage, make_stage),
    "fetch a stage": (other_machine_made, make_stage),
    "push": (nothing, push),
    "pull": (mirrored, pull),
    "remove": (mirrored, remove),
    "check": (nothing, check),
    "read": (mirrored, read),
    "keep checkpoints": (checkpoints, keep_checkpoints),
    "list a corpus": (videos, list_corpus),
    "list it again": (listed, list_corpus),
    "read a corpus": (listed, read_corpus),
    "embed": (clips, embed),
    "go on embedding": (half_embedded, embed),
}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 50)


@pytest.mark.parametrize(
    "kinds", [1, pytest.param(len(KINDS), marks=pytest.mark.faults)], ids=["a kind", "all kinds"]
)
@pytest.mark.parametrize("name", WORK)
def test_every_call_fails(name: str, kinds: int, plan: Plan, tmp_path: Path) -> None:
    """Each call is the one that fails, with one kind of error after the other, or with each."""
    prepare, work = WORK[name]
    place = Place(tmp_path / "place")

    def prepared() -> None:
        shutil.rmtree(place.folder, ignore_errors=True)
        place.folder.mkdir()
        plan.begin()
        prepare(place)

    prepared()
    plan.begin()
    truth = work(place)
    calls = len(plan.calls())
    assert calls and not plan.failed()
    wrong: list[str] = []
    every_kind = itertools.cycle(KINDS)
    for first, every in itertools.product(range(1, calls + 1), (None, 1)):
        for kind in itertools.islice(every_kind, kinds):
            prepared()
            plan.begin(first, every, [kind])
            ending, problem = "finished", None
            try:
                found = work(place)
            except StorageError as error:
                ending, found = "told that storage fails", truth
                if place.address not in str(error) or "\n" in str(error):
                    problem = f"the message does not name the address: {error}"
                elif every is None and kind in PASSING:
                    problem = f"a single fault is not tried again: {error}"
            except Exception as error:
                problem, found = f"{type(error).__name__}: {error}", truth
            failed = plan.failed()
            if not failed:
                continue  # Threads have another order every time.
            if found != truth:
                problem = f"it gave {found}, not {truth}"
            plan.begin()
            again = work(place)
            if again != truth and problem is None:
                problem = f"done again it gave {again}, not {truth}"
            TALLY.add(len(failed), ending, problem)
            if problem is not None:
                wrong.append(f"{' '.join(failed[0][:4])} ({every}): {problem}"[:400])
    assert not wrong, f"{len(wrong)} runs ended wrong:\n" + "\n".join(wrong[:12])
