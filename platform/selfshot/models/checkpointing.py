"""Gradient checkpointing: activations are computed again instead of kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def call(module: nn.Module, *args: Any, checkpointing: bool) -> Any:
    """`module(*args)`; with `checkpointing`, and gradients wanted, it keeps only its inputs.

    Its activations are made again when the gradient comes through, with the same dropout.
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False)
    return module(*args)
