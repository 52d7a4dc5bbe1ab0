"""Decoding in a process of its own: a file that hangs or ends the decoder costs one clip.

The child imports neither torch nor anything of ours but the decoder. It reads one line of JSON a
clip and answers with a header and the raw frames. It ends when its parent does: at the end of its
input if it waits, and by an alarm of the kernel, a little after the time limit, if it hangs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from selfshot.data.serving import AWAY, FRAMES, HEADER, READY, REASON
from selfshot.data.video import Decoder, Sampled, VideoError
from selfshot.errors import StorageError

DECODE = "selfshot.data.video:sample_clip"
DECODE_AT = "selfshot.data.video:frames_at"

# The child starts on the next clip while the parent takes the last one's frames.
_AHEAD = 2
_START_S = 60.0
_STARTS = 3
_ALARM_GRACE_S = 2.0
_PIPE_BYTES = 1 << 20
_CHILD = "import sys; sys.path[:] = {path!r}; from selfshot.data.serving import serve; serve()"


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video file, or the part of it between two times."""

    path: str
    start_s: float | None = None
    end_s: float | None = None


@dataclasses.dataclass(frozen=True)
class StoredClip(Clip):
    """A clip that may lie inside another file, or behind an address; for `FETCH`."""

    offset: int | None = None
    length: int | None = None
    within: str | None = None
    max_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class FileFrames:
    """Frames of a video file by their index, at a size of their own; for `DECODE_AT`."""

    path: str
    indices: tuple[int, ...]
    length: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Shots:
    """Times at which the shots of a video begin, for `selfshot.data.shots.SHOTS`."""

    path: str
    most: int
    threshold: float


Request = Clip | FileFrames | Shots


