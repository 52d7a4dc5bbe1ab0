"""What does the deformable convolution of the segmenter cost on this processor?

Claim: on CPU, torchvision's deformable convolution makes the segmenter tens of times slower at
the quickstart's size, so small machines take the plain one. Prints both and their ratio.

    python performance/mask_convolution.py
"""

from __future__ import annotations

import statistics
import time

import torch

from selfshot.models.segmenter import InstanceSegmenter

BATCH, INSTANCES, TIME, DIM, SIDE, FINE, ROUNDS = 4, 5, 8, 72, 8, 64, 7


def main() -> None:
    torch.manual_seed(0)
    grid = (BATCH, TIME, DIM, SIDE, SIDE)
    inputs = (
        torch.randn(BATCH, INSTANCES, TIME, DIM),
        torch.rand(BATCH, INSTANCES, TIME, 4),
        torch.randn(grid),
        torch.randn(grid),
        torch.randn(grid),
        torch.randn(BATCH, TIME, SIDE, SIDE),
        torch.randn(BATCH, TIME, FINE, 2 * SIDE, 2 * SIDE),
    )
    heads = {
        name: InstanceSegmenter(DIM, 4, FINE, deformable=deformable)
        for name, deformable in (("plain", False), ("deformable", True))
    }
    times: dict[str, list[float]] = {name: [] for name in heads}
    for round_number in range(ROUNDS + 1):
        for name, head in heads.items():
            began = time.perf_counter()
            head(*inputs).square().mean().backward()
            if round_number:
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:10} {median:.3f} s forward and backward")
    print(f"ratio      {medians['deformable'] / medians['plain']:.2f}")


if __name__ == "__main__":
    main()
