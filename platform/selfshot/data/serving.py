"""The process that decodes for `selfshot.data.guard`: requests come in, frames or reasons go."""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfshot.data.video import NoBytesError, Sampled, VideoError
from selfshot.errors import StorageError

# Answers begin with a kind, a length (of the frames, of a reason, which is the clip's or storage's,
# or of nothing) and the counts of `Sampled`.
HEADER = struct.Struct("<cQQQ")
FRAMES, REASON, AWAY, READY = b"F", b"R", b"A", b"Y"


def serve() -> None:
    """The child: answer each line of standard input until it ends."""
    settings = json.loads(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # Whatever a decoder prints must not end up among the answers.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C is the parent's to answer.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    module, _, name = settings["decode"].partition(":")
    decode = getattr(importlib.import_module(module), name)
    if settings["memory_bytes"] is not None:
        # What this process has before the first clip, the libraries too, is no clip's.
        for library in ("decord", "av"):
            importlib.import_module(library)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + settings["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    _send(answers, READY, b"")
    for line in _lines_while_parent_lives(settings["parent"]):
        # Without a handler the kernel ends this process, whatever the decoder is stuck in.
        signal.setitimer(signal.ITIMER_REAL, settings["alarm_s"])
        answer = _decode(decode, json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        if isinstance(answer, VideoError):
            _send(answers, REASON, answer.reason.encode(errors="replace"))
        elif isinstance(answer, StorageError):
            _send(answers, AWAY, str(answer).encode(errors="replace"))
        else:
            frames = np.ascontiguousarray(answer.frames).reshape(-1)
            _send(answers, FRAMES, frames.data, answer.decoded, answer.expected)


def _decode(
    decode: Callable[..., Any], request: dict[str, Any]
) -> Sampled | VideoError | StorageError:
    """What decord gives of a clip; what PyAV gives where decord cannot read it."""
    try:
        found = decode(**request)
        return found if isinstance(found, Sampled) else Sampled(found, 0, 0)
    except (StorageError, NoBytesError) as error:
        return error
    except Exception as error:  # Whatever a file does to a decoder, it is this file's alone.
        if request["decoder"] == "decord":
            return _decode(decode, request | {"decoder": "pyav"})
        if isinstance(error, VideoError):
            return error
        return VideoError(f"{type(error).__name__}: {error}")


def _lines_while_parent_lives(parent: int) -> Iterator[bytes]:
    """Lines of standard input.

    A process that the parent forked may hold the pipe open after the parent is gone, so the end of
    the input alone is not enough.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    rest = b""
    while os.getppid() == parent:
        if not poll.poll(2000):
            continue
        received = os.read(0, 1 << 16)
        if not received:
            return
        *lines, rest = (rest + received).split(b"\n")
        yield from lines


def _send(answers: int, kind: bytes, payload: bytes | memoryview, *counts: int) -> None:
    header = HEADER.pack(kind, len(payload), *(counts or (0, 0)))
    parts = [memoryview(header), memoryview(payload)]
    while parts:
        written = os.writev(answers, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]
