"""Files and folders that a reader finds whole or not at all, their digests, and locks on them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

Message = Callable[[str], None]
PARTIAL = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.partial")
"""Names that `partial_name` gives."""


def partial_name(name: str) -> str:
    """A hidden name for what is not whole yet: no two writers share it."""
    return f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to; the file takes its name, synced, when all went well, and else is gone."""
    partial = path.with_name(partial_name(path.name))
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, in a folder that is made if need be: a reader finds the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_folder(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """An empty folder to fill; it takes its name when all went well, and else is gone.

    Args:
        path: the folder's name; what is there at the end may only be an empty folder.
        partial: its name until then, of one writer at a time, so that what a killed one left
            there is removed; None: a hidden one beside `path`.
    """
    partial = partial or path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        rename_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def rename_folder(partial: Path, path: Path) -> None:
    """Give a filled folder its name, by one rename that a power cut does not undo."""
    _sync(partial)
    partial.rename(path)
    _sync(path.parent)


def remove_partial_files(folder: Path) -> None:
    """Remove what killed writers left of files below a folder in which nobody writes."""
    for parent, _, names in os.walk(folder):
        for name in filter(PARTIAL.fullmatch, names):
            Path(parent, name).unlink(missing_ok=True)


def digest_file(path: Path | str) -> str:
    """SHA-256 of a file, in hex; it is read piece by piece."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_bytes(content: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def digest_pieces(pieces: Iterable[bytes]) -> str:
    """SHA-256 of bytes that come one piece after another, in hex."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def file_lock(path: Path, say: Message, what: str) -> Iterator[None]:
    """Hold a lock that other processes wait for; a killed process frees it."""
    lock = try_lock(path)
    if lock is None:
        say(f"{what}: another process works on it; waiting until it ends")
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def try_lock(path: Path) -> BaseFileLock | None:
    """A lock that is held until its `release`; None: another process holds it."""
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
