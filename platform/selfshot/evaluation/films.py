"""Drawn frames as files that move: MP4 and GIF, written as the frames come."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from PIL import Image

# Quick, and sharp enough for outlines and letters.
_H264 = {"preset": "superfast", "crf": "23"}
_BITS_PER_PIXEL = 0.3  # of MPEG-4, which is not told a quality


class Film(Protocol):
    """A file that frames of one size are added to."""

    def add(self, frame: Image.Image) -> None:
        """Append a frame."""

    def close(self) -> None:
        """Write what is left, and close the file."""


class Mp4:
    """An MP4: H.264 where PyAV has an encoder of it, else MPEG-4.

    Both want even sides: a picture of odd ones loses its last line or column.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        """Opens the file.

        Args:
            path: written to, whatever its name ends in.
            fps: frames in a second, above 0.
            size: width and height of the frames, in pixels, at least 2.
        """
        self.size = (size[0] // 2 * 2, size[1] // 2 * 2)
        rate = Fraction(fps).limit_denominator(1000)
        self._container = av.open(str(path), "w", format="mp4")
        if "libx264" in av.codecs_available:
            self._stream = self._container.add_stream("libx264", rate=rate, options=_H264)
        else:
            self._stream = self._container.add_stream("mpeg4", rate=rate)
            self._stream.bit_rate = int(_BITS_PER_PIXEL * size[0] * size[1] * max(fps, 1.0))
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"

    def add(self, frame: Image.Image) -> None:
        """Append a frame."""
        pixels = np.asarray(frame.crop((0, 0, *self.size)) if frame.size != self.size else frame)
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what is left, and close the file."""
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()


class Gif:
    """A GIF that plays for ever; its frames are kept, a byte a pixel, until it is closed."""

    def __init__(self, path: Path, fps: float) -> None:
        """Opens nothing yet.

        Args:
            path: written to, whatever its name ends in.
            fps: frames in a second, above 0; browsers play at most 50.
        """
        self.path, self.fps = path, fps
        self._frames: list[Image.Image] = []

    def add(self, frame: Image.Image) -> None:
        """Append a frame."""
        # The default method is twenty times as slow, and what is undithered compresses better.
        method, dither = Image.Quantize.FASTOCTREE, Image.Dither.NONE
        self._frames.append(frame.quantize(255, method=method, dither=dither))

    def close(self) -> None:
        """Write the file."""
        first, *rest = self._frames
        first.save(
            self.path,
            "GIF",
            save_all=True,
            append_images=rest,
            duration=max(round(100 / self.fps), 2) * 10,  # the format counts hundredths
            loop=0,
        )
