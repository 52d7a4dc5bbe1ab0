"""What MLflow is to be told, kept as JSON lines until it was told.

    <output>/unsent/<time>-<pid>.jsonl        one line for each message, in order
    <output>/unsent/<time>-<pid>.sent         how many bytes of it were sent

A line is written before anything is sent, so a kill at any moment loses nothing. A file whose
process is dead is sent by the next run in the same output folder, or by `selfshot track sync`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

FOLDER = "unsent"


class Spool:
    """The messages of one process; others wait for its end before they send them."""

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        """Args: the output folder, and what the first line says (where to send to)."""
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        self.path = folder / FOLDER / f"{time.time_ns()}-{os.getpid()}.jsonl"
        # Others see the file when it is locked and says where it is to be sent, not before.
        hidden = self.path.with_suffix(".new")
        self._file: IO[bytes] = hidden.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._lock = threading.Lock()
        self.written = self.put(head)
        hidden.rename(self.path)

    def put(self, record: dict[str, Any]) -> int:
        """Append a message; returns the number of bytes in the file."""
        line = json.dumps(record, default=str).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            self.written = self._file.tell()
            return self.written

    def close(self) -> None:
        """Remove the file if everything was sent."""
        if sent_bytes(self.path) >= self.written:
            remove(self.path)
        self._file.close()


def records(path: Path, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole messages from a byte on, each with the byte after it; half a line is left."""
    with path.open("rb") as file:
        file.seek(start)
        while line := file.readline():
            if not line.endswith(b"\n"):
                return
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line), file.tell()


def head_of(path: Path) -> dict[str, Any]:
    """The first message of a file; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        for record, _ in records(path, 0):
            return record
    return {}


def sent_bytes(path: Path) -> int:
    """How much of a file was sent."""
    try:
        return int(path.with_suffix(".sent").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def note_sent(path: Path, count: int) -> None:
    """Remember how much was sent."""
    partial = path.with_suffix(".sent.partial")
    partial.write_text(str(count))
    partial.replace(path.with_suffix(".sent"))


def remove(path: Path) -> None:
    """Remove a file that was sent."""
    path.unlink(missing_ok=True)
    path.with_suffix(".sent").unlink(missing_ok=True)


@contextlib.contextmanager
def left_over(folder: Path) -> Iterator[list[Path]]:
    """Files of dead processes, oldest first, locked while they are sent."""
    held: list[IO[bytes]] = []
    found: list[Path] = []
    try:
        for path in sorted((folder / FOLDER).glob("*.jsonl")):
            with contextlib.suppress(OSError):
                file: IO[bytes] = path.open("rb")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.close()
                    continue
                held.append(file)
                found.append(path)
        yield found
    finally:
        for file in held:
            file.close()
