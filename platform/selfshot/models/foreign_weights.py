"""Weights that other programs wrote: read safely, fitted by name, with a report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from selfshot.config.addresses import is_address
from selfshot.errors import Reported, StorageError, UserError, hidden_outage
from selfshot.files import digest_bytes, digest_file

WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "teacher")
"""Keys under which training programs put the weights of a network."""

BEYOND = re.compile(
    r"(\w+_)?heads?|heads?_dist|last_linear|classif|(\w+_)?fc|classifier|projector|projection|predictor|prototypes"
    r"|last_layer|pre_logits|AuxLogits|queue(_ptr)?|mask_token|decoder\w*"
)
"""Parts of published networks that follow the features, or that only their training used."""

BUFFERS = ("num_batches_tracked", "position_ids")
"""Counters and places, which are in some files and change no output."""

CHANGES = {
    r"ls\d+|gamma(_\d+)?|layer_?scale\w*": "LayerScale",
    r"(reg|register|storage)_tokens?": "register tokens",
    r"dist_token": "a distillation token",
    r"([qk]|query|key)_?norm|norm_[qk]": "norms of queries and keys",
    r"w\d+|fc1_[gx]|gate_proj": "SwiGLU",
    r"rel(ative)?_pos\w*": "relative positions",
    r"rope\w*|freqs\w*": "rotary positions",
    r"norm_pre|ln_pre|pre_norm|fc_norm": "another norm",
    r"\d+": "more layers",
}
"""What a name that the network lacks says about the network that the file is of."""


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
        under = f", under {self.prefix.rstrip('.')}" if self.prefix else ""
        parts = [f"{self.loaded} weights from {self.path}{under}"]
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
        StorageError: the address cannot be read.
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
    with _reading(address), _open_remote(address) as file:
        return bytes(file.read())


def _open_remote(address: str) -> Any:
    try:
        return fsspec.open(address, "rb").open()
    except ImportError:  # pyarrow has s3, gs and abfs without another package.
        filesystem, inside = pafs.FileSystem.from_uri(address)
        return filesystem.open_input_file(inside)


@contextlib.contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    """Only a file that is not there, or an address that nothing opens, is a person's mistake."""
    mistakes = (FileNotFoundError, PermissionError, IsADirectoryError, ValueError, ImportError)
    try:
        yield
    except Reported:
        raise
    except Exception as error:  # A filesystem may raise what it likes.
        outage = hidden_outage(error) if isinstance(error, FileNotFoundError) else None
        if isinstance(outage or error, mistakes):
            raise UserError(
                f"{path}: it cannot be read ({outage or error}); give a file, or an address that "
                "pyarrow or fsspec opens"
            ) from None
        raise StorageError(
            f"{path}: it cannot be read ({outage or error}); run the same command again when it "
            "answers"
        ) from error


def weights_digest(path: Path | str) -> str:
    """What tells one version of a file from another: its SHA-256, or what its storage says.

    Raises:
        UserError: there is no such file.
        StorageError: it cannot be read.
    """
    with _reading(path):
        try:
            filesystem, inside = fsspec.core.url_to_fs(str(path))
        except ImportError:
            return digest_bytes(_read_remote(str(path)))
        if "file" in filesystem.protocol:
            return digest_file(inside)
        if "http" not in filesystem.protocol:
            return str(filesystem.ukey(inside))
        # Its ukey is the address alone, whatever is there.
        said = filesystem.info(inside)
        marks = [said.get(name) for name in ("ETag", "Content-MD5", "Digest", "Last-Modified")]
        if not any(marks):
            return digest_bytes(_read_remote(str(path)))
        return digest_bytes(repr([str(path), said.get("size"), *marks]).encode())


