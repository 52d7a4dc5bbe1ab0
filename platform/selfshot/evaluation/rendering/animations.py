"""Pictures that move, as MP4, GIF or WebP: the one writer of them."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import av
import numpy as np
from PIL import Image

FORMATS = ("mp4", "gif", "webp")
# Quick, and sharp enough for outlines and letters.
_H264 = {"preset": "superfast", "crf": "23"}
_BITS_PER_PIXEL = 0.3  # of MPEG-4, which is given no quality
_LEAST_WIDTH = 64  # of an MP4: encoders refuse slivers


class Animation:
    """A file that frames of one size are added to; GIF and WebP play for ever.

    An MP4 is H.264 where PyAV has an encoder of it, else MPEG-4, and is written as frames come. The
    other two keep their frames until they are closed, a GIF a byte a pixel.
    """

    def __init__(self, file: Path | IO[bytes], kind: str, fps: float) -> None:
        """Opens nothing before the first frame.

        Args:
            file: written to, whatever its name ends in.
            kind: of `FORMATS`.
            fps: frames in a second, above 0; browsers play at most 50 of a GIF.

        Raises:
            ValueError: `fps` is not above 0.
        """
        if not fps > 0:
            raise ValueError(f"fps: {fps} is not allowed (a number > 0)")
        self.file, self.kind, self.fps = file, kind, fps
        self._frames: list[Image.Image] = []
        self._container: Any = None

    def add(self, frame: Image.Image) -> None:
        """Append a frame."""
        if self.kind == "mp4":
            self._encode(frame)
        elif self.kind == "gif":
            # The default method is twenty times as slow; what is undithered compresses better.
            method, dither = Image.Quantize.FASTOCTREE, Image.Dither.NONE
            self._frames.append(frame.quantize(255, method=method, dither=dither))
        else:
            self._frames.append(frame)

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._container is not None:
            try:
                self._container.mux(self._stream.encode())
            finally:
                self._container.close()
        elif self._frames:
            first, *rest = self._frames
            duration = round(1000 / self.fps)
            options: dict[str, Any] = {"quality": 80, "method": 2}
            if self.kind == "gif":  # the format counts hundredths of a second
                duration, options = max(round(100 / self.fps), 2) * 10, {}
            first.save(
                self.file, self.kind, save_all=True, append_images=rest, loop=0,
                duration=duration, **options,
            )  # fmt: skip

    def __enter__(self) -> Animation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close; what goes wrong in that must not hide what went wrong before."""
        with contextlib.suppress(*([] if error is None else [Exception])):
            self.close()

    def _encode(self, frame: Image.Image) -> None:
        if self._container is None:
            self._open(frame.size)
        if frame.size != self._size:
            frame = frame.crop((0, 0, self._size[0], self._size[1]))  # what lies outside is black
        picture = av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def _open(self, size: tuple[int, int]) -> None:
        """Open an MP4; its sides are even, as encoders want them."""
        width, height = max(size[0] + size[0] % 2, _LEAST_WIDTH), size[1] + size[1] % 2
        self._size = width, height
        rate = Fraction(self.fps).limit_denominator(1000)
        target = str(self.file) if isinstance(self.file, Path) else self.file
        self._container = av.open(target, "w", format="mp4")
        if "libx264" in av.codecs_available:
            self._stream = self._container.add_stream("libx264", rate=rate, options=_H264)
        else:
            self._stream = self._container.add_stream("mpeg4", rate=rate)
            self._stream.bit_rate = int(_BITS_PER_PIXEL * width * height * max(self.fps, 1.0))
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
