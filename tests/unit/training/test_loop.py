"""The plain loop, its schedule, and the batches that a thread makes."""

from __future__ import annotations

import importlib
import math
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfshot.errors import UserError
from selfshot.training.batches import load_batches, prefetch, to_device
from selfshot.training.loop import (
    Meter,
    NonFiniteLossError,
    Schedule,
    build_task,
    learning_rates,
    resolve,
    run_plain,
    schedule,
)
from selfshot.training.toy import ToyTask

TOY = "selfshot.training.toy:build"
SETTINGS: dict[str, Any] = {"warmup_steps": 3, "weight_decay": 1e-2, "clip_norm": 0.5}


def test_schedule() -> None:
    rates = [schedule(step, 11, 3) for step in range(12)]
    assert rates[:3] == [1 / 3, 2 / 3, 1.0]
    assert rates[3] == 1.0 and rates[7] == pytest.approx(0.5) and rates[11] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(rates[3:]))
    assert schedule(0, 5, 0) == 1.0


def test_schedule_with_drops() -> None:
    rates = [schedule(step, 20, 2, [0.5, 0.7]) for step in range(20)]
    assert rates[:2] == [0.5, 1.0] and rates[2:10] == [1.0] * 8
    assert rates[10:14] == pytest.approx([0.1] * 4) and rates[14:] == pytest.approx([0.01] * 6)
    # The paper's: 20 epochs, a tenth from the 15th on.
    assert [schedule(step, 20, 0, [0.7]) for step in (13, 14)] == pytest.approx([1.0, 0.1])
    dropped = run_plain(ToyTask(seed=2), Schedule(steps=10, log_every=1, drops=[0.5], **SETTINGS))
    assert [point["lr"] for point in dropped[3:]] == pytest.approx([1e-2] * 2 + [1e-3] * 5)


