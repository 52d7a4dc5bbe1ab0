"""Frames kept as image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from selfshot.data.video import VideoError


def read_frames(
    paths: Sequence[Path | str], height: int, width: int
) -> UInt8[np.ndarray, "time height width 3"]:
    """The images of a clip, resized, as RGB.

    A JPEG that is at least twice as large is shrunk while it is decoded.

    Raises:
        VideoError: an image is missing or cannot be decoded.
    """
    frames = np.empty((len(paths), height, width, 3), dtype=np.uint8)
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                image.draft("RGB", (width, height))
                rgb = image.convert("RGB")
                if rgb.size != (width, height):
                    rgb = rgb.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
                frames[index] = np.asarray(rgb)
        except FileNotFoundError:
            raise VideoError("no such image", path) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).replace(f" {str(path)!r}", "")
            raise VideoError(f"the image cannot be read: {reason}", path) from error
    return frames
