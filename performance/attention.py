"""What does the fused attention save, at the sizes that this model meets?

Claim: an attention that never stores its score matrix takes a small part of the memory of one that
does, and less time; at the paper's 11,520 query tokens the matrix alone would be 4.2 GB a layer.
Prints seconds and peak memory of one self-attention layer's forward and backward (d = 288, 8
heads), for the fused kernel and for the softmax written out, and their ratios. At 11,520 tokens
the one written out computes only as many heads as `--heads-written` says, one by default, and its
figures are multiplied by 8 / that: all at once would not fit beside other work.

    python performance/attention.py
    python performance/attention.py --tokens 2880
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

DIM, HEADS = 288, 8


def peak_mb() -> float:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measure(way: str, tokens: int, heads: int) -> dict[str, float]:
    """One layer in this process."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    shape = (1, heads, tokens, DIM // HEADS)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))

    def attend() -> torch.Tensor:
        if way == "fused":
            return functional.scaled_dot_product_attention(q, k, v)
        scores = q @ k.transpose(-1, -2) * shape[-1] ** -0.5
        return scores.softmax(-1) @ v

    # The first call loads the kernels; a few tokens do.
    few = [x[:, :, :64] for x in (q, k, v)]
    functional.scaled_dot_product_attention(*few).sum().backward()
    before, started = peak_mb(), time.perf_counter()
    attend().square().sum().backward()
    return {
        "seconds": time.perf_counter() - started,
        "peak_mb": peak_mb() - before,
        "gradient": float(q.grad.abs().sum()) if q.grad is not None else 0.0,
    }


def main() -> None:
    """Print the figures of each size, and the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[2880, 11520])
    parser.add_argument("--heads-written", type=int, default=1)
    parser.add_argument("--one", nargs=3)
    chosen = parser.parse_args()
    if chosen.one:
        way, tokens, heads = chosen.one
        print(json.dumps(measure(way, int(tokens), int(heads))))
        return
    for tokens in chosen.tokens:
        facts = {}
        for way in ("fused", "written out"):
            heads = HEADS if way == "fused" or tokens < 4000 else chosen.heads_written
            command = [sys.executable, __file__, "--one", way, str(tokens), str(heads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            facts[way] = {name: found[name] * HEADS / heads for name in ("seconds", "peak_mb")}
            print(
                f"{tokens:6} tokens, {way:11}: {facts[way]['seconds']:.2f} s, "
                f"{facts[way]['peak_mb']:.0f} MB over what was there before"
                + ("" if heads == HEADS else f" ({HEADS} / {heads} times those of {heads} heads)")
            )
        slower = facts["written out"]["seconds"] / facts["fused"]["seconds"]
        larger = facts["written out"]["peak_mb"] / facts["fused"]["peak_mb"]
        print(f"{tokens:6} tokens: the softmax written out takes {slower:.1f} times as long and "
              f"{larger:.0f} times the memory")  # fmt: skip


if __name__ == "__main__":
    main()
