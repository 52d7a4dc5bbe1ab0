"""Paths of one node on another: mapped, fetched, and what is written comes back."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from refusals import refused
from selfshot.data.storage import Storage
from selfshot.distributed.mapping import _packed, _unpack
from selfshot.distributed.sharing import CACHE, Sharing
from selfshot.distributed.tracking import token_of
from selfshot.distributed.trials import _keep
from selfshot.errors import StorageError
from selfshot.store.local import Store
from selfshot.store.remote import SharedStore
from selfshot.training import loop


@pytest.fixture
def sharing(tmp_path: Path) -> Sharing:
    output = str(tmp_path / "output")
    return Sharing(str(tmp_path / "storage"), output, output)


def finished(sharing: Sharing, text: str = "weights") -> Path:
    """A stage in the sender's folder and in storage."""
    store = Store(Path(sharing.output) / "store", None, SharedStore(Storage(sharing.storage)))
    with store.stage("vis", 1, {}, {}) as folder:
        if not folder.done:
            (folder.path / "export").mkdir()
            (folder.path / "export" / "model.bin").write_text(text)
            folder.finish()
        return folder.final


def test_the_senders_own_node_changes_nothing(sharing: Sharing, tmp_path: Path) -> None:
    path = str(finished(sharing) / "export")
    value = {"a": [path, 3, None], "b": {"c": "vis"}, "d": str(tmp_path / "outputs" / "x")}
    assert sharing.local(value) == value


def test_inputs_are_fetched_to_a_folder_of_the_nodes_own(
    sharing: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = finished(sharing)
    own = tmp_path / "own"
    monkeypatch.setenv(CACHE, str(own))
    kwargs = {"backbone": str(final / "export"), "work": f"{final}.partial", "n": 3, "x": "/etc"}
    found = sharing.local(kwargs)
    assert found["backbone"] == f"{own}/store/vis/{final.name}/export"
    assert (Path(found["backbone"]) / "model.bin").read_text() == "weights"
    assert found["work"] == f"{own}/store/vis/{final.name}.partial"
    assert not Path(found["work"]).exists() and (found["n"], found["x"]) == (3, "/etc")
    assert sharing.local(final) == own / "store" / "vis" / final.name
    # What this node sends on starts at its own folder.
    assert sharing.here.local(found["backbone"]) == found["backbone"]
    remote = sharing.remote(Path(f"{final}.partial"))
    assert remote.place == f"store/vis/{final.name}.partial"
    assert remote.folder == Path(found["work"])


def test_what_storage_has_not_is_told(
    sharing: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "own"))
    with refused("storage", kind=StorageError):
        sharing.local(f"{sharing.output}/store/vis/{'0' * 16}/export")


def render(unit: dict) -> str:
    folder, path = Path(unit["folder"]), Path(unit["path"])
    for name in unit["names"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    path.write_text("[]")
    return str(path)


def test_what_a_unit_wrote_elsewhere_comes_back(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for number in range(2):
        unit = {
            "folder": str(tmp_path / "made"),
            "path": str(scratch / f"{number}.json"),
            "names": [f"a/{number}.txt", f"{number}.txt"],
        }
        packed = _packed(render, unit)
        assert not Path(unit["path"]).exists()
        assert _unpack(packed, unit) == unit["path"]
        assert Path(unit["path"]).read_text() == "[]"
    made = tmp_path / "made"
    found = {str(path.relative_to(made)) for path in made.rglob("*.txt")}
    assert found == {"a/0.txt", "0.txt", "a/1.txt", "1.txt"}
    assert [path.name for path in sorted(scratch.iterdir())] == ["0.json", "1.json"]


def test_a_machine_with_the_same_storage_logs_to_the_same_run(
    sharing: Sharing, tmp_path: Path
) -> None:
    tokens = set()
    for output in (sharing.output, str(tmp_path / "other")):
        ids = Path(output) / "run" / "mlflow" / "hash"
        ids.mkdir(parents=True)
        here = Sharing(sharing.storage, output, output)
        tokens.add(token_of(ids, here.remote(ids)))
    assert len(tokens) == 1



def test_what_a_trial_carries_is_sent_whatever_the_clocks_say(
    sharing: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder on a network disk has the server's times, which may be behind this node's."""
    rows = Path(sharing.output) / "rows"
    rows.mkdir(parents=True)
    (rows / "before.json").write_text("old")
    (rows / "replaced.json").write_text("old")
    (rows / ".half.partial").write_text("of another trial")

    def trial(given: dict[str, Any]) -> dict[str, Any]:
        for name in ("made.json", "deep/made.json", "replaced.json"):
            path = rows / name
            path.parent.mkdir(exist_ok=True)
            (rows / "new").write_text("new")
            os.utime(rows / "new", (1.0, 1.0))
            (rows / "new").replace(path)
        return {"score": 1.0}

    monkeypatch.setattr(loop, "resolve", lambda name: trial)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # A trial sets it in its own process.
    _keep(
        {
            "cpus": torch.get_num_threads(),
            "function": "x:y",
            "sharing": dataclasses.asdict(sharing),
            "out_dir": str(Path(sharing.output) / "trials"),
            "carry": str(rows),
            "trial": {"trial_id": "one"},
        }
    )
    files = Storage(sharing.storage)
    sent = {name: files.read(f"rows/{name}") for name in files.sizes("rows", deep=True)}
    assert sent == dict.fromkeys(["made.json", "deep/made.json", "replaced.json"], b"new")
