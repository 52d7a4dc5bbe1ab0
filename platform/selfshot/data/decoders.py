"""Videos opened with decord or with PyAV, for `selfshot.data.video`; nothing else names either."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

# Frames are steady if none is on screen this many times as long as the median.
_UNSTEADY = 2.0
# A time above this is none: decord gives a frame without one the smallest integer.
_LONGEST_S = 1e6

# What decord writes before its reason: the time, its source file and the line.
_PREFIX = re.compile(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ")

Times = Float32[np.ndarray, "frames 2"]


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


class NoBytesError(VideoError):
    """A video whose bytes cannot be had, so that no other decoder can read it either."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """Frames that a reader gives: how many of the part it decoded, and which it had to replace."""

    frames: np.ndarray
    decoded: int
    replaced: Sequence[int] = ()


class DecordReader:
    """A video opened with decord, which turns frames as the file says they are shown.

    decord is imported here and not above: who only catches a VideoError need not load it.

    Attributes:
        times: seconds at which each frame starts and ends, from the start of the first.
        cut_off: frames that the file promises and does not hold: none that decord reports.
    """

    cut_off = 0

    def __init__(self, path: Path | str, size: tuple[int, int] | None = None) -> None:
        import decord

        self.path = path
        decord.logging.set_level(decord.logging.QUIET)
        scaled = {} if size is None else {"height": size[0], "width": size[1]}
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1, **scaled)
            count = len(self._reader)
            times = self._reader.get_frame_timestamp(np.arange(count)) if count else None
        except Exception as error:
            raise VideoError(_reason_of(error), path) from error
        if times is None:
            raise VideoError("it has no frame", path)
        # Of other frames decord does not know how long they are, nor finds the right ones.
        if np.abs(times).max() > _LONGEST_S or not is_steady(times[:, 0]):
            raise VideoError("its frames have no regular times, which decord needs", path)
        self.times: Times = times - times[0, 0]

    def take(self, indices: np.ndarray, first: int, end: int) -> Taken:
        """Frames by their index; of the part all are decoded, or it is an error."""
        try:
            return Taken(self._reader.get_batch(indices).asnumpy(), end - first)
        except Exception as error:
            raise VideoError(_reason_of(error), self.path) from error

    def pieces(self, at_once: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All frames with their indices, some at a time."""
        for start in range(0, len(self.times), at_once):
            indices = np.arange(start, min(start + at_once, len(self.times)))
            yield indices, self.take(indices, 0, 0).frames


