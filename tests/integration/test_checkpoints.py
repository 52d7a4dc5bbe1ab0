"""DeepSpeed's checkpoints are pickles: one that the training did not write is never loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfshot.data.storage import Storage
from selfshot.distributed.checkpoints import DIGESTS, _digests
from selfshot.distributed.sharing import Sharing
from selfshot.distributed.training import TrainingResult, train
from selfshot.distributed.worker import Fleet
from selfshot.errors import UserError
from selfshot.training.loop import Schedule, TaskSpec

pytestmark = [
    pytest.mark.usefixtures("ray_running"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("always:toy. .*is not loaded"),
]


def train_toy(work_dir: Path, **more: Any) -> TrainingResult:
    """Eight steps with checkpoints after 2, 4, 6 and 8; the last two are kept."""
    schedule = Schedule(
        steps=8, warmup_steps=1, weight_decay=1e-2, clip_norm=0.5, log_every=1, checkpoint_every=2
    )
    kwargs = {"seed": 1, **more.pop("kwargs", {})}
    fleet = {key: more.pop(key) for key in {*more} & set(Fleet.__dataclass_fields__)}
    task = TaskSpec("toy", "selfshot.training.toy:build", kwargs)
    more = {"on_log": lambda point: None, **more}
    return train(task, schedule, Fleet(**fleet), work_dir=work_dir, **more)


@pytest.fixture(scope="module")
def undisturbed(ray_running: None, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train_toy(tmp_path_factory.mktemp("undisturbed"))


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


Damage = Callable[[Path, Path], None]


def exchange(checkpoint: Path, mark: Path) -> None:
    """In the place of each file of DeepSpeed, a pickle that runs code."""
    for path in checkpoint.rglob("*.pt"):
        path.write_bytes(pickle.dumps(Evil(mark)))


def add(checkpoint: Path, mark: Path) -> None:
    """DeepSpeed loads what bears such a name."""
    (checkpoint / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(
        pickle.dumps(Evil(mark))
    )


def exchange_with_digests(checkpoint: Path, mark: Path) -> None:
    """The digests of the checkpoint are made to fit; the training's record is another file."""
    exchange(checkpoint, mark)
    (checkpoint / DIGESTS).write_text(json.dumps(_digests(checkpoint)))


def tear(checkpoint: Path, mark: Path) -> None:
    """A file that ends too early."""
    path = next(checkpoint.rglob("*_model_states.pt"))
    path.write_bytes(path.read_bytes()[:-20])


def strip(checkpoint: Path, mark: Path) -> None:
    """A checkpoint of which nothing is known."""
    (checkpoint / "digests.json").unlink()


Place = tuple[Path, dict[str, Any], Path]


def place_in(tmp_path: Path, *, storage: bool = False) -> Place:
    """The work folder, the arguments for it, and the folder of Ray's checkpoints."""
    work_dir, inside = tmp_path / "runs" / "work", Path("scratch", "ray", "train")
    if not storage:
        return work_dir, {}, work_dir / inside
    runs = str(tmp_path / "runs")
    sharing = Sharing(f"file://{tmp_path}/storage", runs, runs)
    return work_dir, {"sharing": sharing}, tmp_path / "storage" / "work" / inside


def cut_off(place: Place) -> list[Path]:
    """A training that ended at step 7; its checkpoints after 4 and 6 are there."""
    work_dir, more, folder = place
    work_dir.mkdir(parents=True)
    with pytest.raises(UserError, match="step 7: the loss is nan"):
        train_toy(work_dir, kwargs={"spoil_step": 7}, **more)
    kept = sorted(path for path in folder.glob("checkpoint_*") if path.is_dir())
    assert len(kept) == 2
    return kept


@pytest.mark.parametrize(
    ("damage", "storage"),
    [
        (add, False),
        (exchange_with_digests, True),
        (exchange, True),
        (tear, False),
        (strip, False),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_loaded(
    tmp_path: Path, undisturbed: TrainingResult, damage: Damage, storage: bool
) -> None:
    place = place_in(tmp_path, storage=storage)
    _, last = cut_off(place)
    damage(last, tmp_path / "ran")
    with pytest.warns(UserWarning, match=rf"{last.name} is not loaded.*goes on from step 4"):
        mended = train_toy(place[0], **place[1])
    assert mended.resumed_from == 4 and not (tmp_path / "ran").exists()
    same_weights(mended, undisturbed)


def test_without_a_sound_one_training_begins_anew(
    tmp_path: Path, undisturbed: TrainingResult
) -> None:
    place = place_in(tmp_path)
    for checkpoint in cut_off(place):
        exchange(checkpoint, tmp_path / "ran")
    with pytest.warns(UserWarning, match="is not loaded.*goes on from step 0"):
        mended = train_toy(place[0], **place[1])
    assert mended.resumed_from == 0 and not (tmp_path / "ran").exists()
    same_weights(mended, undisturbed)


def test_another_machine_goes_on_by_what_storage_has(
    tmp_path: Path, undisturbed: TrainingResult
) -> None:
    place = work_dir, more, _ = place_in(tmp_path, storage=True)
    cut_off(place)
    shutil.rmtree(work_dir)
    work_dir.mkdir()
    mended = train_toy(work_dir, **more)
    assert mended.resumed_from == 6
    same_weights(mended, undisturbed)
    # A record that is lost is no record: nothing is loaded that it does not name.
    Storage(tmp_path / "storage").remove_folder("work/scratch/digests")
    shutil.rmtree(work_dir)
    work_dir.mkdir()
    with pytest.warns(UserWarning, match="none that this training wrote"):
        anew = train_toy(work_dir, **more)
    assert anew.resumed_from == 0


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_the_parts_of_two_ranks_are_one_checkpoint(tmp_path: Path, zero_stage: int) -> None:
    two = {"num_workers": 2, "zero_stage": zero_stage}
    whole = train_toy(tmp_path / "whole", **two)
    work_dir, _, checkpoints = place_in(tmp_path)
    _, last = cut_off((work_dir, two, checkpoints))
    add(last, tmp_path / "ran")
    mended = train_toy(work_dir, **two)
    assert mended.resumed_from == 4 and not (tmp_path / "ran").exists()
    same_weights(mended, whole)


def same_weights(ours: TrainingResult, theirs: TrainingResult) -> None:
    one, other = (load_file(made.export / "model.safetensors") for made in (ours, theirs))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)
