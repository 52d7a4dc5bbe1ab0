"""A lock between the processes of one machine, or of all that share a folder with file locks."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

Message = Callable[[str], None]


@contextlib.contextmanager
def file_lock(path: Path, say: Message, what: str) -> Iterator[None]:
    """Hold a lock that other processes wait for; a killed process frees it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{what}: another process works on it; waiting until it ends")
            fcntl.flock(file, fcntl.LOCK_EX)
        # Closing the file frees the lock; the system closes it for a killed process.
        yield
