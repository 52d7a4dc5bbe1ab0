"""Encoders by name: what turns the frames of a clip into one vector.

A new one is a line in `ENCODERS` and a function that builds it.
"""

from __future__ import annotations

import dataclasses
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn import functional

from selfshot.errors import UserError
from selfshot.files import digest_pieces
from selfshot.models.encoder_backbones import EfficientNetFeatures

FRAMES_AT_ONCE = 16
"""On a CPU the activations of so many frames still fit its caches; on a GPU all go at once."""


class Encoder(Protocol):
    """What the embedding job asks of an encoder; `prepare(device)` may be there as well."""

    def embed(self, frames: UInt8[np.ndarray, "batch time height width 3"]) -> np.ndarray:
        """One vector a clip, float32 (B, d)."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named encoder.

    Attributes:
        build: `module:function` that gives it, without arguments.
        height, width: of the frames that it was trained for, in pixels.
        words: what it is, for people.
    """

    build: str
    height: int
    width: int
    words: str


ENCODERS: dict[str, Recipe] = {
    "efficientnet_lite0": Recipe(
        "selfshot.models.encoders:efficientnet_lite0",
        224,
        224,
        "EfficientNet-Lite0 with ImageNet weights, the mean over positions and frames; it has seen "
        "ImageNet's labels",
    ),
}


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that is ready to be sent to where it is needed.

    Attributes:
        encoder: itself.
        digest: of its name or its files.
        height, width: of its frames; None where its files do not say.
    """

    encoder: Encoder
    digest: str
    height: int | None
    width: int | None


def open_encoder(name: str) -> LoadedEncoder:
    """An encoder by its name, or out of the folder that `selfshot train encoder` exported.

    Raises:
        UserError: neither is there.
    """
    recipe = ENCODERS.get(name)
    if recipe is not None:
        encoder = pkgutil.resolve_name(recipe.build)()
        return LoadedEncoder(encoder, name, recipe.height, recipe.width)
    folder = next((f for f in (Path(name), Path(name) / "export") if _is_export(f)), None)
    if folder is None:
        raise UserError(
            f"--encoder: {name} is no encoder (one of {', '.join(ENCODERS)}, or a folder with "
            "encoder.safetensors, as selfshot train encoder leaves it)"
        )
    # It imports torchvision, and torch's compiler with it: seconds in each process.
    from selfshot.models.trained_encoder import load_encoder

    size = json.loads((folder / "encoder.json").read_text()).get("size") or (None, None)
    return LoadedEncoder(load_encoder(folder), digest_of(folder), *size)


def _is_export(folder: Path) -> bool:
    return (folder / "encoder.safetensors").is_file()


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's files."""

    def pieces() -> Iterator[bytes]:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            yield f"{path.name}\0{path.stat().st_size}\0".encode()
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    yield piece

    return digest_pieces(pieces())[:16]


class FrameAverage:
    """Frozen features of frames, averaged over positions and frames, L2-normalised."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone.eval()
        self.device = "cpu"

    def prepare(self, device: str) -> None:
        """Move to a device, in the form that is fastest there."""
        self.device = device
        self.backbone.prepare(device)

    @torch.inference_mode()
    def embed(
        self, frames: UInt8[np.ndarray, "batch time height width 3"]
    ) -> Float[np.ndarray, "batch dim"]:
        """One vector a clip."""
        batch, time = frames.shape[:2]
        images = torch.from_numpy(frames).flatten(0, 1)
        at_once = FRAMES_AT_ONCE if self.device == "cpu" else len(images)
        means = []
        for part in images.split(at_once):
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device != "cpu"):
                tokens, _ = self.backbone(part.to(self.device, non_blocking=True))
            means.append(tokens.float().mean((2, 3)))
        pooled = torch.cat(means).unflatten(0, (batch, time)).mean(1)
        return functional.normalize(pooled, dim=-1).cpu().numpy()


def efficientnet_lite0() -> FrameAverage:
    """EfficientNet-Lite0 without its head."""
    return FrameAverage(EfficientNetFeatures())
