"""What one Ray Train worker does: the loop of `training.loop.run_plain`, on a DeepSpeed engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from selfshot.distributed.best import BEST, LAST, SCORES, BestExport
from selfshot.distributed.checkpoints import CheckpointDigests, weights_only
from selfshot.distributed.sharing import Sharing
from selfshot.errors import UserError
from selfshot.files import atomic_folder, write_atomically
from selfshot.store.folders import RemoteFolder

if TYPE_CHECKING:
    from selfshot.training.loop import Schedule

CONFIGS = Path(__file__).parent / "deepspeed"
HISTORY = "history.jsonl"
EXPORT = "export"
START = "start.json"
FAILURE = "failure.json"
SEND_EVERY_S = 5.0
PLACED = ("kwargs", "validation", "work_dir")
"""Arguments that name places."""
KEPT = "kept"


@dataclasses.dataclass(frozen=True)
class Fleet:
    """The workers of a training.

    Attributes:
        num_workers: data-parallel workers.
        min_workers: go on with as few where the cluster has no more; None: wait for all.
        threads_per_worker: None divides this machine's cores among the workers.
        use_gpu: one GPU a worker, bfloat16 autocast, NCCL; otherwise gloo and float32.
        autoscales: wait for GPUs that the cluster has not, instead of refusing.
        zero_stage: which of deepspeed/zero{0,1,2,3}.json.
        max_failures: restarts after a worker's death.
        loader_workers: processes that make a worker's batches; 0: a thread of its own.
    """

    num_workers: int = 1
    min_workers: int | None = None
    threads_per_worker: int | None = None
    use_gpu: bool = False
    autoscales: bool = False
    zero_stage: int = 0
    max_failures: int = 2
    loader_workers: int = 0


def deepspeed_config(
    zero_stage: int,
    *,
    learning_rate: float,
    weight_decay: float,
    clip_norm: float,
    use_gpu: bool,
) -> dict[str, Any]:
    """The JSON of a ZeRO stage with an experiment's own numbers in it."""
    config: dict[str, Any] = json.loads((CONFIGS / f"zero{zero_stage}.json").read_text())
    config["optimizer"]["params"] |= {"lr": learning_rate, "weight_decay": weight_decay}
    config["gradient_clipping"] = clip_norm
    # Autocast keeps weights, gradients and the optimiser in float32, which the plain loop has too.
    if use_gpu:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def read_history(path: Path) -> list[dict[str, Any]]:
    """Logged points; a last line cut short by a kill is left out."""
    points = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                points.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return points


