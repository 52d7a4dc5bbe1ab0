"""Weights on disk: safetensors with the settings of the network beside them in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfshot.config.errors import UserError
from selfshot.models.backbone import PretrainedBackbone
from selfshot.models.backbones import build_backbone
from selfshot.models.trunks import BackboneTrunk, EfficientNetTrunk
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.vis import SelfShotVIS


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


def fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights that must be a module's own.

    Raises:
        UserError: they are of another configuration; names the first difference.
    """
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in state:
            difference = f"{name} is missing"
        elif state[name].shape != value.shape:
            shapes = [" × ".join(map(str, x.shape)) or "one number" for x in (state[name], value)]
            difference = f"{name} is {shapes[0]} where {shapes[1]} is wanted"
        else:
            continue
        break
    else:
        unexpected = [name for name in state if name not in wanted]
        if not unexpected:
            module.load_state_dict(state)
            return
        difference = f"{unexpected[0]} is one weight too many"
    raise UserError(
        f"{path}: these weights are of another configuration than the settings beside them: "
        f"{difference}; make the stage again"
    )


def load_backbone(folder: Path) -> PretrainedBackbone:
    """The pretrained backbone, in evaluation mode with its norms frozen."""
    state, settings = read_weights(folder, "backbone")
    module = PretrainedBackbone(build_backbone(**settings))
    fill(module, state, folder / "backbone.safetensors")
    module.backbone.freeze_norms = True
    return module.eval()


def load_vis(folder: Path) -> SelfShotVIS:
    """The VIS transformer, in evaluation mode."""
    state, settings = read_weights(folder, "vis")
    backbone = build_backbone(**settings["backbone"])
    backbone.freeze_norms = True
    model = SelfShotVIS(backbone, **settings["model"])
    fill(model, state, folder / "vis.safetensors")
    return model.eval()


def build_encoder(
    *,
    trunk: str,
    backbone: Path | None,
    backbone_settings: dict[str, Any] | None,
    dim: int,
    layers: int,
    heads: int,
) -> VideoEncoder:
    """Φ over the named trunk.

    Args:
        trunk: `backbone` (pretrained, frozen), `efficientnet_lite0` (frozen) or `scratch`.
        backbone: folder of the pretrained backbone; only for that trunk.
        backbone_settings: width and dim of the network from scratch; only for that trunk.
        dim, layers, heads: of the transformer.
    """
    if trunk == "efficientnet_lite0":
        return VideoEncoder(EfficientNetTrunk(), dim, layers, heads)
    if trunk == "scratch":
        assert backbone_settings is not None
        fresh = BackboneTrunk(build_backbone(**backbone_settings), frozen=False)
        return VideoEncoder(fresh, dim, layers, heads)
    assert backbone is not None
    pretrained = load_backbone(backbone)
    module = BackboneTrunk(pretrained.backbone, frozen=True)
    module.foreground.load_state_dict(pretrained.foreground.state_dict())
    return VideoEncoder(module, dim, layers, heads)


class FrozenEncoder:
    """A trained Φ for embedding: uint8 arrays in, float32 arrays out."""

    def __init__(self, encoder: VideoEncoder) -> None:
        self.encoder = encoder.eval()
        self.device = "cpu"

    def prepare(self, device: str) -> None:
        """Move to a device, in the form that is fastest there."""
        self.device = device
        self.encoder.to(device)
        if isinstance(self.encoder.trunk, EfficientNetTrunk):
            self.encoder.trunk.prepare(device)

    @torch.inference_mode()
    def embed(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 (B, T, H, W, 3) to vectors (B, d)."""
        with self._autocast():
            vectors = self.encoder(torch.from_numpy(frames).to(self.device))
        return vectors.float().cpu().numpy()

    @torch.inference_mode()
    def windows(self, frames: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (B, W, d) of the clips' windows and their foreground (B, W)."""
        with self._autocast():
            vectors, mass = self.encoder.windows(torch.from_numpy(frames).to(self.device), size)
        return vectors.float().cpu().numpy(), mass.float().cpu().numpy()

    def _autocast(self) -> torch.autocast:
        """On a GPU only: a CPU lost one to three points of precision in bfloat16."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu")


def load_encoder(folder: Path | str) -> FrozenEncoder:
    """Read what `EncoderTask.export` wrote."""
    folder = Path(folder)
    state, settings = read_weights(folder, "encoder")
    settings.pop("size", None)  # Of the frames that it was trained on.
    if settings["trunk"] == "backbone":
        trunk = BackboneTrunk(build_backbone(**settings["backbone_settings"]), frozen=True)
        shape = {key: settings[key] for key in ("dim", "layers", "heads")}
        encoder = VideoEncoder(trunk, **shape)
    else:
        encoder = build_encoder(backbone=None, **settings)
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    if settings["trunk"] == "efficientnet_lite0":
        missing = [name for name in missing if not name.startswith("trunk.")]
    if missing or unexpected:
        raise UserError(
            f"{folder / 'encoder.safetensors'}: missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}; the file is of another encoder, make it again"
        )
    return FrozenEncoder(encoder)
