"""How much faster is a step of backbone pretraining with bfloat16 convolutions?

Claim: on a processor with AVX-512 BF16 or AMX, `convolution_autocast` makes the forward and
backward pass of the quickstart's backbone on its 96 frames faster. Prints both times, in turn so
that a drifting machine hits both alike, and their ratio; without such a processor it says so.

    python performance/bfloat16_convolutions.py
"""

from __future__ import annotations

import statistics
import time
from unittest import mock

import torch

from selfshot.models import precision
from selfshot.models.backbone import SmallBackbone

FRAMES, SIDE, ROUNDS = 96, 64, 7


def step(model: SmallBackbone, images: torch.Tensor) -> float:
    began = time.perf_counter()
    tokens, fine = model(images)
    (tokens.square().mean() + fine.square().mean()).backward()
    model.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    torch.manual_seed(0)
    model, images = SmallBackbone().train(), torch.randn(FRAMES, 3, SIDE, SIDE)
    if not precision.has_bfloat16():
        print("this processor does not multiply in bfloat16: nothing changes")
        return
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for round_number in range(ROUNDS + 1):
        for name in times:
            with mock.patch.object(precision, "has_bfloat16", lambda name=name: name == "bfloat16"):
                seconds = step(model, images)
            if round_number:  # the first one warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f}"
        print(f"{name:9} {median:.3f} s a step ({spread}), {torch.get_num_threads()} threads")
    print(f"ratio     {medians['float32'] / medians['bfloat16']:.2f}")


if __name__ == "__main__":
    main()