def _reopen_history(path: Path, start_step: int) -> IO[str]:
    """Drop the points after the checkpoint, which will be made again, and append.

    The file is a new one, so a worker of a killed run that still breathes writes elsewhere.
    """
    # From the beginning even step 0, a probe, is made again.
    kept = [point for point in read_history(path) if start_step and point["step"] <= start_step]
    write_atomically(path, "".join(json.dumps(point) + "\n" for point in kept))
    return path.open("a")


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of Ray Train; `config` holds the arguments of `distributed.training.train`.

    A mistake that a restart cannot mend (a UserError, a loss that is not finite) is written to a
    file and ends the work quietly, where an exception would be retried `max_failures` times. A
    StorageError is raised: a restart may find storage again.

    Raises:
        UserError: of one rank alone; its peers would wait for it, and a restart may mend it.
    """
    import torch.distributed

    config, place = _on_this_node(config)
    remote = None if place is None else place.attempt(config["attempt"])
    digests = CheckpointDigests(Path(config["work_dir"]), config["attempt"], place)
    scratch = Path(config["work_dir"]) / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        _train(config, scratch, remote, digests)
    except UserError as error:
        from selfshot.training.loop import NonFiniteLossError

        # Every rank sees a loss that is not finite.
        if torch.distributed.get_world_size() > 1 and not isinstance(error, NonFiniteLossError):
            raise
        write_atomically(
            scratch / FAILURE, json.dumps({"message": str(error), "setting": error.setting})
        )
        if remote is not None:
            remote.push(f"scratch/{FAILURE}")


def _on_this_node(config: dict[str, Any]) -> tuple[dict[str, Any], RemoteFolder | None]:
    """The same work with the paths of this node, and the counterpart of its folder in storage."""
    if config["sharing"] is None:
        return config, None
    sharing = Sharing(**config["sharing"])
    place = sharing.remote(Path(config["work_dir"]))
    return {**config, **sharing.local({k: config[k] for k in PLACED})}, place


def _train(
    config: dict[str, Any], scratch: Path, remote: RemoteFolder | None, digests: CheckpointDigests
) -> None:
    fleet = Fleet(**config["fleet"])
    os.environ["DS_ACCELERATOR"] = "cuda" if fleet.use_gpu else "cpu"
    import ray.train
    import torch

    from selfshot.training import batches as ahead
    from selfshot.training import loop

    plan = loop.Schedule(**config["schedule"])
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(plan.seed)
    task = loop.build_task(config["task"], config["kwargs"])
    engine, peaks = _initialise(task, plan, fleet)
    work_dir = Path(config["work_dir"])
    meter = loop.Meter()
    parts = engine.gradient_accumulation_steps()
    kept_to = work_dir if remote is not None and rank == 0 else None
    start, refused = _restore(engine, meter, kept_to, digests)
    best = BestExport(work_dir, config["validation"]) if config["validation"] else None
    history: IO[str] | None = None
    sent_at = time.monotonic()

    def log(point: dict[str, Any]) -> None:
        nonlocal sent_at
        if history is not None:
            history.write(json.dumps({**point, "time": time.time()}) + "\n")
            history.flush()
            if remote is not None and time.monotonic() - sent_at > SEND_EVERY_S:
                remote.push(HISTORY)
                sent_at = time.monotonic()

    def judged(done: int) -> bool:
        return best is not None and done > 0 and best.due(done, plan.steps)

    def probe(done: int) -> dict[str, float]:
        """Of rank 0, while the others wait."""
        probing, judging = loop.probe_due(task, done), judged(done)
        if not probing and not judging:
            return {}
        with _whole_weights(task.module, fleet.zero_stage, change=False):
            if rank != 0:
                return {}
            figures = cast(loop.WatchedTask, task).probe() if probing else {}
            return {**figures, **best.judge(task, done)} if judging and best else figures

    if rank == 0:
        history = _reopen_history(work_dir / HISTORY, start)
        began = {"step": start, "time": time.time(), "refused": refused}
        write_atomically(scratch / START, json.dumps(began))
        if best is not None:
            best.start(start)
        if remote is not None:
            remote.push(HISTORY, f"scratch/{START}")
    if start == 0:
        _start(task, fleet.zero_stage, rank)
    if start == 0 and (before := probe(0)):
        log({"step": 0, **before})
    batches_made, since = 0, time.monotonic()
    with ahead.load_batches(
        loop.batch_maker(task, rank, world_size),
        range(start, plan.steps),
        workers=fleet.loader_workers,
    ) as batches:
        for step, batch in batches:
            multiplier = plan.multiplier(step)
            for group, peak in zip(engine.optimizer.param_groups, peaks.values(), strict=True):
                group["lr"] = peak * multiplier
            loop.seed_step(plan.seed, step, rank)
            metrics: dict[str, float] = {}
            norm: float | None = None
            for part in loop.parts_of(task, batch):
                outputs = engine(ahead.to_device(part, engine.device))
                names, values = loop.read_scalars(outputs)
                if world_size > 1:
                    torch.distributed.all_reduce(values)
                    values /= world_size
                metrics = loop.add_scalars(metrics, dict(zip(names, values.tolist(), strict=True)))
                loop.check_finite(metrics, step, task, part)
                # The engine takes the mean over parts, and their losses are shares of the whole.
                engine.backward(outputs["loss"] * parts if parts > 1 else outputs["loss"])
                norm = _gradient_norm(engine, fleet.zero_stage)
                engine.step()
            if norm is None:
                norm = engine.get_global_grad_norm()
            if norm is not None:
                metrics["grad_norm"] = float(norm)
            meter.add(metrics)
            batches_made += 1
            with _whole_weights(task.module, fleet.zero_stage, change=True):
                task.after_step(step)
            done = step + 1
            probing = loop.probe_due(task, done) or judged(done)
            if done % plan.log_every == 0 or done == plan.steps or probing:
                speed = loop.pace(task, batches_made, time.monotonic() - since)
                means = {**meter.take(), **speed, **probe(done)}
                log({"step": done, **means, **loop.learning_rates(peaks, multiplier)})
                batches_made, since = 0, time.monotonic()
            if done % plan.checkpoint_every == 0 or done == plan.steps:
                # On another machine it is all that there is of this run.
                kept = work_dir if remote is not None and rank == 0 else None
                _checkpoint(engine, meter, done, scratch, kept, digests)
    with _whole_weights(task.module, fleet.zero_stage, change=False):
        if rank == 0 and best is None:
            _export(task, work_dir / EXPORT)
        elif rank == 0 and best is not None:
            best.export(task, _export)
        if rank == 0 and remote is not None:
            remote.push(HISTORY, EXPORT, LAST, SCORES)


def _start(task: Any, zero_stage: int, rank: int) -> None:
    """Fit what a task fits before its first step, on rank 0, and give it to the others.

    A training that goes on has it in its checkpoint.
    """
    import torch.distributed

    from selfshot.training import loop

    if not loop.starts(task):
        return
    with _whole_weights(task.module, zero_stage, change=False):
        if rank == 0:
            task.start()
    for buffer in task.module.buffers():
        torch.distributed.broadcast(buffer, 0)


def _gradient_norm(engine: Any, zero_stage: int) -> float | None:
    """Of the gradients before they are clipped; the sharding stages say it after their step."""
    if zero_stage > 0 or not engine.is_gradient_accumulation_boundary():
        return None
    from selfshot.training.loop import gradient_norm

    return gradient_norm(engine.module.parameters())


def _initialise(
    task: Any, plan: Schedule, fleet: Fleet
) -> tuple[Any, dict[str, float]]:
    """The DeepSpeed engine of a task, and the peak learning rate of each of its groups."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops

    # This kernel serves inference only, yet DeepSpeed would compile it at the first start (30 s,
    # and a C++ compiler on every node) and load it at each (2 s).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups = task.parameter_groups()
    peaks = {group["name"]: float(group["lr"]) for group in groups}
    # DeepSpeed takes a group's `name` for one of its own marks.
    plain = [{key: value for key, value in group.items() if key != "name"} for group in groups]
    engine, *_ = deepspeed.initialize(
        model=task.module,
        model_parameters=plain,
        config=deepspeed_config(
            fleet.zero_stage,
            learning_rate=max(peaks.values()),
            weight_decay=plan.weight_decay,
            clip_norm=plan.clip_norm,
            use_gpu=fleet.use_gpu,
        )
        | {"gradient_accumulation_steps": getattr(task, "accumulate", 1)},
    )
    engine.train()
    return engine, peaks


