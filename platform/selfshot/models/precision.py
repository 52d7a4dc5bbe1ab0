"""How numbers are multiplied."""

from __future__ import annotations

import torch


def use_tile_convolutions() -> bool:
    """Let this process multiply convolutions in bfloat16 where the processor has tiles for it.

    Weights, activations and sums stay float32; only the factors inside a convolution are
    rounded, as GPUs do with TF32. On a processor with AMX a step is a little faster
    so (docs/performance.md); on any other nothing changes.

    Returns:
        whether it has them.
    """
    if not torch.cpu.get_capabilities().get("amx_bf16", False):
        return False
    torch.backends.mkldnn.conv.fp32_precision = "bf16"  # type: ignore[attr-defined]
    return True
