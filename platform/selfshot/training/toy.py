"""The smallest task that has everything a task may have.

A regression by a network of a few dozen weights, with dropout, two parameter groups, a momentum
copy and a queue. It trains in a second, so it is what shows that an engine (a laptop, a new
cluster, another ZeRO stage) trains, restarts and exports as it should.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from selfshot.errors import UserError
from selfshot.training.loop import ParameterGroup, TrainingTask


class ToyNetwork(nn.Module):
    """Two layers, their slow copy, and a queue of the copy's last outputs."""

    queue: Tensor

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(width, 1)
        self.slow_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(8))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared error, drawn a little towards the queue's mean."""
        features = self.body(batch["inputs"])
        outputs = self.head(features).squeeze(-1)
        error = (outputs - batch["targets"]).square().mean()
        drift = (outputs.mean() - self.queue.mean()).square()
        loss = error + 0.1 * drift
        return {"loss": loss, "error": error.detach(), "drift": drift.detach()}


class ToyTask:
    """Fit a fixed linear function of four inputs."""

    def __init__(
        self,
        *,
        seed: int = 0,
        width: int = 7,
        learning_rate: float = 1e-2,
        dropout: float = 0.1,
        seconds_per_step: float = 0.0,
        spoil_step: int | None = None,
        mistakes: str | None = None,
    ) -> None:
        """Args say what they are; `spoil_step` gets NaN inputs, `seconds_per_step` slows it.

        Each file in the folder `mistakes` is one that rank 1 alone makes, in one of its starts.
        """
        torch.manual_seed(seed)
        self.module: nn.Module = ToyNetwork(width, dropout)
        self.seed, self.width, self.learning_rate = seed, width, learning_rate
        self.seconds_per_step, self.spoil_step = seconds_per_step, spoil_step
        self.mistakes = mistakes

    @property
    def network(self) -> ToyNetwork:
        """`module`, by its own type."""
        assert isinstance(self.module, ToyNetwork)
        return self.module

    def parameter_groups(self) -> list[ParameterGroup]:
        """The head at the full rate, the body at half of it and without decay."""
        rate = self.learning_rate
        head, body = list(self.network.head.parameters()), list(self.network.body.parameters())
        return [
            {"params": head, "lr": rate, "name": "head"},
            {"params": body, "lr": rate / 2, "name": "body", "weight_decay": 0.0},
        ]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
        """Sixteen samples, divided among the ranks."""
        if self.mistakes is not None and rank == 1 and step == 3:
            for path in sorted(Path(self.mistakes).iterdir())[:1]:
                path.unlink()
                raise UserError(f"{path.name} of rank 1")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        inputs = torch.randn(16, 4, generator=generator)
        targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0])
        if step == self.spoil_step:
            inputs = inputs * float("nan")
        share = 16 // world_size
        mine = slice(rank * share, (rank + 1) * share)
        return {"inputs": inputs[mine], "targets": targets[mine]}

    def after_step(self, step: int) -> None:
        """Move the slow copy and push its bias into the queue."""
        if self.seconds_per_step:
            time.sleep(self.seconds_per_step)
        network = self.network
        with torch.no_grad():
            pairs = zip(network.slow_head.parameters(), network.head.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 0.1)
            network.queue.copy_(network.queue.roll(1))
            network.queue[0] = network.slow_head.bias[0]

    def export(self, folder: Path) -> None:
        """Weights and width."""
        state: dict[str, Any] = {k: v.contiguous() for k, v in self.module.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"width": self.width}) + "\n")


def build(**kwargs: Any) -> TrainingTask:
    """Dotted path: `selfshot.training.toy:build`."""
    return ToyTask(**kwargs)
