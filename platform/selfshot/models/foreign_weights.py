"""Weights that other programs wrote: read safely, fitted by name, with a report."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from selfshot.config.errors import UserError

WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "teacher")
"""Keys under which training programs put the weights of a network."""


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """What became of a file of weights.

    Attributes:
        path: the file.
        prefix: what its names have before ours.
        loaded: how many of the network's weights were taken from it.
        missing: weights of the network that the file lacks; they stay as they were.
        unexpected: names of the file that the network has no use for.
    """

    path: Path
    prefix: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.loaded} weights from {self.path}"]
        for what, names in (("missing", self.missing), ("not used", self.unexpected)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:3])}{more})")
        return "; ".join(parts)


def read_foreign_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a PyTorch file, which may run no code.

    Raises:
        UserError: there is no such file, or it holds no weights that can be read safely.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file (a .safetensors or PyTorch file)")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError,
    ) as error:  # fmt: skip
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "unreadable"
        raise UserError(
            f"{path}: it cannot be read as weights: {reason}; give a .safetensors file, or a "
            "PyTorch file of tensors alone"
        ) from None
    while isinstance(state, dict):
        tensors = {
            str(name): value for name, value in state.items() if isinstance(value, Tensor)
        }
        if tensors:
            return tensors
        inner = next((key for key in WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = state[inner]
    raise UserError(f"{path}: it holds no named tensors; give a network's weights")


def fit_foreign_weights(
    module: nn.Module,
    path: Path,
    *,
    optional: Sequence[str] = (),
    setting: str,
) -> WeightsReport:
    """Load a network's weights by their names, whatever stands before all of them.

    Args:
        module: what is filled.
        path: a file of `read_foreign_weights`.
        optional: beginnings of the names of weights that the file need not have.
        setting: what named the file, for messages.

    Raises:
        UserError: a needed weight is missing or has another shape.
    """
    state = read_foreign_weights(path)
    wanted = module.state_dict()
    # The counter of BatchNorm is in some files and moves nothing.
    names = [name for name in wanted if not name.endswith("num_batches_tracked")]
    anchor = next((name for name in names if not name.startswith(tuple(optional))), names[0])
    prefixes = {name.removesuffix(anchor) for name in state if name.endswith(anchor)}
    prefix = max(
        sorted(prefixes), key=lambda p: sum(p + name in state for name in names), default=""
    )
    missing = [name for name in names if prefix + name not in state]
    needed = [name for name in missing if not name.startswith(tuple(optional))]
    found = {name: state[prefix + name] for name in names if prefix + name in state}
    unexpected = [
        name
        for name in state
        if name.removeprefix(prefix) not in wanted and not name.endswith("num_batches_tracked")
    ]
    if needed:
        raise UserError(
            f"{setting}: {path} lacks {len(needed)} of {len(names)} weights, as "
            f"{', '.join(needed[:3])}; it has {', '.join(sorted(state)[:3])}…; give weights of "
            "this very network, with torchvision's names"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{setting}: {path}: {prefix + name} has the shape {tuple(value.shape)}, and "
                f"{tuple(wanted[name].shape)} is wanted; give weights of this very network"
            )
    module.load_state_dict(found, strict=False)
    return WeightsReport(path, prefix, len(found), tuple(missing), tuple(unexpected))
