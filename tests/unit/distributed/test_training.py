"""What crosses from a training's worker to the process that started it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refusals import refused
from selfshot.distributed import training, worker
from selfshot.errors import UserError


def test_a_workers_mistake_arrives_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise UserError("vis.train_shots: 7 is too many", setting="vis.train_shots")

    monkeypatch.setattr(worker, "_train", fail)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)
    worker.train_worker({"work_dir": str(tmp_path), "attempt": "one", "sharing": None})
    with refused("vis.train_shots"):
        training._raise_user_error(tmp_path / "scratch")
