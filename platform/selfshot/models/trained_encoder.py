"""Φ by its settings: built for training, and read again for embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selfshot.config.encoder import EncoderConfig
from selfshot.config.fields import AS_YAML
from selfshot.models.auxiliary_encoder import AuxiliaryEncoder
from selfshot.models.backbones import build_backbone
from selfshot.models.encoder_backbones import (
    EfficientNetFeatures,
    FrameBackbone,
    InceptionFeatures,
)
from selfshot.models.foreign_weights import WeightsReport, fit_foreign_weights
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.video_vit import VideoViT, inflate_positions
from selfshot.models.weights import (
    fill,
    load_backbone,
    read_weights,
    refused_settings,
    save_weights,
)


def build_encoder(
    section: EncoderConfig,
    backbone_network: Mapping[str, Any],
    frame_size: tuple[int, int],
    *,
    backbone: Path | None = None,
    checkpointing: bool = False,
    empty: bool = False,
) -> tuple[Any, WeightsReport | None]:
    """Φ over its backbone.

    Args:
        section: its settings.
        backbone_network: arguments of `build_backbone`, for `pretrained` and `scratch`.
        frame_size: height and width in pixels, for the positions of video_vit.
        backbone: folder of the pretrained backbone.
        checkpointing: forget activations inside the layers.
        empty: weights will be loaded over all that is built.

    Returns:
        Φ, and what became of `section.weights`.

    Raises:
        UserError: the weights cannot be read or are of another network.
    """
    name, trained = section.backbone, section.trains_backbone
    weights = None if empty else section.weights
    report: WeightsReport | None = None
    if name == "video_vit":
        rows, columns = (max(1, side // section.vit_patch) for side in frame_size)
        grid = (section.num_frames, rows, columns)
        vit = VideoViT(
            size=section.vit_size, patch=section.vit_patch, grid=grid, checkpointing=checkpointing
        )
        if weights is not None:
            report = fit_foreign_weights(
                vit,
                weights,
                setting="encoder.weights",
                convert=lambda state: inflate_positions(state, grid),
            )
        return vit.requires_grad_(trained), report
    own = section.weights is not None
    module: Any
    if name == "inception":
        module = InceptionFeatures(
            frozen=not trained, pretrained=own or empty, side=section.frame_side
        )
        if not own:
            module.keeps_norms = not trained
    elif name == "efficientnet_lite0":
        packaged = section.packaged or not (own or empty)
        module = EfficientNetFeatures(
            frozen=not trained, packaged=packaged, side=section.frame_side
        )
    elif name == "scratch" or empty:
        module = FrameBackbone(build_backbone(**backbone_network), frozen=not trained)
    else:
        assert backbone is not None
        pretrained = load_backbone(backbone)
        module = FrameBackbone(pretrained.backbone, frozen=True)
        module.foreground.load_state_dict(pretrained.foreground.state_dict())
    if weights is not None:
        report = fit_foreign_weights(
            module.network, weights, setting="encoder.weights", optional=("_fc.",)
        )
    encoder = VideoEncoder(
        module,
        section.dim or module.dim,
        section.layers,
        section.heads,
        adapter=section.adapter,
        checkpointing=checkpointing,
    )
    return encoder, report


class FrozenEncoder:
    """A trained Φ for embedding: uint8 arrays in, float32 arrays out."""

    def __init__(self, encoder: Any, auxiliary: AuxiliaryEncoder | None = None) -> None:
        """Put it together.

        Args:
            encoder: Φ.
            auxiliary: whose vectors are joined to its own.
        """
        self.encoder = encoder.eval()
        self.auxiliary = None if auxiliary is None else auxiliary.eval()
        self.device = "cpu"

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
            if isinstance(backbone, EfficientNetFeatures):
                backbone.prepare(device)

    @torch.inference_mode()
    def embed(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 (B, T, H, W, 3) to vectors (B, d)."""
        with self._autocast():
            clips = torch.from_numpy(frames).to(self.device)
            features = self.encoder.features(clips)
            vectors = self.encoder.embed(features)
            if self.auxiliary is not None:
                seen = features if self.encoder.frozen else self.encoder.frame_tokens(clips)
                vectors = functional.normalize(vectors, dim=-1)
                vectors = self.auxiliary.join(vectors, clips, seen[1])
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
        foreground = self.encoder.frame_tokens(clips)[1]
        vectors = functional.normalize(vectors, dim=-1)
        return self.auxiliary.windows(vectors, clips, foreground, size), mass

    def _autocast(self) -> torch.autocast:
        """On a GPU only: a CPU lost one to three points of precision in bfloat16."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu")


def save_encoder(
    folder: Path,
    encoder: Any,
    section: EncoderConfig,
    backbone_network: Mapping[str, Any],
    frame_size: tuple[int, int],
) -> None:
    """Write `encoder.safetensors` and `encoder.json`; weights of a package are not copied."""
    state = {
        name: value
        for name, value in encoder.state_dict().items()
        if not (section.packaged and name.startswith("backbone."))
    }
    settings = {
        "encoder": section.model_dump(mode="json", context=AS_YAML),
        "backbone_network": dict(backbone_network),
        "size": frame_size,
    }
    save_weights(folder, "encoder", state, settings)


def load_encoder(folder: Path | str) -> FrozenEncoder:
    """Read what `save_encoder` wrote.

    Raises:
        UserError: a file is missing, or is of another encoder.
    """
    folder = Path(folder)
    state, settings = read_weights(folder, "encoder")
    with refused_settings(folder / "encoder.json"):
        section = EncoderConfig.model_validate_json(json.dumps(settings["encoder"]))
        network, size = settings["backbone_network"], settings["size"]
    encoder, _ = build_encoder(section, network, size, empty=True)
    if section.packaged:
        own = encoder.state_dict()
        state |= {name: value for name, value in own.items() if name.startswith("backbone.")}
    fill(encoder, state, folder / "encoder.safetensors")
    return FrozenEncoder(encoder, None if section.auxiliary == "none" else AuxiliaryEncoder())
