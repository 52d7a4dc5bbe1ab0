"""Encoders by name: what turns the frames of a clip into one vector."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import UInt8

from selfshot.errors import UserError
from selfshot.files import digest_pieces
from selfshot.models.pretrained_files import find_network, is_pretrained_name

if TYPE_CHECKING:
    from selfshot.models.trained_encoder import Precision


class Encoder(Protocol):
    """What the embedding job asks of an encoder; `prepare(device)` may be there as well."""

    def embed(self, frames: UInt8[np.ndarray, "batch time height width 3"]) -> np.ndarray:
        """One vector a clip, float32 (B, d)."""


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


def open_encoder(name: str, precision: Precision = "float32") -> LoadedEncoder:
    """An encoder by its name, or out of the folder that `selfshot train encoder` exported.

    A pretrained network by its name is Φ as it is: a clip's vector is the mean over its frames of
    the network's own vectors of them, or of the clip where it reads clips, L2-normalised.

    Args:
        name: `efficientnet_lite0`, `timm/…`, `hf/…`, or a folder.
        precision: of its arithmetic on a CPU.

    Raises:
        UserError: neither is there.
    """
    # It imports timm and torchvision, and torch's compiler with them: seconds in each process.
    from selfshot.models.pretrained import PACKAGED, open_network, packaged_network
    from selfshot.models.trained_encoder import FrozenEncoder, load_encoder
    from selfshot.models.video_encoder import VideoEncoder

    if name == PACKAGED or is_pretrained_name(name):
        if name == PACKAGED:
            network, digest = packaged_network(), name
        else:
            files = find_network(name, setting="--encoder")
            network, digest = open_network(files, setting="--encoder"), files.digest()[:16]
        whole = VideoEncoder(network, network.pooled_dim, 0, 1, pools_itself=True)
        frames = network.preprocessing
        encoder = FrozenEncoder(whole, precision=precision)
        return LoadedEncoder(encoder, digest, frames.height, frames.width)
    folder = next((f for f in (Path(name), Path(name) / "export") if _is_export(f)), None)
    if folder is None:
        raise UserError(
            f"--encoder: {name} is no encoder (allowed: {PACKAGED}, timm/NAME, hf/REPOSITORY or "
            "hf/FOLDER, or a folder with encoder.safetensors, as selfshot train encoder leaves it)",
            setting="--encoder",
        )
    size = json.loads((folder / "encoder.json").read_text()).get("size") or (None, None)
    return LoadedEncoder(load_encoder(folder, precision), digest_of(folder), *size)


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
