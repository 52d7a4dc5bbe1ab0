"""The same global batch gives the same loss and gradients on one process and on two, by gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from selfshot.distributed.worker import _start
from selfshot.training.contrast import EncoderTraining

VIDEOS, CROPS, DIM = 6, 3, 5


class Linear(nn.Module):
    """The smallest Φ: one linear map of a clip's features."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = DIM
        self.map = nn.Linear(7, DIM)

    def features(self, frames: Tensor) -> Tensor:
        return frames

    def embed(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(self.map(features), dim=-1)


class Head(nn.Module):
    """A projection whose output for a clip depends on no other clip."""

    dim = 13

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(DIM, self.dim)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.map(x), dim=-1)


RECIPES: dict[str, dict[str, Any]] = {
    "rank": {"loss": "rank"},
    "nce": {"loss": "nce"},
    "moco": {"loss": "moco"},
    "farthest": {"loss": "nce", "positives": "farthest", "positive_cosine": 0.1},
}


def _module(recipe: str) -> EncoderTraining:
    torch.manual_seed(0)
    module = EncoderTraining(
        Linear(),
        temperature=0.1 if recipe == "rank" else 0.2,
        queue_length=2 * VIDEOS * CROPS,
        head=Head(),
        **RECIPES[recipe],
    )
    return module.double()


def _batch(step: int, rank: int, world: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(VIDEOS, CROPS, 7, generator=generator).double()
    videos = torch.randperm(9, generator=generator)[:VIDEOS]
    mine = slice(rank, None, world)
    return {"features": features[mine].flatten(0, 1), "videos": videos[mine]}


def _train(rank: int, world: int, loss: str) -> list[dict[str, Any]]:
    """Three steps of plain gradient descent, gradients averaged as an engine does."""
    module = _module(loss)
    points = []
    for step in range(3):
        outputs = module(_batch(step, rank, world))
        module.zero_grad()
        outputs["loss"].backward()
        value = outputs["loss"].detach().clone()
        parameters = [p for p in module.parameters() if p.requires_grad]
        if world > 1:
            for tensor in [value, *(p.grad for p in parameters)]:
                dist.all_reduce(tensor)
                tensor /= world
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        points.append({"loss": value.item(), "norm": norm.item()})
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.5 * parameter.grad
        module.after_step(0.9)
    filled = sorted(zip(module.queue_videos.tolist(), module.queue.sum(1).tolist(), strict=True))
    return [*points, {"queue": filled}]


def _worker(rank: int, world: int, loss: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    torch.save(_train(rank, world, loss), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("loss", list(RECIPES))
def test_two_ranks_train_as_one(loss: str, tmp_path: Path) -> None:
    mp.start_processes(
        _worker, (2, loss, str(tmp_path)), nprocs=2, start_method="fork"
    )
    alone = _train(0, 1, loss)
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for ours, theirs in zip(alone[:-1], together[:-1], strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-9)
            assert theirs["norm"] == pytest.approx(ours["norm"], rel=1e-9)
        for ours, theirs in zip(alone[-1]["queue"], together[-1]["queue"], strict=True):
            assert theirs[0] == ours[0] and theirs[1] == pytest.approx(ours[1], rel=1e-7)


class Fitted(nn.Module):
    """A module with a buffer that is fitted."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))


class FittedTask:
    """A task that fits its buffer, and counts how often."""

    def __init__(self) -> None:
        self.module, self.fits = Fitted(), 0

    def start(self) -> None:
        self.fits += 1
        self.module.table.copy_(torch.rand(3))


def _start_worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    task = FittedTask()
    _start(task, 0, rank)
    torch.save({"fits": task.fits, **task.module.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_what_is_fitted_before_the_first_step_is_fitted_by_one_rank(tmp_path: Path) -> None:
    mp.start_processes(_start_worker, (2, str(tmp_path)), nprocs=2, start_method="fork")
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert (one["fits"], other["fits"]) == (1, 0)
    assert torch.equal(one["table"], other["table"]) and one["table"].all()
