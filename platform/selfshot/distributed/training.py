"""Training on Ray Train and DeepSpeed: restarts, checkpoints, history, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfshot.data.retried_files import retried_filesystem
from selfshot.data.storage import Storage
from selfshot.distributed.best import what_was_chosen
from selfshot.distributed.session import Session, current_session
from selfshot.distributed.sharing import Sharing
from selfshot.distributed.worker import (
    EXPORT,
    FAILURE,
    HISTORY,
    START,
    Fleet,
    read_history,
    train_worker,
)
from selfshot.errors import StorageError, UserError, reported_error
from selfshot.repeating import repeated
from selfshot.store.folders import RemoteFolder
from selfshot.training.loop import Schedule, TaskSpec

OnLog = Callable[[dict[str, Any]], None]

FOLLOW_S = 0.25
FOLLOW_AWAY_S = 2.0


class TrainingFailedError(RuntimeError):
    """Training stopped for a reason that is not a person's mistake; the cause is attached."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training left behind."""

    export: Path
    history: list[dict[str, Any]]
    seconds: float
    resumed_from: int
    """Steps that were already done when the last of its starts began."""
    chosen: dict[str, Any]
    """With a validation: the scores of the best network, which is exported, and of the last."""


def train(
    task: TaskSpec,
    schedule: Schedule,
    fleet: Fleet = Fleet(),
    *,
    work_dir: Path,
    validation: Mapping[str, Any] | None = None,
    on_log: OnLog | None = None,
    sharing: Sharing | None = None,
) -> TrainingResult:
    """Train a task to the end, going on from the last checkpoint in `work_dir` if there is one.

    A dead worker is restarted up to `fleet.max_failures` times. After the death of this very
    process the same call goes on. At equal settings the weights are those of an undisturbed run.

    Args:
        task: what is trained.
        schedule: its steps; of its checkpoints two are kept.
        fleet: the workers.
        work_dir: receives history.jsonl and export/; scratch/ in it holds the checkpoints. On a
            cluster it lies on storage that all nodes share.
        validation: scores the module while it learns, and keeps the best (`distributed.best`);
            none: export/ is of the last step.
        on_log: called here for each logged point: the metrics, and stage, steps, steps_per_s and
            eta_s. Points between a checkpoint and a death are reported again.
        sharing: set where nodes have folders of their own: inputs are fetched, and checkpoints,
            history and export go by way of its storage, so another machine can go on as well.

    Raises:
        UserError: settings that the cluster cannot meet, or a loss that is not finite.
        StorageError: storage, or a disk, failed more often than allowed.
        TrainingFailedError: workers failed more often than allowed.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from selfshot.distributed.network import NodesTorchConfig

    session = current_session()
    work_dir = work_dir.resolve()
    scratch = work_dir / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    remote = None if sharing is None else sharing.remote(work_dir)
    attempt = uuid.uuid4().hex[:8]
    # A folder apart: a worker on this machine writes to the other one meanwhile.
    sent = None if remote is None else remote.attempt(attempt, scratch / f"sent-{attempt}")
    for stale in (FAILURE, START):
        (scratch / stale).unlink(missing_ok=True)
    threads, resources = _resources(session, fleet)
    checkpoints = Storage(str(scratch / "ray")) if remote is None else remote.storage
    place = "" if remote is None else f"{remote.place}/scratch/ray"
    _drop_unreadable(checkpoints, f"{place}/train".lstrip("/"))
    began = time.monotonic()

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Not Ray's, which ends the process without a word and stays after the training."""

    trainer = Trainer(
        train_worker,
        train_loop_config={
            "task": task.path,
            "kwargs": dict(task.kwargs),
            "schedule": dataclasses.asdict(schedule),
            "fleet": dataclasses.asdict(fleet),
            "work_dir": str(work_dir),
            "validation": None if validation is None else dict(validation),
            "threads": threads,
            "sharing": None if sharing is None else dataclasses.asdict(sharing),
            "attempt": attempt,
        },
        torch_config=NodesTorchConfig(backend="nccl" if fleet.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=_wanted_workers(fleet),
            use_gpu=fleet.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            # Ray finds the checkpoints of a killed run by these two.
            name="train",
            storage_path=checkpoints.path(place),
            storage_filesystem=None if remote is None else retried_filesystem(checkpoints),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=fleet.max_failures),
        ),
    )
    followed = work_dir if sent is None else sent.folder
    with _followed(followed, task.name, schedule.steps, on_log, sent):
        try:
            _fit(trainer, fleet.max_failures)
        except (ray.train.TrainingFailedError, ray.exceptions.ActorDiedError) as error:
            if sent is not None:
                sent.storage.check()  # If storage is away, that is the reason to report.
            _raise_reported_error(task.name, error)
            raise TrainingFailedError(f"{task.name}: {_last_line(error)}") from error
    if sent is not None:
        sent.pull_folder()
        _take(sent.folder, work_dir)
        _raise_user_error(scratch)
        if not (work_dir / EXPORT).is_dir():
            raise StorageError(
                f"{task.name}: what was trained is no longer at {sent.address}; run the same "
                "command again"
            )
    _raise_user_error(scratch)
    return TrainingResult(
        export=work_dir / EXPORT,
        history=read_history(work_dir / HISTORY),
        seconds=time.monotonic() - began,
        resumed_from=int(json.loads((scratch / START).read_text())["step"]),
        chosen=what_was_chosen(work_dir) if validation is not None else {},
    )


