"""Frames out of video files, with decord. The only module that names it.

A broken file can hang the decoder or end its process: where that matters, go through
`selfshot.data.guard`, which decodes in a process of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""How the name of a video file ends, in letters of either case."""

DECODE_ALIGNMENT = 32
_SMOOTH = Image.Resampling.BILINEAR

# What decord writes before its reason: the time, its source file and the line.
_PREFIX = re.compile(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ")


class VideoError(Exception):
    """A video or a frame that cannot be read, and why.

    Attributes:
        reason: one line, without the path.
        path: the file.
    """

    def __init__(self, reason: str, path: Path | str = "") -> None:
        super().__init__(reason, str(path))
        self.reason = reason
        self.path = str(path)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


@dataclasses.dataclass(frozen=True)
class VideoFacts:
    """What a file says of itself."""

    num_frames: int
    height: int
    width: int
    fps: float


def probe(path: Path | str) -> VideoFacts:
    """Length, size and rate of a video.

    Raises:
        VideoError: the file cannot be opened as a video.
    """
    reader = _open(path)
    try:
        height, width = reader[0].shape[:2]
        return VideoFacts(len(reader), int(height), int(width), float(reader.get_avg_fps()))
    except Exception as error:
        raise VideoError(_reason_of(error), path) from error


def sample_frames(
    path: Path | str,
    *,
    num_frames: int,
    height: int,
    width: int,
    start_s: float | None = None,
    end_s: float | None = None,
    least_frames: int = 1,
) -> UInt8[np.ndarray, "num_frames height width 3"]:
    """The middle frame of each of `num_frames` equal parts of a video, resized while decoding.

    A video with fewer frames gives some of them more than once.

    Args:
        path: the file.
        num_frames: how many.
        height: of the frames given back, in pixels.
        width: of the frames given back, in pixels.
        start_s: beginning of the part of the video that is sampled; its beginning if None.
        end_s: end of that part; the video's end if None or later.
        least_frames: what the part must have.

    Raises:
        ValueError: a number or a size below 1, or a part that does not end after its start.
        VideoError: the file cannot be opened or decoded, or has too few frames in the part.
    """
    if min(num_frames, height, width) < 1:
        raise ValueError(
            f"num_frames, height, width: {num_frames}, {height}, {width} must be at least 1"
        )
    if not (start_s or 0.0) < (float("inf") if end_s is None else end_s):
        raise ValueError(f"start_s: {start_s} is not before end_s: {end_s}")

    def middles(reader: Any) -> np.ndarray:
        part = _part(reader, start_s, end_s)
        if part is None:
            seconds = len(reader) / max(float(reader.get_avg_fps()), 1e-9)
            reason = f"no frame between {start_s} s and {end_s} s; it has {seconds:.2f} s"
            raise VideoError(reason, path)
        first, end = part
        if end - first < least_frames:
            reason = f"it has {end - first} frames where {least_frames} are needed"
            raise VideoError(reason, path)
        return first + ((np.arange(num_frames) + 0.5) * (end - first) / num_frames).astype(np.int64)

    return _decode(path, middles, num_frames, height, width)


def frames_at(
    path: Path | str, *, indices: Sequence[int], length: int, height: int, width: int
) -> UInt8[np.ndarray, "num_frames height width 3"]:
    """Frames of a video by their index, resized while decoding.

    Args:
        path: the file.
        indices: of the frames to take, from 0, in the order to give them back.
        length: how many frames the video must have: with another number an index may mean
            another moment.
        height: of the frames given back, in pixels.
        width: of the frames given back, in pixels.

    Raises:
        ValueError: no index, an index outside the video, or a size below 1.
        VideoError: the file cannot be opened or decoded, or has another number of frames.
    """
    if not len(indices) or min(indices) < 0 or max(indices) >= length:
        raise ValueError(f"indices: {list(indices)} must be some of 0 to {length - 1}")
    if min(height, width) < 1:
        raise ValueError(f"height, width: {height}, {width} must be at least 1")

    def checked(reader: Any) -> np.ndarray:
        if len(reader) != length:
            raise VideoError(f"it has {len(reader)} frames where {length} are expected", path)
        return np.asarray(indices, dtype=np.int64)

    return _decode(path, checked, len(indices), height, width)


def iterate_frames(
    path: Path | str, height: int, width: int, at_once: int
) -> Iterator[tuple[UInt8[np.ndarray, "time height width 3"], Float[np.ndarray, time]]]:
    """All frames of a video, some at a time, with the seconds at which each begins.

    Args:
        path: the file.
        height: of the frames given back, in pixels.
        width: of the frames given back, in pixels; a multiple of `DECODE_ALIGNMENT`.
        at_once: how many frames are in memory.

    Raises:
        VideoError: the file cannot be opened or decoded.
    """
    reader = _open(path, height=height, width=width)
    try:
        for start in range(0, len(reader), at_once):
            indices = np.arange(start, min(start + at_once, len(reader)))
            frames = reader.get_batch(indices).asnumpy()
            yield frames, reader.get_frame_timestamp(indices)[:, 0].astype(np.float64)
    except Exception as error:
        raise VideoError(_reason_of(error), path) from error


def _decode(
    path: Path | str,
    choose: Callable[[Any], np.ndarray],
    num_frames: int,
    height: int,
    width: int,
) -> UInt8[np.ndarray, "num_frames height width 3"]:
    """The frames whose indices `choose` gives for the opened video.

    Raises:
        VideoError: by `choose`, or the file cannot be opened or decoded.
    """
    # decord cannot scale to some widths (16, 24, 48, 72, …: its lines are padded): those are
    # decoded at the next multiple of 32 and resized here.
    aligned = -(-width // DECODE_ALIGNMENT) * DECODE_ALIGNMENT
    reader = _open(path, height=height, width=aligned)
    try:
        frames = reader.get_batch(choose(reader)).asnumpy()
    except VideoError:
        raise
    except Exception as error:
        raise VideoError(_reason_of(error), path) from error
    if aligned != width:
        frames = np.stack(
            [np.asarray(Image.fromarray(f).resize((width, height), _SMOOTH)) for f in frames]
        )
    if frames.shape != (num_frames, height, width, 3):
        raise VideoError(f"the decoder gave frames of shape {frames.shape}", path)
    return frames


def _open(path: Path | str, **size: int) -> Any:
    """A decord reader of one thread.

    decord is imported here and not above: who only catches a VideoError need not load it.
    """
    import decord

    try:
        num_bytes = Path(path).stat().st_size
    except OSError as error:
        raise VideoError(error.strerror or str(error), path) from None
    if not num_bytes:
        raise VideoError("the file is empty", path)
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), num_threads=1, **size)
    except Exception as error:
        raise VideoError(_reason_of(error), path) from error
    if not len(reader):
        raise VideoError("it has no frame", path)
    return reader


def _part(reader: Any, start_s: float | None, end_s: float | None) -> tuple[int, int] | None:
    """First frame between two times and the one after the last; None if no frame lies there."""
    if start_s is None and end_s is None:
        return 0, len(reader)
    # By the frames' own times: in some files the rate in the header means nothing.
    middle_s = reader.get_frame_timestamp(np.arange(len(reader))).mean(axis=1)
    inside = (middle_s >= (start_s or 0.0)) & (middle_s < (np.inf if end_s is None else end_s))
    frames = np.flatnonzero(inside)
    return (int(frames[0]), int(frames[-1]) + 1) if len(frames) else None


def _reason_of(error: Exception) -> str:
    """One line that a person understands, out of what the decoder says."""
    lines = _PREFIX.sub("", str(error)).strip().splitlines()
    text = lines[0].strip() if lines else type(error).__name__
    if text.startswith("Error reading"):
        return "it cannot be opened as a video"
    return f"it cannot be decoded: {text[:300]}"
