"""How numbers are multiplied."""

from __future__ import annotations

import functools

import torch


@functools.cache
def has_bfloat16() -> bool:
    """Whether this machine's processor multiplies in bfloat16 (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def convolution_autocast(device: torch.device, *, training: bool) -> torch.autocast:
    """A context in which a processor that can trains convolutions in bfloat16.

    Weights and gradients stay float32, as with autocast on a GPU; activations inside the
    context are bfloat16, and callers take them out as float32. A step of the quickstart's
    backbone then takes less than two thirds of its time (docs/performance.md). Where nothing is
    trained nothing changes: retrieval compares small differences, and lost one to three points
    of precision in bfloat16. Nor does it on other processors; on a GPU the autocast that the
    engine has set goes on.
    """
    if device.type != "cpu":
        return torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type))
    wanted = training and torch.is_grad_enabled() and has_bfloat16()
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=wanted)
