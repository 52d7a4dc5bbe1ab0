"""Where networks run."""

from __future__ import annotations

from collections.abc import Callable

import torch


def device_for(use_gpu: bool, on_message: Callable[[str], None]) -> str:
    """`cuda` with `compute.use_gpu` where this process sees a GPU, otherwise `cpu`.

    Trainings and embedding run where Ray has a GPU for them. What runs in the process of the
    command itself, on a head node perhaps, takes the CPU where that has none, and says so.

    Args:
        use_gpu: `compute.use_gpu`.
        on_message: receives the line that says so.
    """
    if not use_gpu:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    on_message("compute.use_gpu: PyTorch sees no GPU in this process, so the CPU is used here")
    return "cpu"
