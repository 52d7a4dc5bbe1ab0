"""Weights on disk: safetensors with the settings of the network beside them in JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfshot.config.vis import VisConfig
from selfshot.errors import UserError
from selfshot.models.backbone import PretrainedBackbone
from selfshot.models.backbones import build_backbone
from selfshot.models.methods import build_vis
from selfshot.models.vis_model import VisModel


def save_weights(
    folder: Path, name: str, state: dict[str, Tensor], settings: dict[str, Any]
) -> None:
    """Write `name`.safetensors and `name`.json."""
    save_file(
        {key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors"
    )
    (folder / f"{name}.json").write_text(json.dumps(settings))


def read_weights(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote.

    Raises:
        UserError: a file is not there.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise UserError(f"{path}: there is no such file; make the stage again")
    try:
        return load_file(path), json.loads((folder / f"{name}.json").read_text())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: it cannot be read: {error}; make the stage again") from None


@contextlib.contextmanager
def refused_settings(path: Path) -> Iterator[None]:
    """Blame the file of a network's settings for what a block cannot read of them."""
    try:
        yield
    except (ValidationError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(
            f"{path}: these settings are of another version, or of something else ({reason}); "
            "train the network again, or name another folder"
        ) from None


def _difference(module: nn.Module, state: dict[str, Tensor]) -> str | None:
    """The first weight that only one of both has, or that has another shape."""
    for name, value in module.state_dict().items():
        if name not in state:
            return f"{name} is missing"
        if state[name].shape != value.shape:
            shapes = [" × ".join(map(str, x.shape)) or "one number" for x in (state[name], value)]
            return f"{name} is {shapes[0]} where {shapes[1]} is wanted"
    unexpected = state.keys() - module.state_dict().keys()
    return f"{min(unexpected)} is one weight too many" if unexpected else None


def fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights that must be a module's own.

    Raises:
        UserError: they are of another configuration; names the first difference.
    """
    difference = _difference(module, state)
    if difference is not None:
        raise UserError(
            f"{path}: these weights are of another configuration than the settings beside them: "
            f"{difference}; make the stage again"
        )
    module.load_state_dict(state)


def start_from(model: VisModel, path: Path) -> None:
    """Give a VIS network the weights of an earlier training.

    A network without a fuser leaves the weights of the fuser.

    Args:
        model: of the same settings as that of the earlier training, `fuser` apart.
        path: the `vis.safetensors` that it exported.

    Raises:
        UserError: the file cannot be read, or is of other settings; names the first difference.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"vis.initial: {path} cannot be read: {error}; give the vis.safetensors that an "
            "earlier training exported",
            setting="vis.initial",
        ) from None
    if not model.reads_supports:
        state = {name: value for name, value in state.items() if not name.startswith("fuser.")}
    difference = _difference(model, state)
    if difference is not None:
        raise UserError(
            f"vis.initial: {path} is of other settings than vis and backbone: {difference}; set "
            "both sections as that training had them",
            setting="vis.initial",
        )
    model.load_state_dict(state)


def load_backbone(folder: Path) -> PretrainedBackbone:
    """The pretrained backbone, in evaluation mode with its norms frozen."""
    state, settings = read_weights(folder, "backbone")
    with refused_settings(folder / "backbone.json"):
        module = PretrainedBackbone(build_backbone(**settings))
    fill(module, state, folder / "backbone.safetensors")
    module.backbone.freeze_norms = True
    return module.eval()


def load_vis(folder: Path) -> VisModel:
    """The VIS transformer, or the other method that was trained, in evaluation mode."""
    state, settings = read_weights(folder, "vis")
    with refused_settings(folder / "vis.json"):
        section = VisConfig.model_validate_json(json.dumps(settings["vis"]))
        fuser, frames = settings["fuser"], settings["clip_frames"]
        backbone = build_backbone(**settings["backbone"])
    backbone.freeze_norms = True
    model = build_vis(backbone, section, fuser=fuser, clip_frames=frames)
    fill(model, state, folder / "vis.safetensors")
    return model.eval()
