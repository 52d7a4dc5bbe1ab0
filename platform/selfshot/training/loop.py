"""What a training task is, and the plain single-process loop that defines what training means.

`distributed.training` runs the same tasks on Ray Train and DeepSpeed; at one worker it must give
the losses of `run_plain`, which is short enough to be read as the specification.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast, runtime_checkable

import torch
from torch import Tensor, nn

from selfshot.config.errors import UserError

PACKAGE = "selfshot."


class NonFiniteLossError(UserError):
    """The loss is NaN or infinite: going on would only spread it into the weights."""


class _RequiredGroup(TypedDict):
    params: list[nn.Parameter]
    lr: float
    name: str


class ParameterGroup(_RequiredGroup, total=False):
    """Parameters that share a peak learning rate."""

    weight_decay: float


@runtime_checkable
class TrainingTask(Protocol):
    """One thing to train.

    `module.forward(batch)` returns a dict of scalars: `loss` to be minimised and detached metrics.
    Whatever must survive a restart (a momentum encoder, a queue of keys) is a submodule or a
    buffer of `module`, and is the same on every rank after `after_step`.
    """

    module: nn.Module

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every parameter that the optimiser moves, once, each group with its peak rate."""
        ...

    def batch(self, step: int, rank: int, world_size: int) -> Any:
        """The batch of a step: a pure function of (the task's seed, step, rank, world size).

        It is called from another thread than `forward`, so it draws from generators of its own.
        """
        ...

    def after_step(self, step: int) -> None:
        """Called once the optimiser moved the weights in `step` (momentum, queue)."""
        ...

    def export(self, folder: Path) -> None:
        """Write what later stages read into an existing, empty folder."""
        ...


def parts_of(task: TrainingTask, batch: Any) -> list[Any]:
    """The parts of a batch that are computed one after another; their losses sum to its own.

    A task whose batches are too large for the memory has `accumulate`, how many parts there are,
    and `parts(batch)`.
    """
    parts = getattr(task, "parts", None)
    return [batch] if parts is None else list(parts(batch))


def add_scalars(sums: dict[str, float], values: Mapping[str, float]) -> dict[str, float]:
    """Metrics of one part more."""
    return {name: sums.get(name, 0.0) + value for name, value in values.items()}


def resolve(path: str) -> Any:
    """The object that a dotted path "package.module:name" stands for."""
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f"{path!r} is no dotted path; write it as package.module:function")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ValueError(f"{path!r}: the module {module_name} has no {name}") from None


def build_task(path: str, kwargs: Mapping[str, Any]) -> TrainingTask:
    """Build a task from a dotted path inside this package and JSON-able arguments.

    Raises:
        ValueError: a path outside `selfshot`, or arguments that JSON cannot carry (they travel to
            other machines, and a run's key is their hash).
    """
    if not path.startswith(PACKAGE):
        raise ValueError(f"{path!r} is outside {PACKAGE[:-1]}; a task is built from {PACKAGE}*")
    try:
        json.dumps(dict(kwargs), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the arguments are not plain JSON values: {error}") from error
    return cast(TrainingTask, resolve(path)(**kwargs))


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Multiplier of the peak learning rate at `step` (0-based).

    It rises linearly over the warm-up (reaching 1 at its last step), then follows half a cosine
    that would be zero at `steps`, one step after the last one.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generator for one step, so that dropout is the same after a restart."""
    # A large odd stride keeps (step, rank) pairs apart; 2^63 bounds what torch accepts.
    torch.manual_seed((seed * 1_000_003 + step * 8_191 + rank * 2_147_483_659) % 2**63)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of nested dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


@contextlib.contextmanager
def prefetch(
    make: Callable[[int], Any], steps: range, ahead: int = 2
) -> Iterator[Iterator[tuple[int, Any]]]:
    """(step, `make(step)`) for each step, computed up to `ahead` steps early by one thread.

    One thread, because batches are made in order and mostly by code that releases the GIL
    (resizing, decoding, tensor arithmetic). An exception comes out at its own step. The thread
    ends with the `with` block.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        for step in steps:
            try:
                item = (make(step), None)
            except BaseException as error:  # handed over, not swallowed
                put((None, error))
                return
            if not put(item):
                return

    def batches() -> Iterator[tuple[int, Any]]:
        for step in steps:
            batch, error = ready.get()
            if error is not None:
                raise error
            yield step, batch

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        stopped.set()
        thread.join()


class Meter:
    """Means of the metrics since the last logged step; its state goes into checkpoints."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step's values."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        means = {name: total / max(1, self.count) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"sums": dict(self.sums), "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.sums, self.count = dict(state["sums"]), int(state["count"])


def read_scalars(outputs: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
    """Names and detached values of a step's scalars, as one tensor (one copy from a GPU)."""
    if "loss" not in outputs:
        raise ValueError(f"forward returned {sorted(outputs)}; a scalar named loss is needed")
    names = sorted(outputs)
    return names, torch.stack([outputs[name].detach().float().reshape(()) for name in names])


def check_finite(values: Mapping[str, float], step: int) -> None:
    """Stop on a loss that is not a number.

    Raises:
        NonFiniteLossError: naming the step and every metric of it.
    """
    if not math.isfinite(values["loss"]):
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise NonFiniteLossError(
            f"step {step}: the loss is {values['loss']} ({shown}); lower the learning rate or "
            "clip_norm, or look at the data of this step"
        )


def run_plain(
    task: TrainingTask,
    *,
    steps: int,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
    log_every: int = 20,
    seed: int = 0,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train in this process with AdamW, a linear warm-up and a cosine to zero.

    Args:
        task: what to train; its module is changed in place.
        steps: optimiser steps.
        warmup_steps: steps over which the learning rates rise.
        weight_decay: for groups that name none of their own.
        clip_norm: bound of the gradient's global norm.
        log_every: steps between two logged points; the last step is always logged.
        seed: of dropout.
        on_log: receives each logged point as it is made.

    Returns:
        the logged points: step (1-based, steps done), lr multiplier, and metrics as means over
        the steps since the point before.
    """
    groups: list[dict[str, Any]] = [{**group} for group in task.parameter_groups()]
    peaks = [float(group["lr"]) for group in groups]
    optimiser = torch.optim.AdamW(groups, lr=peaks[0], weight_decay=weight_decay)
    parameters = [parameter for group in groups for parameter in group["params"]]
    device = parameters[0].device
    meter, history = Meter(), []
    task.module.train()
    with prefetch(lambda step: task.batch(step, 0, 1), range(steps)) as batches:
        for step, batch in batches:
            multiplier = schedule(step, steps, warmup_steps)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * multiplier
            seed_step(seed, step, 0)
            metrics: dict[str, float] = {}
            optimiser.zero_grad(set_to_none=True)
            for part in parts_of(task, batch):
                outputs = task.module(to_device(part, device))
                names, values = read_scalars(outputs)
                metrics = add_scalars(metrics, dict(zip(names, values.tolist(), strict=True)))
                check_finite(metrics, step)
                outputs["loss"].backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            optimiser.step()
            task.after_step(step)
            meter.add(metrics)
            done = step + 1
            if done % log_every == 0 or done == steps:
                point = {"step": done, **meter.take(), "lr": multiplier, "time": time.time()}
                history.append(point)
                if on_log is not None:
                    on_log(point)
    return history