class GuardedDecoder:
    """Decodes clips in child processes with a time limit, restarted after a crash or a hang.

    What decord cannot read, or ends or hangs with, is tried with PyAV before it is an error.

    A child starts at the first clip and stays for the next ones. It serves one call of
    `decode_many` at a time, in the process that started it: threads that decode at once, and
    processes forked from this one, have children of their own, so that no answer reaches the wrong
    caller. A decoder that is pickled starts without children.
    """

    def __init__(
        self,
        *,
        num_frames: int = 0,
        height: int = 0,
        width: int = 0,
        time_limit_s: float = 20.0,
        memory_limit_bytes: int | None = None,
        decode: str = DECODE,
        least_frames: int | None = None,
        decoder: Decoder = "decord",
    ) -> None:
        """Nothing is started yet.

        Args:
            num_frames: frames of each `Clip`; `FileFrames` say theirs.
            height: of its frames, in pixels.
            width: of its frames, in pixels.
            time_limit_s: of one clip; above 0.
            memory_limit_bytes: of address space that clips may take of the child: a header may
                ask for frames that no machine holds. None: no limit.
            decode: `module:function` with the signature of `sample_clip`, or of `frames_at` if
                it is given `FileFrames`.
            least_frames: a `Clip` with fewer is refused; none: any number is taken, some more
                than once.
            decoder: `decord`, then `pyav` where it fails; or `pyav` alone.
        """
        if not time_limit_s > 0:
            raise ValueError(f"time_limit_s: {time_limit_s} must be above 0")
        self.shape = (num_frames, height, width, 3)
        self.time_limit_s = time_limit_s
        self.memory_limit_bytes = memory_limit_bytes
        self.decode_name = decode
        self.least_frames = least_frames
        self.decoder = decoder
        self.restarts = 0
        self._idle: list[_Child] = []

    def decode(
        self, clip: Request | Path | str
    ) -> UInt8[np.ndarray, "time height width 3"]:
        """The frames of one clip.

        Raises:
            VideoError: it cannot be decoded, hung the decoder or ended its process.
            StorageError: storage does not give it.
        """
        (answer,) = self.decode_many([clip])
        if isinstance(answer, VideoError):
            raise answer
        return answer.frames

    def decode_many(
        self, clips: Iterable[Request | Path | str]
    ) -> Iterator[Sampled | VideoError]:
        """For each clip, in order, its frames or the error that it gave.

        Raises:
            StorageError: storage does not give a clip; no clip is to blame.
            RuntimeError: the child does not start at all.
        """
        waiting = iter(clips)
        requested: deque[_Requested] = deque()
        child = self._take_child()
        try:
            while True:
                for clip in itertools.islice(waiting, _AHEAD - len(requested)):
                    clip = Clip(str(clip)) if isinstance(clip, Path | str) else clip
                    requested.append(_Requested(self._request(clip), self._shape(clip)))
                    if child.is_usable():
                        child.send([requested[-1].request])
                if not requested:
                    return
                if not child.is_usable():  # It is new, or forked: it has received none of them.
                    child = self._start_child()
                    child.send([one.request for one in requested])
                answer = self._answer(child, requested[0])
                if not child.is_usable() and requested[0].request["decoder"] == "decord":
                    requested[0].request["decoder"] = "pyav"
                    continue
                requested.popleft()
                yield answer
        finally:
            if requested:  # Left early: the child still has answers that nobody wants.
                child.close()
            elif child.is_usable():
                self._idle.append(child)

    def close(self) -> None:
        """End the children that wait. Another clip starts another one."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> GuardedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_idle": []}

    def _take_child(self) -> _Child:
        """A child that waits, or one that has not been started."""
        while self._idle:
            # Taken off the list in one step, so no other thread has it.
            with contextlib.suppress(IndexError):
                child = self._idle.pop()
                if child.is_usable():
                    return child
                child.close()
        return _Child()

    def _start_child(self) -> _Child:
        """A child that is ready; one that is killed while it starts is started again.

        Raises:
            RuntimeError: it does not start at all.
        """
        settings = {
            "decode": self.decode_name,
            "alarm_s": self.time_limit_s + _ALARM_GRACE_S,
            "memory_bytes": self.memory_limit_bytes,
            "parent": os.getpid(),
        }
        for attempt in range(1, _STARTS + 1):
            child = _Child()
            try:
                child.start(settings)
                return child
            except RuntimeError:
                if attempt == _STARTS:
                    raise
        raise AssertionError("unreachable")

    def _request(self, clip: Request) -> dict[str, Any]:
        """The arguments of the function that decodes."""
        request = dataclasses.asdict(clip) | {"decoder": self.decoder}
        if isinstance(clip, Clip):
            request |= zip(("num_frames", "height", "width"), self.shape[:3], strict=True)
            if self.least_frames is not None:
                request["least_frames"] = self.least_frames
        return request

    def _shape(self, clip: Request) -> tuple[int, ...]:
        if isinstance(clip, Clip):
            return self.shape
        if isinstance(clip, Shots):
            return (clip.most, 8)
        return (len(clip.indices), clip.height, clip.width, 3)

    def _answer(self, child: _Child, requested: _Requested) -> Sampled | VideoError:
        """What the child says of the oldest clip, or what became of the child."""
        deadline = time.monotonic() + self.time_limit_s
        path = requested.request["path"]
        try:
            kind, length, *counts = HEADER.unpack(child.read(HEADER.size, deadline))
            if kind == REASON:
                return VideoError(child.read(length, deadline).decode(), path)
            if kind == AWAY:
                raise StorageError(child.read(length, deadline).decode())
            frames = np.empty(requested.shape, dtype=np.uint8)
            if kind != FRAMES or length != frames.nbytes:
                raise EOFError
            child.fill(frames.reshape(-1).data, deadline)
            return Sampled(frames, *counts)
        except TimeoutError:
            reason = f"the decoder did not finish within {self.time_limit_s:g} s"
        except EOFError:
            reason = f"the decoder's process died ({child.how_it_ended()})"
        self.restarts += 1
        child.close()
        return VideoError(reason, path)


@dataclasses.dataclass(frozen=True)
class _Requested:
    """What a child is to decode, and the shape of its answer."""

    request: dict[str, Any]
    shape: tuple[int, ...]


class _Child:
    """A process that decodes, and the pipes to it. Only the process that started it uses it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._owner = 0

    def is_usable(self) -> bool:
        """Whether it was started by this process, and not closed since."""
        return self._process is not None and self._owner == os.getpid()

    def start(self, settings: dict[str, Any]) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended, or was not ready in time: no clip is to blame.
        """
        # A file, not a pipe: nobody reads it while all goes well, and a full pipe would block.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(path=sys.path), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
        )
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # The limit on pipes is lower here.
            fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            kind, *_ = HEADER.unpack(self.read(HEADER.size, time.monotonic() + _START_S))
            if kind != READY:
                raise EOFError
        except (EOFError, TimeoutError):
            how = self.how_it_ended()
            self.close()
            raise RuntimeError(f"the decoder's process does not start: {how}") from None

    def send(self, requests: Sequence[dict[str, Any]]) -> None:
        """Send clips, a line each."""
        assert self._process is not None and self._process.stdin is not None
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        with contextlib.suppress(BrokenPipeError):  # It died: reading will show it.
            os.write(self._process.stdin.fileno(), lines.encode())

    def read(self, size: int, deadline: float) -> bytes:
        """The next bytes of its answers; see `fill`."""
        buffer = bytearray(size)
        self.fill(memoryview(buffer), deadline)
        return bytes(buffer)

    def fill(self, view: memoryview, deadline: float) -> None:
        """Fill a buffer from its answers.

        Raises:
            TimeoutError: they did not come in time.
            EOFError: they ended.
        """
        assert self._process is not None and self._process.stdout is not None
        answers = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(answers, select.POLLIN)
        while view:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            received = os.readv(answers, [view])
            if not received:
                raise EOFError
            view = view[received:]

    def how_it_ended(self) -> str:
        """Its exit and the end of what it wrote to its standard error."""
        assert self._process is not None and self._errors is not None
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it gave an answer that makes no sense"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        written = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{how}: {written[-1]}" if written else how

    def close(self) -> None:
        """End it. In a process that was forked from its owner, only the pipes are closed."""
        process, self._process = self._process, None
        if process is not None:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            if self._owner == os.getpid():
                process.kill()
                process.wait()
            else:
                process.returncode = 0  # Not this process's to wait for.
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
