"""Checkpoints of a training that was cut off: kept whatever storage does, dropped if damaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from refusals import refused
from selfshot.data.storage import ATTEMPTS, Storage
from selfshot.distributed.checkpoints import DIGESTS, CheckpointDigests, weights_only
from selfshot.distributed.training import _drop_unreadable
from selfshot.errors import StorageError
from selfshot.store.folders import RemoteFolder

RUN = "scratch/ray/train"
SNAPSHOT = f"{RUN}/checkpoint_manager_snapshot.json"


@pytest.fixture
def files(tmp_path: Path) -> Storage:
    files = Storage(f"memory://{tmp_path.name}")
    listed = {"checkpoint_results": [{"checkpoint_dir_name": name} for name in ("c1", "c2")]}
    files.write(SNAPSHOT, json.dumps({"ray_version": ray.__version__, **listed}).encode())
    for name in ("c1", "c2"):
        files.write(f"{RUN}/{name}/weights", b"1")
    return files


@pytest.mark.parametrize(
    ("error", "times"),
    [(PermissionError("AccessDenied"), 1), (OSError("AWS Error SLOW_DOWN: 503"), ATTEMPTS)],
)
@pytest.mark.parametrize("first", range(1, 6))
def test_an_outage_deletes_nothing(
    files: Storage, fail: Any, first: int, error: OSError, times: int
) -> None:
    """Storage answers again by the time that something would be deleted."""
    there = files.sizes("", deep=True)
    whole = files.filesystem
    failing = fail(files, error, first, times)
    try:
        _drop_unreadable(files, RUN)
        assert failing.calls < first
    except StorageError:
        assert failing.calls >= first
    files.filesystem = whole
    assert files.sizes("", deep=True) == there


@pytest.mark.parametrize(
    "content", [b"", b'{"checkpoint_res', b"[]", b"null", b"{}", b'{"ray_version": "0.1"}']
)
def test_a_list_that_ray_would_refuse_is_dropped(files: Storage, content: bytes) -> None:
    files.write("scratch/other", b"stays")
    files.write(SNAPSHOT, content)
    with pytest.warns(match="starts from step 0"):
        _drop_unreadable(files, RUN)
    assert files.sizes("", deep=True) == {"scratch/other": 5}


def test_a_list_without_its_checkpoints_is_dropped(files: Storage) -> None:
    files.remove(f"{RUN}/c2/weights")
    with pytest.warns(match="starts from step 0"):
        _drop_unreadable(files, RUN)
    assert files.sizes("", deep=True) == {}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_what_deepspeed_loads_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"a": Evil(tmp_path / "ran")}, path)
    with weights_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)  # As DeepSpeed calls it.
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "ranks"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_checkpoint_is_known_by_the_record_of_its_training(tmp_path: Path, fail: Any) -> None:
    files = Storage(f"memory://{tmp_path.name}-digests")
    here, there, made = (tmp_path / name for name in ("here", "there", "made"))
    ours = CheckpointDigests(here, "one", RemoteFolder(files, "work", here))
    (made / "state").mkdir(parents=True)
    for step in (2, 4):
        (made / "state" / "a.pt").write_text(f"weights {step}")
        ours.note(made, step)
        assert ours.damage_of(made) is None
    # Another machine, and another attempt, know it by storage alone.
    others = CheckpointDigests(there, "two", RemoteFolder(files, "work", there))
    assert others.damage_of(made) is None
    (made / "state" / "b.pt").write_text("more")
    assert others.damage_of(made) == "state/b.pt is not the file that this training wrote"
    others.note(made, 6)
    assert ours.damage_of(made) is None
    assert files.sizes("work/scratch/digests").keys() == {"one.json", "two.json"}
    (made / DIGESTS).write_text("{}")
    assert ours.damage_of(made) == f"{DIGESTS} is none that this training wrote"
    (made / DIGESTS).unlink()
    assert ours.damage_of(made) == f"{DIGESTS} is missing"
    assert ours.remote is not None
    fail(ours.remote.storage, OSError("503"))
    for work in (lambda: ours.damage_of(made), lambda: ours.note(made, 8)):
        with refused(kind=StorageError):
            work()
