"""Checkpoints of a training that was cut off: kept whatever storage does, dropped if damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from selfshot.data.storage import ATTEMPTS, Storage
from selfshot.distributed.training import _drop_unreadable
from selfshot.errors import StorageError

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
    _drop_unreadable(files, RUN)
    assert files.sizes("", deep=True) == {"scratch/other": 5}


def test_a_list_without_its_checkpoints_is_dropped(files: Storage) -> None:
    files.remove(f"{RUN}/c2/weights")
    _drop_unreadable(files, RUN)
    assert files.sizes("", deep=True) == {}
