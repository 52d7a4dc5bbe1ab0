"""Frames of a clip wherever its bytes are: in a file, inside a tar, or behind an address.

What is no plain file is read into memory, never unpacked to disk, and decoded from there. This
runs in the decoder's own process (see `selfshot.data.guard`), so a slow or huge source costs one
clip.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from selfshot.config.addresses import is_address
from selfshot.data.video import NoBytesError, Sampled, VideoError, sample_clip
from selfshot.errors import StorageError, refuse_outage

if TYPE_CHECKING:
    from selfshot.data.storage import Storage

FETCH = "selfshot.data.fetch:sample_stored_clip"
PIECE_BYTES = 1 << 20
_WEB = ("http://", "https://", "ftp://")


def sample_stored_clip(
    path: str,
    *,
    offset: int | None = None,
    length: int | None = None,
    within: str | None = None,
    max_bytes: int | None = None,
    **sampling: Any,
) -> Sampled:
    """`sample_clip` of a video that need not be a file of its own.

    Args:
        path: a file, or an address that pyarrow or fsspec can open.
        offset: where the video begins in that file, as a tar's member does; its beginning if None.
        length: bytes of the video; to the end of the file if None.
        within: folder that a local file must be in when all links are followed.
        max_bytes: what is read into memory may be no longer.
        **sampling: num_frames, height, width, and the rest as `sample_clip` takes it.

    Raises:
        VideoError: it cannot be had or decoded.
        StorageError: storage cannot be read.
    """
    if not is_address(path):
        if within is not None and not _is_within(path, within):
            raise NoBytesError("it leads out of the corpus folder", path)
        if offset is None:
            return sample_clip(path, **sampling)
    try:
        with _in_memory(path, offset or 0, length, max_bytes) as copy:
            return sample_clip(copy, **sampling)
    except VideoError as error:
        raise type(error)(error.reason, path) from None
    except OSError as error:
        refuse_outage(error, path)
        raise


def _is_within(path: str, folder: str) -> bool:
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([real, root]) == root


@dataclasses.dataclass(frozen=True)
class Bytes:
    """A video's bytes where a decoder can open them."""

    path: str
    size: int
    sha256: str | None


@contextlib.contextmanager
def open_bytes(
    path: str, offset: int, length: int | None, *, keep: bool, hashed: bool
) -> Iterator[Bytes]:
    """Hash a video wherever it is, and hold it in memory if it is to be decoded.

    Args:
        path: a file, or an address.
        offset: where the video begins in it.
        length: bytes of the video; None: to the end of the file.
        keep: whether the path is opened; a file of its own is opened where it is.
        hashed: whether the hash is wanted.

    Raises:
        OSError, VideoError, StorageError: as `_pieces`.
    """
    digest = hashlib.sha256()
    own = not is_address(path) and not offset
    if own and not hashed:
        yield Bytes(path, os.stat(path).st_size, None)
        return
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_memory_file()) if keep and not own else None
        size = 0
        for piece in _pieces(path, offset, length):
            size += len(piece)
            digest.update(piece)
            if file is not None:
                file.write(piece)
        place = path if file is None else _path_of(file)
        yield Bytes(place, size, digest.hexdigest() if hashed else None)


@contextlib.contextmanager
def _in_memory(
    path: str, offset: int, length: int | None, max_bytes: int | None
) -> Iterator[str]:
    """The path of a file in memory that holds these bytes."""
    with _memory_file() as file:
        copied = 0
        try:
            for piece in _pieces(path, offset, length):
                copied += len(piece)
                if max_bytes is not None and copied > max_bytes:
                    raise NoBytesError(f"it has more than {max_bytes / 1e6:.0f} MB", path)
                file.write(piece)
        except OSError as error:
            refuse_outage(error, path)
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise NoBytesError(f"it cannot be read: {text[0][:300]}", path) from None
        yield _path_of(file)


def _memory_file() -> Any:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("clip"), "w+b")
    return tempfile.NamedTemporaryFile()  # Only Linux has files in memory.


def _path_of(file: Any) -> str:
    file.flush()
    # By the number of this process: a decoder of another one opens it too.
    own = f"/proc/{os.getpid()}/fd/{file.fileno()}"
    return own if hasattr(os, "memfd_create") else str(file.name)


def _pieces(path: str, offset: int, length: int | None) -> Iterator[bytes]:
    """The bytes of a video, a megabyte at a time.

    Raises:
        FileNotFoundError: there is no such file; other OSErrors from a local one.
        VideoError: its file ends before it does, or a web server does not give it: each of many
            servers may be gone for good.
        StorageError: storage cannot be read; what it holds is not known.
    """
    left = float("inf") if length is None else length
    try:
        with _open(path) as source:
            source.seek(offset)
            while left > 0 and (piece := source.read(int(min(PIECE_BYTES, left)))):
                left -= len(piece)
                yield piece
    except StorageError as error:
        if not path.lower().startswith(_WEB):
            raise
        raise NoBytesError(f"it cannot be read: {error}", path) from None
    if length is not None and left > 0:
        raise NoBytesError(f"its file ends {left:.0f} bytes before it does", path)


def _open(path: str) -> Any:
    if not is_address(path):
        return open(path, "rb")
    scheme, _, rest = path.partition("://")
    host, _, inner = rest.partition("/")
    return _storage(f"{scheme}://{host}").open(inner)


@functools.lru_cache(maxsize=64)
def _storage(host: str) -> Storage:
    """Opened once for a scheme and a host: an object store is queried for where its bucket is."""
    from selfshot.data.storage import Storage

    return Storage(host, "uri")