def fit_foreign_weights(
    module: nn.Module,
    path: Path | str,
    *,
    optional: Sequence[str] = (),
    setting: str,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> WeightsReport:
    """Load a network's weights by their names, whatever stands before all of them.

    Weights that follow the features (a classifier, a projector) or served training alone (a mask
    token, a decoder) may be left over. Any other makes the file that of another network, whose
    features these weights do not give without it.

    Args:
        module: what is filled.
        path: a file of `read_foreign_weights`.
        optional: beginnings of the names of weights that the file need not have.
        setting: what named the file, for messages.
        convert: changes the file's weights, under the module's names, before they are fitted.
        rename: gives the file's weights other names and shapes, before any is looked for.

    Raises:
        UserError: a needed weight is missing, has another shape or holds no finite numbers, or
            the file has weights inside the network that the module lacks.
    """
    try:
        state = read_foreign_weights(path)
    except UserError as error:
        raise UserError(f"{setting}: {error}", setting=setting) from None
    if rename is not None:
        state = rename(state)
    wanted = module.state_dict()
    names = [name for name in wanted if not name.endswith(BUFFERS)]
    anchor = next((name for name in names if not name.startswith(tuple(optional))), names[0])
    prefixes = {name.removesuffix(anchor) for name in state if name.endswith(anchor)}
    prefix = max(
        sorted(prefixes), key=lambda p: sum(p + name in state for name in names), default=""
    )
    found = {name: state[prefix + name] for name in names if prefix + name in state}
    missing = [name for name in names if name not in found]
    needed = [name for name in missing if not name.startswith(tuple(optional))]
    unexpected = [
        name
        for name in state
        if name.removeprefix(prefix) not in wanted and not name.endswith(BUFFERS)
    ]
    inside = [
        name
        for name in unexpected
        # Names without the prefix are of another network in the same file.
        if name.startswith(prefix) and not BEYOND.fullmatch(name[len(prefix) :].split(".")[0])
    ]
    parts = _what_changes([name[len(prefix) :] for name in inside], wanted)
    if needed:
        more = f" and {len(inside)} others ({parts}), as {inside[0]}" if inside else ""
        raise UserError(
            f"{setting}: {path} lacks {len(needed)} of {len(names)} weights, as "
            f"{', '.join(needed[:3])}; it has {', '.join(sorted(state)[:3])}…{more}; give weights "
            "of this very network, under its own names",
            setting=setting,
        )
    if inside:
        raise UserError(
            f"{setting}: {path} is of another network: {len(inside)} of its weights have no place "
            f"in this one, as {', '.join(inside[:3])} ({parts}), and without them its features "
            "are others; give weights of this very network",
            setting=setting,
        )
    if convert is not None:
        found = convert(found)
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{setting}: {path}: {prefix + name} has the shape {tuple(value.shape)}, and "
                f"{tuple(wanted[name].shape)} is wanted; give weights of this very network",
                setting=setting,
            )
        if not value.is_floating_point() or not value.isfinite().all():
            raise UserError(
                f"{setting}: {path}: {prefix + name} holds {str(value.dtype).split('.')[-1]} "
                "values that are no finite real numbers; give weights in float32, float16 or "
                "bfloat16",
                setting=setting,
            )
    module.load_state_dict(found, strict=False)
    return WeightsReport(path, prefix, len(found), tuple(missing), tuple(unexpected))


def _what_changes(inside: Sequence[str], wanted: Mapping[str, Tensor]) -> str:
    """In words, what a network has beyond the wanted one, by the names of its weights."""
    known = {name[: at.start()] for name in wanted for at in re.finditer(r"\.|$", name)}
    found: dict[str, None] = {}
    for name in inside:
        parts = name.split(".")
        paths = (".".join(parts[: n + 1]) for n in range(len(parts)))
        new = next((path for path in paths if path not in known), name).split(".")[-1]
        words = [said for pattern, said in CHANGES.items() if re.fullmatch(pattern, new)]
        found[words[0] if words else f"a part named {new}"] = None
    return ", ".join(list(found)[:3])
