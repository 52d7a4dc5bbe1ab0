"""Which checkpoints a training wrote, by their SHA-256, and how they are loaded.

DeepSpeed's checkpoints are pickles, which it would load with whatever code is in them. So none is
loaded that is not, byte for byte, one that this training wrote, and of those only tensors and plain
values.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from selfshot.files import digest_bytes, digest_file, write_atomically
from selfshot.store.folders import RemoteFolder

DIGESTS = "digests.json"
_KEPT = 8
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class CheckpointDigests:
    """The digests of a training's checkpoints: files in `scratch/digests/`, one for each attempt.

    A checkpoint holds `digests.json`, the SHA-256 of each of its files. The training's own record
    holds the SHA-256 of that file, and lies apart from the checkpoints: in the work folder and,
    where there is storage, beside history.jsonl in the training's place there. It is written
    before the checkpoint is reported, by rank 0 alone.

    On another machine "this training" is therefore whoever could write to its place in storage:
    the record finds what is damaged, half written, exchanged, added to a checkpoint or brought
    from elsewhere. It is no signature: whoever may write both can pass off a checkpoint as this
    training's. That one can give false weights but run no code, for `weights_only` loads it.
    """

    def __init__(self, work_dir: Path, attempt: str, remote: RemoteFolder | None) -> None:
        """Requests nothing yet.

        Args:
            work_dir: of the training on this node.
            attempt: name of this call of `train`.
            remote: the counterpart of `work_dir` in storage; None: there is none.
        """
        self.folder, self.attempt, self.remote = work_dir / "scratch/digests", attempt, remote

    def note(self, folder: Path, step: int) -> None:
        """Write and record the digests of a checkpoint that all ranks have written; collective.

        Args:
            folder: this rank's part of the checkpoint; rank 0's receives digests.json.
            step: of the checkpoint, for people.

        Raises:
            StorageError: the record cannot be kept in storage.
        """
        import torch.distributed

        parts: list[dict[str, str]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, _digests(folder))
        if torch.distributed.get_rank() != 0:
            return
        content = json.dumps({name: digest for part in parts for name, digest in part.items()})
        (folder / DIGESTS).write_text(content)
        record = self.folder / f"{self.attempt}.json"
        made = json.loads(record.read_text()) if record.exists() else []
        made.append({"step": step, "sha256": digest_bytes(content.encode())})
        write_atomically(record, json.dumps(made[-_KEPT:]))
        if self.remote is not None:
            self.remote.push(f"scratch/digests/{record.name}")

    def damage_of(self, folder: Path) -> str | None:
        """Why a checkpoint may not be loaded, or None; the same on every rank, and collective.

        Args:
            folder: the whole checkpoint on this node.

        Raises:
            StorageError: the record cannot be read.
        """
        import torch.distributed

        answers: list[str | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(answers, self._damage_here(folder))
        return next(filter(None, answers), None)

    def _damage_here(self, folder: Path) -> str | None:
        if self.remote is not None:
            self.remote.pull_folder("scratch/digests")
        known = {
            one["sha256"]
            for record in self.folder.glob("*.json")
            for one in json.loads(record.read_text())
        }
        try:
            content = (folder / DIGESTS).read_bytes()
        except FileNotFoundError:
            return f"{DIGESTS} is missing"
        if digest_bytes(content) not in known:
            return f"{DIGESTS} is none that this training wrote"
        listed, found = json.loads(content), _digests(folder)
        wrong = [name for name in sorted({*listed, *found}) if listed.get(name) != found.get(name)]
        return f"{wrong[0]} is not the file that this training wrote" if wrong else None


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """DeepSpeed's `torch.load` makes tensors, plain values and three classes of its own, no more.

    Anything else in a checkpoint is an `UnpicklingError`, and is not run.
    """
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"  # DeepSpeed passes weights_only=False, which this overrules.
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files below a folder by their path in it, but hidden ones and digests.json."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.name.startswith(".") and name != DIGESTS:
            found[name] = digest_file(path)
    return found