def _fit(trainer: Any, restarts: int) -> None:
    """Train; where the controller's process dies, which Ray Train does not restart, go on."""
    import ray.exceptions

    for left in range(restarts, -1, -1):
        try:
            trainer.fit()
            return
        except ray.exceptions.ActorDiedError as error:
            # With its node, or with this process's, nothing is left to go on with.
            if not left or "worker process has died" not in str(error):
                raise
            _free_workers()


def _free_workers() -> None:
    """Give back what a dead controller had reserved, which Ray holds until the job ends.

    Ray Train's own cleaner queries the dashboard, which an embedded Ray has not.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for content in state._connect_and_get_accessor().get_placement_group_table():
        said = PlacementGroupTableData.FromString(content)
        if said.creator_actor_dead and said.creator_job_id.hex() == job:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(said.placement_group_id)))


def _resources(session: Session, fleet: Fleet) -> tuple[int, dict[str, float]]:
    """Threads of a worker, and what it requests of Ray."""
    num_workers = fleet.num_workers
    if fleet.use_gpu and session.num_gpus < num_workers and not fleet.autoscales:
        raise UserError(
            f"compute.use_gpu: true with num_workers: {num_workers} needs as many GPUs, and Ray "
            f"sees {session.num_gpus:g}; set compute.use_gpu to false or fewer workers",
            setting="compute.use_gpu",
        )
    # A worker is on one node; on a cluster, workers may be on as many.
    cores = len(os.sched_getaffinity(0)) if session.embedded else int(session.node_cpus)
    threads = fleet.threads_per_worker or max(1, cores // num_workers)
    # On one machine more threads than cores are slow but right, so they do not wait for ever.
    share = session.num_cpus / num_workers if session.embedded else float(threads)
    cpus = min(float(threads), max(0.1, int(share * 10) / 10))
    return threads, {"CPU": cpus, **({"GPU": 1.0} if fleet.use_gpu else {})}


def _wanted_workers(fleet: Fleet) -> Any:
    """A number, or the bounds between which Ray Train starts as many as fit."""
    most, least = fleet.num_workers, fleet.min_workers
    return most if least is None else (least, most)


def _drop_unreadable(files: Storage, run: str) -> None:
    """Start anew where the list of checkpoints cannot be read.

    Ray writes that list in place, so a kill in that very millisecond leaves half of it, and Ray
    then refuses to start; it also refuses the list of another Ray version.
    """
    import ray

    try:
        content = files.read(f"{run}/checkpoint_manager_snapshot.json")
    except FileNotFoundError:
        return
    try:
        state = json.loads(content)
        names = [str(entry["checkpoint_dir_name"]) for entry in state["checkpoint_results"]]
        readable = state["ray_version"] == ray.__version__
    except (ValueError, KeyError, TypeError):
        readable = False
    if readable and all(files.sizes(f"{run}/{name}", deep=True) for name in names):
        return
    warnings.warn(
        f"{files.address_of(run)}: the list of checkpoints is cut short, lacks some of them or is "
        "of another version of Ray; they are removed, and the training starts from step 0",
        stacklevel=2,
    )
    files.remove_folder(run)


def _take(sent: Path, work_dir: Path) -> None:
    """Put what a worker sent in the place of what is there."""
    shutil.rmtree(work_dir / EXPORT, ignore_errors=True)
    for path in [*sent.glob("*"), *sent.glob("scratch/*")]:
        target = work_dir / path.relative_to(sent)
        if path.name == "scratch":
            continue
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)


def _raise_user_error(scratch: Path) -> None:
    if (scratch / FAILURE).exists():
        raise UserError(**json.loads((scratch / FAILURE).read_text()))


def _raise_reported_error(name: str, error: Exception) -> None:
    """Raise what ended the last start, if a person, storage or a disk did it to one of its workers.

    Or to the controller; Ray wraps the errors of both.
    """
    workers = getattr(error, "worker_failures", {})
    for wrapped in (*workers.values(), getattr(error, "controller_failure", None)):
        failure = getattr(wrapped, "_base_exc", wrapped)
        if (reported := reported_error(failure)) is not None:
            raise reported from error
        if isinstance(failure, OSError):
            raise StorageError(
                f"{name}: a file cannot be read or written: {_last_line(failure)}; what is done "
                "is kept; run the same command again"
            ) from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


@contextlib.contextmanager
def _followed(
    work_dir: Path, stage: str, steps: int, on_log: OnLog | None, remote: RemoteFolder | None
) -> Iterator[None]:
    """Hand over each point of the history as the worker writes it, or sends it."""
    if on_log is None:
        yield
        return
    follower = _Follower(work_dir, stage, steps, on_log)

    def bring() -> None:
        if remote is not None:
            # The next one comes, or the end of the training does.
            with contextlib.suppress(StorageError):
                remote.pull(f"scratch/{START}")
                remote.pull(HISTORY)

        follower.read()

    with repeated(bring, FOLLOW_S if remote is None else FOLLOW_AWAY_S, "progress"):
        yield
    bring()


class _Follower:
    """Reads the tail of history.jsonl; the worker's start.json says where a start began."""

    def __init__(self, work_dir: Path, stage: str, steps: int, on_log: OnLog) -> None:
        self.history, self.start = work_dir / HISTORY, work_dir / "scratch" / START
        self.stage, self.steps, self.on_log = stage, steps, on_log
        self.began: dict[str, Any] | None = None
        self.seen, self.offset = 0, 0

    def read(self) -> None:
        """Report what is new."""
        try:
            began = json.loads(self.start.read_text())
        except FileNotFoundError:
            return
        if began != self.began:
            # The file was made anew before start.json was, so it is read from its beginning.
            # Step 0 is logged too, of a network that is probed before it is trained.
            self.began, self.seen, self.offset = began, int(began["step"]) or -1, 0
            for line in began["refused"]:
                warnings.warn(
                    f"{self.stage}: {line}; training goes on from step {began['step']}",
                    stacklevel=2,
                )
        if not self.history.exists():
            return  # It comes by way of storage.
        with self.history.open("rb") as file:
            file.seek(self.offset)
            tail = file.read()
        whole = tail[: tail.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            point = json.loads(line)
            if point["step"] > self.seen:
                self.seen = point["step"]
                self.on_log(self._described(point, began))

    def _described(self, point: dict[str, Any], began: dict[str, Any]) -> dict[str, Any]:
        done, seconds = point["step"] - began["step"], point["time"] - began["time"]
        rate = done / max(seconds, 1e-6)
        eta = (self.steps - point["step"]) / rate if rate else float("inf")
        extra = {"stage": self.stage, "steps": self.steps, "steps_per_s": rate, "eta_s": eta}
        return {**point, **extra}
