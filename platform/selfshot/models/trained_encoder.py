"""Φ by its settings: built for training, and read again for embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfshot.models.backbones import build_backbone
from selfshot.models.companion import Companion
from selfshot.models.foreign_weights import WeightsReport, fit_foreign_weights
from selfshot.models.projection import ProjectionHead
from selfshot.models.trunks import BackboneTrunk, EfficientNetTrunk, InceptionTrunk
from selfshot.models.video_encoder import VideoEncoder
from selfshot.models.video_vit import VideoViT, inflate_positions
from selfshot.models.weights import fill, load_backbone, read_weights
from selfshot.models.windows import peak_vectors


def packaged_trunk(settings: Mapping[str, Any]) -> bool:
    """Whether the trunk's weights are those of a package, so that no copy of them is needed."""
    return settings["trunk"] == "efficientnet_lite0" and not (
        settings.get("trunk_trained") or settings.get("own_weights")
    )


def build_head(settings: Mapping[str, Any], dim: int) -> ProjectionHead | None:
    """The projection head over vectors of `dim` channels; none where its kind is `none`."""
    if settings["kind"] == "none":
        return None
    return ProjectionHead(dim, settings["hidden"], settings["dim"], settings["norm"])


def build_encoder(
    settings: dict[str, Any],
    *,
    backbone: Path | None = None,
    weights: str | None = None,
    checkpointing: bool = False,
    empty: bool = False,
) -> tuple[Any, WeightsReport | None]:
    """Φ over the named trunk.

    Args:
        settings: `trunk`, `dim`, `layers` and `heads`; `backbone_settings` for a network from
            scratch; `vit` for video_vit; `trunk_trained`, `frame_side`, `adapter` if they are not
            the trunk's own. Those that are made of other weights are marked in it: `own_weights`.
        backbone: folder of the pretrained backbone, for the trunk of that name.
        weights: path or address of the trunk's weights.
        checkpointing: forget activations inside the layers.
        empty: weights will be loaded over all that is built.

    Returns:
        Φ, and what became of `weights`.

    Raises:
        UserError: the weights cannot be read or are of another network.
    """
    trunk, trained = settings["trunk"], settings.get("trunk_trained")
    if weights is not None:
        settings["own_weights"] = True
    own = bool(settings.get("own_weights"))
    report: WeightsReport | None = None
    if trunk == "video_vit":
        vit = VideoViT(**settings["vit"], checkpointing=checkpointing)
        if weights is not None:
            time, height, width = vit.pos_embed.shape[:3]
            report = fit_foreign_weights(
                vit,
                weights,
                setting="encoder.weights",
                convert=lambda state: inflate_positions(state, (time, height, width)),
            )
        return vit.requires_grad_(trained is not False), report
    shape = {key: settings[key] for key in ("dim", "layers", "heads")}
    sides = {"side": settings["frame_side"]} if settings.get("frame_side") else {}
    module: Any
    if trunk == "inception":
        module = InceptionTrunk(frozen=not trained, pretrained=own or empty, **sides)
        if not own:
            module.keeps_norms = not trained
    elif trunk == "efficientnet_lite0":
        packaged = packaged_trunk(settings) or not (own or empty)
        module = EfficientNetTrunk(frozen=not trained, packaged=packaged, **sides)
    elif trunk == "scratch":
        module = BackboneTrunk(build_backbone(**settings["backbone_settings"]), frozen=False)
    elif empty:
        module = BackboneTrunk(build_backbone(**settings["backbone_settings"]), frozen=True)
    else:
        assert backbone is not None
        pretrained = load_backbone(backbone)
        module = BackboneTrunk(pretrained.backbone, frozen=True)
        module.foreground.load_state_dict(pretrained.foreground.state_dict())
    if weights is not None:
        report = fit_foreign_weights(
            module.network, weights, setting="encoder.weights", optional=("_fc.",)
        )
    adapter = settings.get("adapter", "none")
    return VideoEncoder(module, **shape, adapter=adapter, checkpointing=checkpointing), report