def test_run_plain_is_adamw_written_out() -> None:
    task = ToyTask(seed=2, dropout=0.0)
    twin = ToyTask(seed=2, dropout=0.0)
    history = run_plain(task, Schedule(steps=7, log_every=1, **SETTINGS))
    groups = twin.parameter_groups()
    state = {id(p): (torch.zeros_like(p), torch.zeros_like(p)) for g in groups for p in g["params"]}
    losses = []
    for step in range(7):
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = None
        loss = twin.module(twin.batch(step, 0, 1))["loss"]
        loss.backward()
        losses.append(loss.item())
        grads = {id(p): p.grad for g in groups for p in g["params"] if p.grad is not None}
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads.values()))
        for group in groups:
            rate = group["lr"] * schedule(step, 7, 3)
            decay = group.get("weight_decay", 1e-2)
            for parameter in group["params"]:
                grad = grads[id(parameter)] * min(1.0, 0.5 / (norm + 1e-6))
                mean, square = state[id(parameter)]
                mean.mul_(0.9).add_(grad, alpha=0.1)
                square.mul_(0.999).add_(grad * grad, alpha=0.001)
                unbiased = mean / (1 - 0.9 ** (step + 1))
                scale = (square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                with torch.no_grad():
                    parameter.mul_(1 - rate * decay).sub_(rate * unbiased / scale)
        twin.after_step(step)
    assert [point["loss"] for point in history] == pytest.approx(losses, rel=1e-5)


def test_history_means_and_last_step() -> None:
    every = run_plain(ToyTask(), Schedule(steps=8, log_every=1, **SETTINGS))
    thirds = run_plain(ToyTask(), Schedule(steps=8, log_every=3, **SETTINGS))
    assert [point["step"] for point in thirds] == [3, 6, 8]
    means = [sum(p["loss"] for p in every[a:b]) / (b - a) for a, b in ((0, 3), (3, 6), (6, 8))]
    assert [point["loss"] for point in thirds] == pytest.approx(means, rel=1e-6)
    rates = {"lr", "lr_head", "lr_body"}
    assert set(thirds[0]) == {"step", "loss", "error", "drift", "grad_norm", "time"} | rates


def test_same_seed_same_weights_and_it_learns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        task = ToyTask(seed=1, learning_rate=3e-2)
        history = run_plain(task, Schedule(steps=150, log_every=10, seed=4, **SETTINGS))
        (tmp_path / name).mkdir()
        task.export(tmp_path / name)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert history[-1]["error"] < history[0]["error"] / 2


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    with pytest.raises(NonFiniteLossError, match="step 4: the loss is nan") as caught:
        run_plain(ToyTask(spoil_step=4), Schedule(steps=8, **SETTINGS))
    assert isinstance(caught.value, UserError)
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_a_loss_that_is_not_finite_names_the_batch() -> None:
    class Described(ToyTask):
        def describe(self, batch: Any) -> str:
            return f"samples {batch['inputs'].shape[0]}"

    with pytest.raises(NonFiniteLossError, match=r"step 1: the loss is nan.*: samples 16"):
        run_plain(Described(spoil_step=1), Schedule(steps=8, **SETTINGS))


MAKERS = """
import torch
from selfshot.errors import UserError

def make(step):
    return {"step": torch.tensor(step)}

def fails(step):
    if step == 6:
        raise UserError("six is wrong")
    return step
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_threads_and_processes(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "batch_makers.py").write_text(MAKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = importlib.import_module("batch_makers")
    make, fails = made.make, made.fails
    with load_batches(make, range(4, 11), workers=workers) as batches:
        seen = [(step, batch["step"].item()) for step, batch in batches]
    assert seen == [(step, step) for step in range(4, 11)]

    seen = []
    with (
        pytest.raises(UserError, match=r"^six is wrong$"),
        load_batches(fails, range(4, 9), workers=workers) as batches,
    ):
        for step, _ in batches:
            seen.append(step)
    assert seen == [4, 5]
    with load_batches(make, range(4, 11), workers=workers) as batches:
        assert next(batches)[0] == 4, "and may be left early"


def test_build_task() -> None:
    assert isinstance(build_task(TOY, {"seed": 3}), ToyTask)
    with pytest.raises(ValueError, match="outside selfshot"):
        build_task("os:getcwd", {})
    with pytest.raises(ValueError, match="outside selfshot"):
        build_task("selfshotevil.module:build", {})
    with pytest.raises(ValueError, match="plain JSON"):
        build_task(TOY, {"seed": Path()})
    with pytest.raises(ValueError, match="has no nothing"):
        build_task("selfshot.training.toy:nothing", {})
    with pytest.raises(ValueError, match="dotted path"):
        resolve("selfshot.training.toy")


def test_prefetch_overlaps_and_keeps_order() -> None:
    begun = {step: threading.Event() for step in range(3, 18)}

    def make(step: int) -> int:
        begun[step].set()
        return step

    seen = []
    with prefetch(make, range(3, 18)) as batches:
        for step, batch in batches:
            # While this one is used the next is made; it would never begin if that waited for us.
            assert step == 17 or begun[step + 1].wait(60)
            seen.append((step, batch))
    assert seen == [(step, step) for step in range(3, 18)]


def test_prefetch_hands_over_an_error_at_its_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise KeyError("two")
        return step

    seen = []
    with pytest.raises(KeyError, match="two"), prefetch(make, range(5)) as batches:
        for step, batch in batches:
            seen.append((step, batch))
    assert seen == [(0, 0), (1, 1)]


def test_meter_survives_a_restart() -> None:
    whole, first, second = Meter(), Meter(), Meter()
    for value in (1.0, 2.0, 6.0):
        whole.add({"loss": value})
    first.add({"loss": 1.0})
    second.restore(first.state())
    second.add({"loss": 2.0})
    second.add({"loss": 6.0})
    assert second.take() == whole.take() == {"loss": 3.0}


def test_to_device_keeps_structure() -> None:
    batch = {"a": torch.zeros(2), "b": [torch.ones(1), ("text", 3)], "c": None}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"].device.type == "meta" and moved["b"][0].device.type == "meta"
    assert moved["b"][1] == ("text", 3) and moved["c"] is None


def test_learning_rates_are_those_of_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not multiples of the peak: what AdamW had in each of its groups."""
    had: list[list[float]] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            had.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    task = ToyTask(learning_rate=0.02)
    loop = {"warmup_steps": 3, "weight_decay": 1e-4, "clip_norm": 1.0, "log_every": 1}
    history = run_plain(task, Schedule(steps=7, **loop))
    for point, (head, body) in zip(history, had, strict=True):
        assert (point["lr"], point["lr_head"], point["lr_body"]) == (head, head, body)
    assert history[2]["lr"] == pytest.approx(0.02) and history[2]["lr_body"] == pytest.approx(0.01)
    assert learning_rates({"all": 0.5}, 0.25) == {"lr": 0.125}