@contextlib.contextmanager
def _whole_weights(module: Any, zero_stage: int, *, change: bool) -> Iterator[None]:
    """With ZeRO-3, gather the weights that are spread over the ranks; otherwise nothing."""
    if zero_stage < 3:
        yield
        return
    import deepspeed

    # Rank 0's changes are kept; every rank makes the same ones.
    parameters = list(module.parameters())
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if change else None):
        yield


def _restore(
    engine: Any, meter: Any, kept_to: Path | None, digests: CheckpointDigests
) -> tuple[int, list[str]]:
    """Load the last checkpoint that this training wrote, if any.

    Args:
        engine, meter: what is restored.
        kept_to: folder that gets the files of the training until then; None: they are there.
        digests: of the checkpoints that may be loaded.

    Returns:
        the steps that it has done, 0 without one; and a message for each that was refused.
    """
    refused: list[str] = []
    for checkpoint in _checkpoints():
        with checkpoint.as_directory() as folder:
            damage = digests.damage_of(Path(folder))
            if damage is not None:
                refused.append(f"{checkpoint.path} is not loaded: {damage}")
                continue
            with weights_only():
                _, state = engine.load_checkpoint(str(folder), tag="state")
            if kept_to is not None and (Path(folder) / KEPT).exists():
                shutil.copytree(Path(folder) / KEPT, kept_to, dirs_exist_ok=True)
        meter.restore(state["meter"])
        return int(state["steps_done"]), refused
    return 0, refused


def _checkpoints() -> Iterator[Any]:
    """The run's last checkpoint and then the others that Ray still has, from the newest."""
    import ray.train

    last = ray.train.get_checkpoint()
    if last is None:
        return
    yield last
    for reported in reversed(ray.train.get_all_reported_checkpoints()):
        if reported.checkpoint.path != last.path:
            yield reported.checkpoint


def _checkpoint(
    engine: Any,
    meter: Any,
    done: int,
    scratch: Path,
    kept: Path | None,
    digests: CheckpointDigests,
) -> None:
    import ray.train

    # In scratch, so that a kill leaves nothing behind that is not removed with it.
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch) as folder:
        client_state = {"steps_done": done, "meter": meter.state()}
        engine.save_checkpoint(folder, tag="state", client_state=client_state)
        if kept is not None:
            scores = scratch / SCORES
            best = [scores, *scratch.glob(f"{BEST}-*")] if scores.exists() else []
            for path in (kept / HISTORY, *best):
                place = Path(folder) / KEPT / path.relative_to(kept)
                place.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place)
        digests.note(Path(folder), done)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": done}, checkpoint=checkpoint)


def _export(task: Any, final: Path) -> None:
    """Write the export beside its place and swap it in."""
    with atomic_folder(final, final.parent / "scratch" / f"export-{os.getpid()}") as new:
        task.module.eval()
        task.export(new)
        shutil.rmtree(final, ignore_errors=True)
