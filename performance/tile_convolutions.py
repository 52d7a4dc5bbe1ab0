"""How much faster is a step of backbone pretraining with bfloat16 convolutions?

Claim: on a processor with AMX, `use_tile_convolutions` makes the forward and backward pass of the
quickstart's backbone on its 96 frames faster. Prints both times, in turn so that
a drifting machine hits both alike, and their ratio; without AMX it says so.

    python performance/tile_convolutions.py
"""

from __future__ import annotations

import statistics
import time

import torch

from selfshot.models.backbone import SmallBackbone
from selfshot.models.precision import use_tile_convolutions

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
    before = torch.backends.mkldnn.conv.fp32_precision
    if not use_tile_convolutions():
        print("this processor has no AMX tiles: nothing changes")
        return
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for round_number in range(ROUNDS + 1):
        for name, precision in (("float32", before), ("bfloat16", "bf16")):
            torch.backends.mkldnn.conv.fp32_precision = precision
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
