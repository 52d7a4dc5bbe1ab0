"""What a training task is, and the plain single-process loop that defines what training means.

`distributed.training` runs the same tasks on Ray Train and DeepSpeed; at one worker it must give
the losses of `run_plain`, which is short enough to be read as the specification.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast, runtime_checkable

import torch
from torch import Tensor, nn

from selfshot.errors import UserError
from selfshot.training.batches import load_batches, to_device

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

        It is called from another thread or process than `forward`, on a copy of the task without
        `module` (see `batch_maker`), so it draws from generators of its own.
        """
        ...

    def after_step(self, step: int) -> None:
        """Called once the optimiser moved the weights in `step` (momentum, queue)."""
        ...

    def export(self, folder: Path) -> None:
        """Write what later stages read into an existing, empty folder."""
        ...


def batch_maker(task: TrainingTask, rank: int, world_size: int) -> Callable[[int], Any]:
    """What makes the batch of a step: the task's own `batch`, without its network.

    The result can be pickled and sent to another process, which receives no weights.
    """
    source = copy.copy(task)
    del source.module
    return functools.partial(source.batch, rank=rank, world_size=world_size)


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


class WatchedTask(Protocol):
    """What a task may have besides, to be watched while it learns; each part by itself.

    `clips_per_batch` makes clips a second of the pace; `start` fits what is fitted once, before the
    first step; `probe_every` runs `probe` before the first step and after every so many;
    `describe` says what a batch was made of.
    """

    clips_per_batch: int
    probe_every: int

    def start(self) -> None:
        """Fit buffers of the module; called on rank 0, and the others receive them."""
        ...

    def probe(self) -> dict[str, float]:
        """Figures of the network as it is; called on rank 0 with all weights gathered."""
        ...

    def describe(self, batch: Any) -> str:
        """For the message about a loss that is not finite."""
        ...


def starts(task: TrainingTask) -> bool:
    """Whether a task fits something before its first step."""
    return hasattr(task, "start")


def learning_rates(peaks: Mapping[str, float], multiplier: float) -> dict[str, float]:
    """A step's learning rates as they are logged: `lr`, and of several groups `lr_NAME` each.

    Args:
        peaks: group → its highest rate.
        multiplier: of the step, see `schedule`.

    Returns:
        The optimiser's rates; `lr` is the highest of all groups'.
    """
    rates = {name: peak * multiplier for name, peak in peaks.items()}
    each = {f"lr_{name}": rate for name, rate in rates.items()} if len(rates) > 1 else {}
    return {"lr": max(rates.values()), **each}


def probe_due(task: TrainingTask, done: int) -> bool:
    """Whether a task is probed after so many steps."""
    every = int(getattr(task, "probe_every", 0))
    return every > 0 and done % every == 0


def pace(task: TrainingTask, batches: int, seconds: float) -> dict[str, float]:
    """Clips a second, of a task that counts them."""
    clips = getattr(task, "clips_per_batch", None)
    return {} if clips is None else {"clips_per_s": clips * batches / max(seconds, 1e-9)}


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


def schedule(
    step: int,
    steps: int,
    warmup_steps: int,
    drops: Sequence[float] = (),
) -> float:
    """Multiplier of the peak learning rate at `step` (0-based).

    It rises linearly over the warm-up (reaching 1 at its last step), then follows half a cosine
    that would be zero at `steps`, one step after the last one; or with `drops` it stays, and is
    multiplied by a tenth once each of these shares of the steps is done.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if drops:
        return float(0.1 ** sum(step >= round(drop * steps) for drop in drops))
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What is trained: `build_task` builds it, here or on another machine.

    Attributes:
        name: for people, such as that of the stage.
        path: dotted path "selfshot.module:function" of a `TrainingTask` builder.
        kwargs: its arguments, plain JSON values with absolute paths.
    """

    name: str
    path: str
    kwargs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The steps of a training: AdamW with a linear warm-up and a falling learning rate.

    Attributes:
        steps: optimiser steps.
        warmup_steps: steps over which the learning rates rise; then a cosine to zero, or drops.
        weight_decay: for groups that name none of their own.
        clip_norm: bound of the gradient's global norm.
        log_every: steps between two logged points; the last step is always logged.
        checkpoint_every: steps between two checkpoints; the plain loop makes none.
        drops: see `schedule`.
        seed: of dropout, and of whatever a task draws while it is built.
    """

    steps: int
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    log_every: int = 20
    checkpoint_every: int = 100
    drops: Sequence[float] = ()
    seed: int = 0

    def multiplier(self, step: int) -> float:
        """Of the peak learning rates at a step."""
        return schedule(step, self.steps, self.warmup_steps, self.drops)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generator for one step, so that dropout is the same after a restart."""
    # A large odd stride keeps (step, rank) pairs apart; 2^63 bounds what torch accepts.
    torch.manual_seed((seed * 1_000_003 + step * 8_191 + rank * 2_147_483_659) % 2**63)


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


