"""Frames out of video files, with decord or PyAV. The one door to them.

decord reads a sound file of a constant frame rate. PyAV, with its newer FFmpeg, also reads AV1 and
variable frame rates, and passes over damaged packets. Where both read H.264, their frames are equal
(but if the height stays as it is and the width does not).

A broken file can hang a decoder or end its process: where that matters, go through
`selfshot.data.guard`, which decodes in a process of its own and falls back from decord to PyAV.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from selfshot.data.decoders import DecordReader, PyavReader, Times, is_steady
from selfshot.data.decoders import NoBytesError as NoBytesError
from selfshot.data.decoders import VideoError as VideoError
from selfshot.errors import refuse_outage

VIDEO_SUFFIXES = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v",
    ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm",
    ".rmvb", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
"""How the name of a video file ends, in letters of either case."""

Decoder = Literal["decord", "pyav"]

LEAST_DECODED_SHARE = 0.5
"""Of a clip's frames that must be decodable; with fewer, its samples would show little of it."""

DECODE_ALIGNMENT = 32
_SMOOTH = Image.Resampling.BILINEAR
@dataclasses.dataclass(frozen=True)
class VideoFacts:
    """What a file says of itself; height and width are those of the frames as shown."""

    num_frames: int
    height: int
    width: int
    fps: float


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Frames of a clip, and how much of it could be decoded.

    Attributes:
        frames: uint8 (num_frames, height, width, 3).
        decoded: frames of the clip that could be decoded.
        expected: frames that the clip has.
    """

    frames: UInt8[np.ndarray, "num_frames height width 3"]
    decoded: int
    expected: int


def probe(path: Path | str) -> VideoFacts:
    """Length, size and rate of a video, by the first decoder that reads it.

    Raises:
        VideoError: the file cannot be opened as a video.
    """
    reader: DecordReader | PyavReader
    try:
        reader = _open(path, "decord")
        frames = reader.take(np.zeros(1, np.int64), 0, 1).frames
    except VideoError:
        reader = _open(path, "pyav")
        frames = reader.take(np.zeros(1, np.int64), 0, 1).frames
    height, width = frames.shape[1:3]
    count, seconds = len(reader.times), float(reader.times[-1, 1])
    return VideoFacts(count, height, width, count / max(seconds, 1e-9))


def duration_s(path: Path | str) -> float | None:
    """Seconds from the start of the first frame to the end of the last; None if it has none.

    Nothing is decoded. A broken file is found when its frames are read.
    """
    try:
        return float(PyavReader(path).times[-1, 1])
    except VideoError:
        return None


def sample_frames(
    path: Path | str, **sampling: Any
) -> UInt8[np.ndarray, "num_frames height width 3"]:
    """The frames of `sample_clip`, which says what its arguments and errors are."""
    return sample_clip(path, **sampling).frames


def sample_clip(
    path: Path | str,
    *,
    num_frames: int,
    height: int,
    width: int,
    start_s: float | None = None,
    end_s: float | None = None,
    least_frames: int = 1,
    decoder: Decoder = "decord",
) -> Sampled:
    """The middle frame of each of `num_frames` equal parts of a video, resized while decoding.

    A video with fewer frames gives some of them more than once. If frames are on screen for
    different times, the parts are equal in time. A frame that PyAV cannot decode is replaced by
    the one that is on screen before it.

    Args:
        path: the file.
        num_frames: how many.
        height: of the frames given back, in pixels.
        width: of the frames given back, in pixels.
        start_s: beginning of the part of the video that is sampled, in seconds from the start of
            the first frame; its beginning if None.
        end_s: end of that part; the video's end if None or later.
        least_frames: what the part must have.
        decoder: what reads the file.

    Raises:
        ValueError: a number or a size below 1, or a part that does not end after its start.
        VideoError: the file cannot be opened, has too few frames in the part, or fewer than
            `LEAST_DECODED_SHARE` of them can be decoded.
    """
    if min(num_frames, height, width) < 1:
        raise ValueError(
            f"num_frames, height, width: {num_frames}, {height}, {width} must be at least 1"
        )
    if not (start_s or 0.0) < (float("inf") if end_s is None else end_s):
        raise ValueError(f"start_s: {start_s} is not before end_s: {end_s}")
    reader = _open(path, decoder, height, width)
    part = find_part(reader.times, start_s, end_s)
    if part is None:
        seconds = float(reader.times[-1, 1])
        reason = f"no frame between {start_s} s and {end_s} s; it has {seconds:.2f} s"
        raise VideoError(reason, path)
    first, end = part
    if end - first < least_frames:
        reason = f"it has {end - first} frames where {least_frames} are needed"
        raise VideoError(reason, path)
    taken = reader.take(choose_frames(reader.times, first, end, num_frames), first, end)
    expected = end - first + (reader.cut_off if end == len(reader.times) else 0)
    if taken.decoded < max(1, LEAST_DECODED_SHARE * expected):
        share = f"fewer than the {LEAST_DECODED_SHARE:.0%} that are needed"
        reason = f"{taken.decoded} of its {expected} frames can be decoded, {share}"
        raise VideoError(reason, path)
    return Sampled(_sized(taken.frames, (num_frames, height, width), path), taken.decoded, expected)


def find_part(times: Times, start_s: float | None, end_s: float | None) -> tuple[int, int] | None:
    """First frame between two times and the one after the last; None if the video is over by then.

    A frame lies between them if its middle does. If none does, it is the frame that is on screen.

    Args:
        times: seconds at which each frame starts and ends.
        start_s, end_s: see `sample_clip`.
    """
    if start_s is None and end_s is None:
        return 0, len(times)
    # By the frames' own times: in some files the rate in the header means nothing.
    middle_s = times.mean(axis=1)
    start, end = start_s or 0.0, np.inf if end_s is None else end_s
    frames = np.flatnonzero((middle_s >= start) & (middle_s < end))
    if len(frames):
        return int(frames[0]), int(frames[-1]) + 1
    over = float(times[-1, 1])
    if start >= over or end <= 0:
        return None
    shown = int(np.searchsorted(times[:, 0], (max(start, 0.0) + min(end, over)) / 2, "right")) - 1
    return shown, shown + 1


def choose_frames(
    times: Times, first: int, end: int, num_frames: int
) -> Int64[np.ndarray, num_frames]:
    """The frames in the middle of equal parts of those from `first` to before `end`.

    Args:
        times: seconds at which each frame of the video starts and ends.
        first: of the frames.
        end: the frame after them.
        num_frames: how many parts.
    """
    middles = (np.arange(num_frames) + 0.5) / num_frames
    starts = times[first:end, 0].astype(np.float64)
    if is_steady(starts):
        return first + (middles * (end - first)).astype(np.int64)
    # The last one stays until the next frame; at the video's end, for its own duration.
    over = float(times[end, 0] if end < len(times) else times[end - 1, 1])
    at = starts[0] + middles * (over - starts[0])
    return first + np.searchsorted(starts, at, "right").clip(1) - 1


def frames_at(
    path: Path | str,
    *,
    indices: Sequence[int],
    length: int,
    height: int,
    width: int,
    decoder: Decoder = "decord",
) -> UInt8[np.ndarray, "num_frames height width 3"]:
    """Frames of a video by their index, resized while decoding.

    Args:
        path: the file.
        indices: of the frames to take, from 0, in the order to give them back.
        length: how many frames the video must have: with another number an index may mean
            another moment.
        height: of the frames given back, in pixels.
        width: of the frames given back, in pixels.
        decoder: what reads the file.

    Raises:
        ValueError: no index, an index outside the video, or a size below 1.
        VideoError: the file cannot be opened, one of the frames cannot be decoded, or it has
            another number of frames.
    """
    if not len(indices) or min(indices) < 0 or max(indices) >= length:
        raise ValueError(f"indices: {list(indices)} must be some of 0 to {length - 1}")
    if min(height, width) < 1:
        raise ValueError(f"height, width: {height}, {width} must be at least 1")
    reader = _open(path, decoder, height, width)
    if len(reader.times) != length:
        reason = f"it has {len(reader.times)} frames where {length} are expected"
        raise VideoError(reason, path)
    wanted = np.asarray(indices, dtype=np.int64)
    taken = reader.take(wanted, int(wanted.min()), int(wanted.max()) + 1)
    if taken.replaced:
        raise VideoError(f"frame {taken.replaced[0]} cannot be decoded", path)
    return _sized(taken.frames, (len(indices), height, width), path)


def iterate_frames(
    path: Path | str, height: int, width: int, at_once: int, *, decoder: Decoder = "decord"
) -> Iterator[tuple[UInt8[np.ndarray, "time height width 3"], Float[np.ndarray, time]]]:
    """All frames of a video that can be decoded, some at a time, with the seconds of their starts.

    Args:
        path: the file.
        height: of the frames given back, in pixels.
        width: of the frames given back, in pixels; a multiple of `DECODE_ALIGNMENT`.
        at_once: how many frames are in memory.
        decoder: what reads the file.

    Raises:
        VideoError: the file cannot be opened or decoded.
    """
    reader = _open(path, decoder, height, width)
    for indices, frames in reader.pieces(at_once):
        yield frames, reader.times[indices, 0].astype(np.float64)


def _open(
    path: Path | str, decoder: Decoder, height: int | None = None, width: int | None = None
) -> DecordReader | PyavReader:
    """A reader of one thread; of frames of this height, and at least this width."""
    try:
        num_bytes = Path(path).stat().st_size
    except OSError as error:
        refuse_outage(error, path)
        raise NoBytesError(error.strerror or str(error), path) from None
    if not num_bytes:
        raise NoBytesError("the file is empty", path)
    # decord cannot scale to some widths (16, 24, 48, 72, …: its lines are padded): those are
    # decoded at the next multiple of 32, by either reader, and resized by `_sized`.
    aligned = None if width is None else -(-width // DECODE_ALIGNMENT) * DECODE_ALIGNMENT
    size = None if height is None or aligned is None else (height, aligned)
    return DecordReader(path, size) if decoder == "decord" else PyavReader(path, size)


def _sized(
    frames: np.ndarray, shape: tuple[int, int, int], path: Path | str
) -> UInt8[np.ndarray, "num_frames height width 3"]:
    """Frames at their final width."""
    num_frames, height, width = shape
    if frames.shape[2] != width:
        frames = np.stack(
            [np.asarray(Image.fromarray(f).resize((width, height), _SMOOTH)) for f in frames]
        )
    if frames.shape != (num_frames, height, width, 3):
        raise VideoError(f"the decoder gave frames of shape {frames.shape}", path)
    return frames