class FrozenEncoder:
    """A trained Φ for embedding: uint8 arrays in, float32 arrays out."""

    def __init__(
        self,
        encoder: Any,
        head: nn.Module | None = None,
        companion: Companion | None = None,
        peak_window: int = 0,
    ) -> None:
        """Put it together.

        Args:
            encoder: Φ.
            head: through which its vectors go; none: as they are.
            companion: whose vectors are joined to them.
            peak_window: side in tokens of the window that stands for a frame, the one with the
                most foreground; a clip's vector is their mean over the frames. 0: it is the mean
                over the whole clip.
        """
        self.encoder = encoder.eval()
        self.peak_window = peak_window
        self.head = nn.Identity() if head is None else head.eval()
        self.companion = None if companion is None else companion.eval()
        self.device = "cpu"

    def to(self, device: str) -> Self:
        """Move to a device; frames follow."""
        self.device = device
        for part in (self.encoder, self.head, self.companion):
            if part is not None:
                part.to(device)
        return self

    def prepare(self, device: str) -> None:
        """Move to a device, in the form that is fastest there."""
        self.to(device)
        for trunk in (getattr(self.encoder, "trunk", None), getattr(self.companion, "trunk", None)):
            if isinstance(trunk, EfficientNetTrunk):
                trunk.prepare(device)

    @torch.inference_mode()
    def embed(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 (B, T, H, W, 3) to vectors (B, d)."""
        with self._autocast():
            clips = torch.from_numpy(frames).to(self.device)
            if self.peak_window:
                vectors = peak_vectors(*self._windows(clips, self.peak_window))
                return vectors.float().cpu().numpy()
            features = self.encoder.features(clips)
            vectors = self.head(self.encoder.embed(features))
            if self.companion is not None:
                seen = features if self.encoder.frozen else self.encoder.trunk_tokens(clips)
                vectors = functional.normalize(vectors, dim=-1)
                vectors = self.companion.join(vectors, clips, seen[1])
        return vectors.float().cpu().numpy()

    @torch.inference_mode()
    def windows(self, frames: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (B, W, d) of the clips' windows and their foreground (B, W).

        With a companion they are those of the frames that it looks at.
        """
        with self._autocast():
            vectors, mass = self._windows(torch.from_numpy(frames).to(self.device), size)
        vectors, mass = vectors.flatten(1, 2), mass.flatten(1)
        return vectors.float().cpu().numpy(), mass.float().cpu().numpy()

    def _windows(self, clips: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Vectors (B, T, windows, d), where T are the frames that are looked at, and foreground."""
        if self.companion is not None:
            clips = clips[:, self.companion.frames_of(clips.shape[1])]
        vectors, mass = self.encoder.windows(clips, size)
        vectors = self.head(vectors.flatten(0, 1)).unflatten(0, mass.shape)
        if self.companion is not None:
            foreground = self.encoder.trunk_tokens(clips)[1]
            vectors = functional.normalize(vectors, dim=-1)
            vectors = self.companion.windows(vectors, clips, foreground, size)
        shape = (clips.shape[1], -1)
        return vectors.unflatten(1, shape), mass.unflatten(1, shape)

    def _autocast(self) -> torch.autocast:
        """On a GPU only: a CPU lost one to three points of precision in bfloat16."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu")


def load_encoder(folder: Path | str) -> FrozenEncoder:
    """Read what `EncoderTask.export` wrote.

    Raises:
        UserError: a file is missing, or is of another encoder.
    """
    folder = Path(folder)
    state, settings = read_weights(folder, "encoder")
    encoder, _ = build_encoder(settings, empty=True)
    path = folder / "encoder.safetensors"
    head = build_head(settings["head"], settings["dim"]) if "head" in settings else None
    if head is not None:
        mine = {n: value for n, value in state.items() if n.startswith("head.")}
        state = {n: value for n, value in state.items() if n not in mine}
        fill(head, {n.removeprefix("head."): value for n, value in mine.items()}, path)
    if packaged_trunk(settings):
        own = encoder.state_dict()
        state |= {name: value for name, value in own.items() if name.startswith("trunk.")}
    fill(encoder, state, path)
    companion = Companion(**settings["companion"]) if "companion" in settings else None
    return FrozenEncoder(encoder, head, companion, settings.get("peak_window", 0))