class PyavReader:
    """A video opened with PyAV, which passes over what is damaged.

    A frame counts as decoded if the decoder gives it without marking it as corrupt, and gives the
    key frame that it depends on too. After a frame that is marked, others are smeared until the
    next key frame, as they are predicted from it.

    Attributes:
        times: seconds at which each frame starts and ends, from the start of the first.
        cut_off: frames that the file promises and does not hold.
    """

    def __init__(self, path: Path | str, size: tuple[int, int] | None = None) -> None:
        import av

        self.path, self.size = path, size
        packets: list[tuple[int | None, int, int | None, bool]] = []
        with self._container() as (container, stream):
            rate = float(stream.guessed_rate or stream.average_rate or 25)
            tick = float(stream.time_base or 1 / rate)
            # What follows a packet that cannot be found is lost; what came before it is of use.
            with contextlib.suppress(av.error.InvalidDataError):
                for packet in container.demux(stream):
                    if packet.size and not packet.is_discard:
                        seen = packet.pts, packet.duration or 0, packet.dts, packet.is_keyframe
                        packets.append(seen)
            # A packet that is damaged may not look like a key frame; the file's index knows.
            keys = {entry.timestamp for entry in stream.index_entries if entry.is_keyframe}
            packets = [
                (pts, ticks, dts, marked or dts in keys) for pts, ticks, dts, marked in packets
            ]
            # Other formats count what they do not hold, such as repeated frames.
            promised = stream.frames if "mp4" in container.format.name else 0
        if not packets:
            raise VideoError("it has no frame", path)
        self.cut_off = max(0, promised - len(packets))
        # Without times of their own, frames are known by their place in the decoder's output.
        self._by_time = len({pts for pts, *_ in packets} - {None}) == len(packets)
        if self._by_time:
            packets.sort()
            self._pts = np.array([pts for pts, *_ in packets], dtype=np.int64)
            starts = (self._pts - self._pts[0]) * tick
            lengths = np.array([ticks for _, ticks, *_ in packets]) * tick
            until_next = np.diff(starts, append=starts[-1] + 1 / rate)
            ends = starts + np.where(lengths > 0, lengths, until_next)
            self.times: Times = np.stack([starts, ends], axis=1).astype(np.float32)
        else:
            self._pts = np.arange(len(packets))
            self.times = _evenly(len(packets), rate)
        # Of each frame, the key frame before it; -1 before the first.
        marked = [index if key else -1 for index, (*_, key) in enumerate(packets)]
        self._key = np.maximum.accumulate(marked)

    @contextlib.contextmanager
    def _container(self) -> Iterator[tuple[Any, Any]]:
        """The opened file and its video stream; not the picture of a cover.

        Raises:
            VideoError: it cannot be opened.
        """
        import av

        try:
            container = av.open(str(self.path), metadata_errors="ignore")
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            raise VideoError("it cannot be opened as a video", self.path) from error
        with container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoError("it has no video stream", self.path)
            if stream.codec_context is None:
                raise VideoError("its codec is none that FFmpeg decodes", self.path)
            stream.codec_context.thread_type = "NONE"
            yield container, stream

    def take(self, indices: np.ndarray, first: int, end: int) -> Taken:
        """Frames by their index, which lie in a part; one that is lost is replaced.

        Its replacement is the frame that is on screen before it, or the first one after it.

        Raises:
            VideoError: none of the part can be decoded.
        """
        waiting = sorted(set(indices.tolist()))
        found: dict[int, np.ndarray] = {}
        replaced: list[int] = []
        decoded, scale = 0, self._scaler()
        shown: tuple[int, Any] | None = None
        for index, frame in itertools.chain(self._decode(first, end), [(end, None)]):
            if shown is not None and waiting and waiting[0] < index:
                pixels = scale(shown[1])
                while waiting and waiting[0] < index:
                    if waiting[0] != shown[0]:
                        replaced.append(waiting[0])
                    found[waiting.pop(0)] = pixels
            shown = index, frame
            decoded += index < end
        if not decoded:
            raise VideoError(f"none of its {end - first} frames can be decoded", self.path)
        return Taken(np.stack([found[index] for index in indices.tolist()]), decoded, replaced)

    def pieces(self, at_once: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All frames that can be decoded with their indices, some at a time."""
        scale = self._scaler()
        decoded = self._decode(0, len(self.times))
        while piece := [(i, scale(frame)) for i, frame in itertools.islice(decoded, at_once)]:
            yield np.array([i for i, _ in piece]), np.stack([pixels for _, pixels in piece])

    def _decode(self, first: int, end: int) -> Iterator[tuple[int, Any]]:
        """The frames from `first` to before `end` that count as decoded, with their indices."""
        import av

        place = {int(pts): index for index, pts in enumerate(self._pts)}
        # Some codecs mark no key frame at all; elsewhere, frames before the first one are lost.
        given_key = -1 if self._key[-1] < 0 else None
        position = -1
        with self._container() as (container, stream):
            for packet in self._packets(container, stream, int(self._key[first])):
                try:
                    frames = stream.decode(packet)
                except av.error.MemoryError:
                    raise
                except av.FFmpegError:
                    continue  # A damaged packet.
                for frame in frames:
                    position = place.get(frame.pts, -1) if self._by_time else position + 1
                    if position >= end:
                        return
                    if position < 0:
                        continue
                    if self._key[position] == position:
                        given_key = position
                    depends_on_it = self._key[position] == given_key
                    if position >= first and depends_on_it and not frame.is_corrupt:
                        yield position, frame

    def _packets(self, container: Any, stream: Any, key: int) -> Iterator[Any]:
        """Packets from a key frame on; from the file's first one where that cannot be found."""
        import av

        with contextlib.suppress(av.error.InvalidDataError):
            if key > 0 and self._by_time:
                container.seek(int(self._pts[key]), stream=stream)
                packets = container.demux(stream)
                packet = next(packets)
                if packet.pts is not None and packet.pts <= self._pts[key]:
                    yield packet
                    yield from packets
                    return
                container.seek(int(self._pts[0]), stream=stream)
            yield from container.demux(stream)

    def _scaler(self) -> Callable[[Any], np.ndarray]:
        """What makes a frame RGB, turned as it is shown, at the reader's size.

        By a graph of filters, as decord does: VideoFrame.reformat places chroma elsewhere.
        """
        import av

        graphs: dict[tuple[Any, ...], Any] = {}

        def scale(frame: Any) -> np.ndarray:
            matrix = frame.side_data.get("DISPLAYMATRIX")
            turns = _turns(bytes(matrix)) if matrix is not None else []
            key = (frame.width, frame.height, frame.format.name, *turns)
            if key not in graphs:
                graph = av.filter.Graph()
                nodes = [
                    graph.add_buffer(
                        width=frame.width,
                        height=frame.height,
                        format=frame.format,
                        time_base=frame.time_base or Fraction(1, 25),
                    )
                ]
                nodes += [graph.add(*turn) for turn in turns]
                if self.size is not None:
                    height, width = self.size
                    nodes.append(graph.add("scale", f"{width}:{height}:flags=bilinear"))
                nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
                for before, after in itertools.pairwise(nodes):
                    before.link_to(after)
                graph.configure()
                graphs.clear()  # A file whose size changes often must not fill the memory.
                graphs[key] = graph
            graphs[key].vpush(frame)
            return np.asarray(graphs[key].vpull().to_ndarray())

        return scale


def _turns(matrix: bytes) -> list[tuple[str, str]]:
    """Filters that turn a frame as its display matrix says, by quarters and mirrors.

    The pixel (x, y) is shown at (a·x + c·y, b·x + d·y).
    """
    a, b, _, c, d = struct.unpack("<5i", matrix[:20])
    across = abs(c) > abs(a)
    turns = [("transpose", "cclock_flip")] if across else []
    if (c if across else a) < 0:
        turns.append(("hflip", ""))
    if (b if across else d) < 0:
        turns.append(("vflip", ""))
    return turns


def is_steady(starts: np.ndarray) -> bool:
    """Whether frames are on screen about equally long."""
    gaps = np.diff(starts)
    return not len(gaps) or bool(gaps.min() >= 0 and gaps.max() < _UNSTEADY * np.median(gaps))


def _evenly(count: int, rate: float) -> Times:
    """Times of frames that are equally long."""
    starts = np.arange(count) / max(rate, 1e-9)
    return np.stack([starts, starts + 1 / max(rate, 1e-9)], axis=1).astype(np.float32)


def _reason_of(error: Exception) -> str:
    """One line that a person understands, out of what the decoder says."""
    lines = _PREFIX.sub("", str(error)).strip().splitlines()
    text = lines[0].strip() if lines else type(error).__name__
    if text.startswith("Error reading"):
        return "it cannot be opened as a video"
    return f"it cannot be decoded: {text[:300]}"
