"""What does it save to compute all masks at once instead of one instance of one frame at a time?

Claim: the segmenter, vectorised over frames and instances, is several times faster than the same
segmenter in a loop over both, and gives the same mask features. Measured on the part that a loop
can do: attention maps and the 2-D convolution; the 3-D convolutions need all frames anyway.

    python performance/mask_head.py
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional

from selfshot.models.segmenter import InstanceSegmenter

BATCH, INSTANCES, TIME, DIM, HEADS, SIDE, FINE, ROUNDS = 4, 5, 8, 72, 4, 8, 64, 7


def at_once(head: InstanceSegmenter, instances: Tensor, pixels: Tensor, context: Tensor) -> Tensor:
    """Mask features of all instances of all frames, as `InstanceSegmenter.forward` makes them."""
    queries = head.instance_projection(instances).unflatten(-1, (HEADS, -1))
    maps = head.attention_scores(queries, head.pixel_projection(pixels))
    shared = context[:, None].expand(-1, INSTANCES, -1, -1, -1).flatten(0, 1)
    spare = maps.new_zeros(len(maps), HEADS + 2, SIDE, SIDE)
    return functional.relu(head.norm(head.mask_convolution(torch.cat([maps, spare, shared], 1))))


def looped(head: InstanceSegmenter, instances: Tensor, pixels: Tensor, context: Tensor) -> Tensor:
    """The same, one instance of one frame after another."""
    features = []
    for b in range(BATCH):
        for t in range(TIME):
            keys = head.pixel_projection(pixels[b * TIME + t, None])[0].unflatten(0, (HEADS, -1))
            for i in range(INSTANCES):
                query = head.instance_projection(instances[b, i, t]).unflatten(-1, (HEADS, -1))
                maps = torch.einsum("hc,hcyx->hyx", query, keys) * (DIM // HEADS) ** -0.5
                spare = maps.new_zeros(HEADS + 2, SIDE, SIDE)
                whole = torch.cat([maps, spare, context[b * TIME + t]])[None]
                features.append(functional.relu(head.norm(head.mask_convolution(whole))))
    return torch.cat(features)


def main() -> None:
    """Print both and their ratio."""
    torch.manual_seed(0)
    head = InstanceSegmenter(DIM, HEADS, FINE, deformable=False)
    inputs = (
        torch.randn(BATCH, INSTANCES, TIME, DIM),
        torch.randn(BATCH * TIME, DIM, SIDE, SIDE),
        torch.randn(BATCH * TIME, 32, SIDE, SIDE),
    )
    ways = {"at once": at_once, "looped": looped}
    times: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for round_number in range(ROUNDS + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            results[name] = way(head, *inputs)
            results[name].square().mean().backward()
            if round_number:
                times[name].append(time.perf_counter() - began)
    torch.testing.assert_close(results["looped"], results["at once"], rtol=1e-3, atol=1e-4)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:8} {median:.4f} s forward and backward")
    print(f"ratio    {medians['looped'] / medians['at once']:.1f}")


if __name__ == "__main__":
    main()
