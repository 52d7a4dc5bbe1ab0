"""Φ by its settings: built for training, and read again for embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selfshot.config.encoder import EncoderConfig
from selfshot.config.fields import AS_YAML
from selfshot.errors import UserError
from selfshot.models.auxiliary_encoder import AuxiliaryEncoder
from selfshot.models.backbones import build_backbone
from selfshot.models.encoder_backbones import FrameBackbone
from selfshot.models.foreign_weights import WeightsReport, fit_foreign_weights
from selfshot.models.pretrained import (
    PACKAGED,
    PretrainedNetwork,
    open_network,
    packaged_network,
)
from selfshot.models.pretrained_files import find_network, is_pretrained_name
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.video_vit import VideoViT, inflate_positions
from selfshot.models.weights import (
    fill,
    load_backbone,
    read_weights,
    refused_settings,
    save_weights,
)

Precision = Literal["float32", "bfloat16"]

AUXILIARY_SIDE = 160
"""The auxiliary encoder sees frames enlarged to this side; chosen on validation classes."""


def build_encoder(
    section: EncoderConfig,
    backbone_network: Mapping[str, Any],
    frame_size: tuple[int, int],
    *,
    backbone: Path | None = None,
    checkpointing: bool = False,
    exported: Mapping[str, Any] | None = None,
) -> tuple[Any, WeightsReport | None]:
    """Φ over its backbone.

    Args:
        section: its settings.
        backbone_network: arguments of `build_backbone`, for `pretrained` and `scratch`.
        frame_size: height and width in pixels, for the positions of video_vit.
        backbone: folder of the pretrained backbone.
        checkpointing: forget activations inside the layers.
        exported: the specs of pretrained networks by the setting that names them; weights will
            be loaded over all that is built.

    Returns:
        Φ, and what became of video_vit's `section.weights`.

    Raises:
        UserError: a network is not there, or its weights are of another one.
    """
    name, trained = section.backbone, section.trains_backbone
    empty = exported is not None
    if name == "video_vit":
        report: WeightsReport | None = None
        rows, columns = (max(1, side // section.vit_patch) for side in frame_size)
        grid = (section.num_frames, rows, columns)
        vit = VideoViT(
            size=section.vit_size, patch=section.vit_patch, grid=grid, checkpointing=checkpointing
        )
        if section.weights is not None and not empty:
            report = fit_foreign_weights(
                vit,
                section.weights,
                setting="encoder.weights",
                convert=lambda state: inflate_positions(state, grid),
            )
        return vit.requires_grad_(trained), report
    module: Any
    if name == PACKAGED or is_pretrained_name(name):
        module = _named_network(section, "backbone", exported, frozen=not trained)
    elif name == "scratch" or empty:
        module = FrameBackbone(build_backbone(**backbone_network), frozen=not trained)
    else:
        assert backbone is not None
        pretrained = load_backbone(backbone)
        module = FrameBackbone(pretrained.backbone, frozen=True)
        module.foreground.load_state_dict(pretrained.foreground.state_dict())
    dim = section.dim or (module.pooled_dim if section.pooling == "network" else module.dim)
    if section.layers and dim % section.heads:
        raise UserError(
            f"encoder.heads: {section.heads} does not divide the {dim} channels of {name}; set "
            "another number, or encoder.dim",
            setting="encoder.heads",
        )
    encoder = VideoEncoder(
        module,
        dim,
        section.layers,
        section.heads,
        adapter=section.adapter,
        pools_itself=section.pooling == "network",
        checkpointing=checkpointing,
    )
    return encoder, None


def _named_network(
    section: EncoderConfig, field: str, exported: Mapping[str, Any] | None, *, frozen: bool
) -> PretrainedNetwork:
    """The network that `encoder.backbone` or `encoder.auxiliary` names."""
    name = getattr(section, field)
    of_backbone = field == "backbone"
    side = section.frame_side if of_backbone else AUXILIARY_SIDE
    if name == PACKAGED:
        return packaged_network(frozen=frozen, side=side)
    if exported is not None:
        return PretrainedNetwork(exported[field], frozen=frozen, side=side)
    files = find_network(
        name,
        setting=f"encoder.{field}",
        revision=section.revision if of_backbone else None,
        allow_download=section.allow_download,
        weights=section.weights if of_backbone else None,
    )
    weights = section.weights if of_backbone else None
    return open_network(
        files, setting=f"encoder.{field}", weights=weights, frozen=frozen, side=side
    )


def build_auxiliary(
    section: EncoderConfig, exported: Mapping[str, Any] | None = None
) -> AuxiliaryEncoder | None:
    """The network that stands beside Φ, if there is one; see `build_encoder`."""
    if section.auxiliary == "none":
        return None
    return AuxiliaryEncoder(_named_network(section, "auxiliary", exported, frozen=True))


class FrozenEncoder:
    """A trained Φ for embedding: uint8 arrays in, float32 arrays out."""

    def __init__(
        self,
        encoder: Any,
        auxiliary: AuxiliaryEncoder | None = None,
        precision: Precision = "float32",
    ) -> None:
        """Put it together.

        Args:
            encoder: Φ.
            auxiliary: whose vectors are joined to its own.
            precision: of its arithmetic on a CPU; on a GPU it is bfloat16.
        """
        self.precision = precision
        self.encoder = encoder.eval()
        self.auxiliary = None if auxiliary is None else auxiliary.eval()
        self.device = "cpu"

    @property
    def networks(self) -> list[dict[str, Any]]:
        """Name, revision, licence and supervision of the pretrained networks inside."""
        parts = (getattr(whole, "backbone", None) for whole in (self.encoder, self.auxiliary))
        return [part.spec["facts"] for part in parts if isinstance(part, PretrainedNetwork)]

    def to(self, device: str) -> Self:
        """Move to a device; frames follow."""
        self.device = device
        for part in (self.encoder, self.auxiliary):
            if part is not None:
                part.to(device)
        return self

    def prepare(self, device: str) -> None:
        """Move to a device, in the form that is fastest there."""
        self.to(device)
        for whole in (self.encoder, self.auxiliary):
            backbone = getattr(whole, "backbone", None)
            if isinstance(backbone, PretrainedNetwork):
                backbone.prepare(device, fuse=self.precision == "float32")

    @torch.inference_mode()
    def embed(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 (B, T, H, W, 3) to vectors (B, d)."""
        with self._autocast():
            clips = torch.from_numpy(frames).to(self.device)
            features = self.encoder.features(clips)
            vectors = self.encoder.embed(features)
            if self.auxiliary is not None:
                seen = features if self.encoder.frozen else self.encoder.backbone(clips)
                vectors = functional.normalize(vectors, dim=-1)
                vectors = self.auxiliary.join(vectors, clips, seen.foreground)
        return vectors.float().cpu().numpy()

    @torch.inference_mode()
    def windows(self, frames: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (B, W, d) of the clips' windows and their foreground (B, W).

        With an auxiliary encoder they are those of the frames that it looks at.
        """
        with self._autocast():
            vectors, mass = self._windows(torch.from_numpy(frames).to(self.device), size)
        return vectors.float().cpu().numpy(), mass.float().cpu().numpy()

    def _windows(self, clips: Tensor, size: int) -> tuple[Tensor, Tensor]:
        if self.auxiliary is None:
            return self.encoder.windows(clips, size)
        clips = clips[:, self.auxiliary.frames_of(clips.shape[1])]
        vectors, mass = self.encoder.windows(clips, size)
        foreground = self.encoder.backbone(clips).foreground
        vectors = functional.normalize(vectors, dim=-1)
        return self.auxiliary.windows(vectors, clips, foreground, size), mass

    def _autocast(self) -> torch.autocast:
        """A CPU lost one to three points of precision in bfloat16 on sprites: it must be wanted."""
        wanted = self.device != "cpu" or self.precision == "bfloat16"
        return torch.autocast(self.device, torch.bfloat16, enabled=wanted)


def save_encoder(
    folder: Path,
    encoder: Any,
    section: EncoderConfig,
    backbone_network: Mapping[str, Any],
    frame_size: tuple[int, int],
) -> None:
    """Write `encoder.safetensors` and `encoder.json`.

    Pretrained networks are in them, so that nothing else is needed to read it; the weights of a
    package, which every installation has, are not copied.
    """
    packaged = "backbone." if section.backbone == PACKAGED and not section.trains_backbone else None
    state = {
        name: value
        for name, value in encoder.state_dict().items()
        if packaged is None or not name.startswith(packaged)
    }
    networks: dict[str, Any] = {}
    if is_pretrained_name(section.backbone):
        networks["backbone"] = encoder.backbone.spec
    auxiliary = build_auxiliary(section) if is_pretrained_name(section.auxiliary) else None
    if auxiliary is not None:
        networks["auxiliary"] = auxiliary.backbone.spec
        state |= {f"auxiliary.{name}": x for name, x in auxiliary.state_dict().items()}
    settings = {
        "encoder": section.model_dump(mode="json", context=AS_YAML),
        "backbone_network": dict(backbone_network),
        "size": frame_size,
        "networks": networks,
    }
    save_weights(folder, "encoder", state, settings)


def load_encoder(folder: Path | str, precision: Precision = "float32") -> FrozenEncoder:
    """Read what `save_encoder` wrote.

    Raises:
        UserError: a file is missing, or is of another encoder.
    """
    folder = Path(folder)
    state, settings = read_weights(folder, "encoder")
    with refused_settings(folder / "encoder.json"):
        section = EncoderConfig.model_validate_json(json.dumps(settings["encoder"]))
        network, size = settings["backbone_network"], settings["size"]
        networks = settings["networks"]
    encoder, _ = build_encoder(section, network, size, exported=networks)
    auxiliary = build_auxiliary(section, networks)
    path = folder / "encoder.safetensors"
    if auxiliary is not None and "auxiliary" in networks:
        own = {name for name in state if name.startswith("auxiliary.")}
        given = {name.removeprefix("auxiliary."): state.pop(name) for name in own}
        fill(auxiliary, given, path)
    if section.backbone == PACKAGED and not section.trains_backbone:
        own = encoder.state_dict()
        state |= {name: value for name, value in own.items() if name.startswith("backbone.")}
    fill(encoder, state, path)
    return FrozenEncoder(encoder, auxiliary, precision)
