"""Weights that other programs wrote: read safely, fitted by name, with a report."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from selfshot.config.paths import is_address
from selfshot.errors import UserError

WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "teacher")
"""Keys under which training programs put the weights of a network."""


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """What became of a file of weights.

    Attributes:
        path: the file, or its address.
        prefix: what its names have before ours.
        loaded: how many of the network's weights were taken from it.
        missing: weights of the network that the file lacks; they stay as they were.
        unexpected: names of the file that the network has no use for.
    """

    path: Path | str
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


def read_foreign_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a PyTorch file, which may run no code.

    Args:
        path: of the file, or an address that pyarrow or fsspec opens.

    Raises:
        UserError: there is no such file, or it holds no weights that can be read safely.
    """
    remote = _read_remote(str(path)) if is_address(str(path)) else None
    if remote is None and not Path(path).is_file():
        raise UserError(f"{path}: there is no such file (a .safetensors or PyTorch file)")
    try:
        if str(path).endswith(".safetensors"):
            return dict(load_file(path) if remote is None else load(remote))
        source = path if remote is None else io.BytesIO(remote)
        state = torch.load(source, map_location="cpu", weights_only=True)
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


def _read_remote(address: str) -> bytes:
    try:
        with _open_remote(address) as file:
            return bytes(file.read())
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(address, error) from None


def _open_remote(address: str) -> Any:
    try:
        return fsspec.open(address, "rb").open()
    except ImportError:  # pyarrow has s3, gs and abfs without another package.
        filesystem, inside = pafs.FileSystem.from_uri(address)
        return filesystem.open_input_file(inside)


def _unreadable(path: Path | str, error: Exception) -> UserError:
    return UserError(
        f"{path}: it cannot be read ({error}); give a file, or an address that pyarrow or fsspec "
        "opens"
    )


def weights_digest(path: Path | str) -> str:
    """What tells one version of a file from another: its SHA-256, or what its storage says.

    Raises:
        UserError: it cannot be read.
    """
    try:
        filesystem, inside = fsspec.core.url_to_fs(str(path))
        if "file" in filesystem.protocol:
            with open(inside, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return str(filesystem.ukey(inside))
    except ImportError:
        return hashlib.sha256(_read_remote(str(path))).hexdigest()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def fit_foreign_weights(
    module: nn.Module,
    path: Path | str,
    *,
    optional: Sequence[str] = (),
    setting: str,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> WeightsReport:
    """Load a network's weights by their names, whatever stands before all of them.

    Args:
        module: what is filled.
        path: a file of `read_foreign_weights`.
        optional: beginnings of the names of weights that the file need not have.
        setting: what named the file, for messages.
        convert: changes the file's weights, under the module's names, before they are fitted.

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
    found = {name: state[prefix + name] for name in names if prefix + name in state}
    if convert is not None:
        found = convert(found)
    missing = [name for name in names if name not in found]
    needed = [name for name in missing if not name.startswith(tuple(optional))]
    unexpected = [
        name
        for name in state
        if name.removeprefix(prefix) not in wanted and not name.endswith("num_batches_tracked")
    ]
    if needed:
        raise UserError(
            f"{setting}: {path} lacks {len(needed)} of {len(names)} weights, as "
            f"{', '.join(needed[:3])}; it has {', '.join(sorted(state)[:3])}…; give weights of "
            "this very network, under its own names"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{setting}: {path}: {prefix + name} has the shape {tuple(value.shape)}, and "
                f"{tuple(wanted[name].shape)} is wanted; give weights of this very network"
            )
    module.load_state_dict(found, strict=False)
    return WeightsReport(path, prefix, len(found), tuple(missing), tuple(unexpected))