def check_finite(
    values: Mapping[str, float], step: int, task: TrainingTask | None = None, batch: Any = None
) -> None:
    """Stop on a loss that is not a number. The last checkpoint stays as it is.

    Raises:
        NonFiniteLossError: naming the step, every metric of it and what the batch was made of.
    """
    if not math.isfinite(values["loss"]):
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        describe = getattr(task, "describe", None)
        made_of = f": {describe(batch)}" if describe is not None else ""
        raise NonFiniteLossError(
            f"step {step}: the loss is {values['loss']} ({shown}); lower the learning rate or "
            f"clip_norm, or look at the data of this step{made_of}"
        )


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The global norm of the gradients that are there."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0


def run_plain(
    task: TrainingTask,
    plan: Schedule,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train in this process.

    Args:
        task: what to train; its module is changed in place.
        plan: its steps.
        on_log: receives each logged point as it is made.

    Returns:
        the logged points: step (1-based, steps done), learning rates, and metrics as means over
        the steps since the point before. Of a task that is probed the first point is step 0.
    """
    groups: list[dict[str, Any]] = [{**group} for group in task.parameter_groups()]
    peaks = {group["name"]: float(group["lr"]) for group in groups}
    optimiser = torch.optim.AdamW(groups, weight_decay=plan.weight_decay)
    parameters = [parameter for group in groups for parameter in group["params"]]
    device = parameters[0].device
    meter, history = Meter(), []

    def log(point: dict[str, Any]) -> None:
        history.append(point)
        if on_log is not None:
            on_log(point)

    task.module.train()
    if starts(task):
        cast(WatchedTask, task).start()
    if probe_due(task, 0):
        log({"step": 0, **cast(WatchedTask, task).probe(), "time": time.time()})
    batches_made, since = 0, time.monotonic()
    with load_batches(batch_maker(task, 0, 1), range(plan.steps)) as batches:
        for step, batch in batches:
            multiplier = plan.multiplier(step)
            for group, peak in zip(optimiser.param_groups, peaks.values(), strict=True):
                group["lr"] = peak * multiplier
            seed_step(plan.seed, step, 0)
            metrics: dict[str, float] = {}
            optimiser.zero_grad(set_to_none=True)
            for part in parts_of(task, batch):
                outputs = task.module(to_device(part, device))
                names, values = read_scalars(outputs)
                metrics = add_scalars(metrics, dict(zip(names, values.tolist(), strict=True)))
                check_finite(metrics, step, task, part)
                outputs["loss"].backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
            meter.add({**metrics, "grad_norm": float(norm)})
            batches_made += 1
            optimiser.step()
            task.after_step(step)
            done = step + 1
            probing = probe_due(task, done)
            if done % plan.log_every == 0 or done == plan.steps or probing:
                speed = pace(task, batches_made, time.monotonic() - since)
                probed = cast(WatchedTask, task).probe() if probing else {}
                means = {**meter.take(), **speed, **probed}
                rates = learning_rates(peaks, multiplier)
                log({"step": done, **means, **rates, "time": time.time()})
                batches_made, since = 0, time.monotonic()
    return history
