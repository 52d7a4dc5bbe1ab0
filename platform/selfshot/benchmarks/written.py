"""Clips that a builder draws: annotated ones as JPEG frames, corpus clips as H.264."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from selfshot.files import digest_bytes

FPS = 8


def write_frames(folder: Path, name: str, frames: np.ndarray) -> list[str]:
    """Write frames uint8 (T, H, W, 3) below `folder/frames/name`; their names below `frames`."""
    (folder / "frames" / name).mkdir(parents=True, exist_ok=True)
    names = [f"{name}/{index:05d}.jpg" for index in range(len(frames))]
    for file, pixels in zip(names, frames, strict=True):
        Image.fromarray(pixels).save(folder / "frames" / file, quality=95, subsampling=0)
    return names


def write_clip(folder: Path, name: str, frames: np.ndarray) -> dict[str, Any]:
    """Write frames as `folder/corpus/name.mp4`; the corpus row of a clip of its own source."""
    data = encode_h264(frames)
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    (folder / "corpus" / f"{name}.mp4").write_bytes(data)
    return {
        "clip_id": name,
        "uri": f"{name}.mp4",
        "start_s": None,
        "end_s": None,
        "source_id": name,
        "bytes": len(data),
        "sha256": digest_bytes(data),
    }


def encode_h264(frames: np.ndarray) -> bytes:
    """Frames uint8 (T, H, W, 3) as an H.264 MP4."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        # One thread, so that the bytes are the same on every machine; and no macroblock tree:
        # with B-frames it reads memory that was never written, and the bytes differ by run.
        stream.options = {
            "crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0",
        }  # fmt: skip
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()
