"""The files of one folder, on this machine or behind an address such as s3://bucket/folder.

A request that fails is tried again, with growing waits, unless another attempt cannot mend it.
What is written appears under its name when it is whole: object stores show a file when its upload
has ended; elsewhere it is written beside its place and moved.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from selfshot.config.addresses import is_address
from selfshot.errors import StorageError, UserError, hidden_outage
from selfshot.files import PARTIAL, atomic_file, partial_name

ATTEMPTS = 4
FIRST_WAIT_S = 0.5
COPY_BYTES = 1 << 20
_APPEAR_WHOLE = ("s3", "gcs", "abfs")
# What another attempt cannot mend, in the words of the stores' answers.
_FINAL = (
    "ACCESS_DENIED", "AccessDenied", "NO_SUCH_BUCKET", "NoSuchBucket", "INVALID_ACCESS_KEY_ID",
    "InvalidAccessKeyId", "SIGNATURE_DOES_NOT_MATCH", "SignatureDoesNotMatch", "EXPIRED_TOKEN",
    "ExpiredToken", "HTTP status 401", "HTTP status 403", "HTTP status 404", "credentials",
)  # fmt: skip

Result = TypeVar("Result")


def open_filesystem(address: str, setting: str) -> tuple[Any, str]:
    """The filesystem of an address, and the root's path in it.

    pyarrow's own are taken where it has one (file, s3, gs, hdfs), and fsspec's otherwise.

    Args:
        address: such as s3://bucket/folder.
        setting: what a message names as the place of the mistake.

    Raises:
        UserError: nothing that is installed knows such addresses.
        StorageError: it does not answer.
    """
    try:
        filesystem, root = pafs.FileSystem.from_uri(address)
    except (ValueError, OSError) as first:  # pyarrow knows no such address, or not in this form.
        try:
            other, root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError, OSError) as error:
            away = next((one for one in (first, error) if isinstance(one, OSError)), None)
            if away is not None:  # Some connect, or look for a bucket's region, as they open.
                raise StorageError(
                    f"{setting}: {address} cannot be reached: {away}; run the same command again "
                    "when it answers",
                    setting=setting,
                ) from None
            raise UserError(
                f"{setting}: {address} cannot be opened ({error}); give a folder, or an "
                "address that pyarrow or fsspec can open",
                setting=setting,
            ) from None
        filesystem = pafs.PyFileSystem(FsspecHandler(other))
    return filesystem, root.rstrip("/")


class FsspecHandler(pafs.FSSpecHandler):
    """An fsspec filesystem for pyarrow, in which only a `FileNotFoundError` means "not there".

    pyarrow's own calls fsspec's `exists`, `isfile`, `isdir` and `find`, which say no, or leave out
    folders, where storage fails. `info` and `ls` raise; that of the web says of every failure that
    there is no such file.
    """

    def get_file_info(self, paths: list[str]) -> list[Any]:
        """What fsspec says of each path."""
        infos = [(path, self._info(path)) for path in paths]
        return [
            pafs.FileInfo(path, pafs.FileType.NotFound)
            if info is None
            else self._create_file_info(path, info)
            for path, info in infos
        ]

    def _info(self, path: str) -> dict[str, Any] | None:
        try:
            return dict(self.fs.info(path))
        except FileNotFoundError as error:
            if (outage := hidden_outage(error)) is not None:
                raise outage from error
            return None

    def _kind(self, path: str) -> str | None:
        info = self._info(path)
        return None if info is None else str(info["type"])

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        """The files and folders of a folder."""
        base = selector.base_dir
        kind = self._kind(base)
        if kind is None and selector.allow_not_found:
            return []
        if kind is None:
            raise FileNotFoundError(base)
        if kind != "directory" and not self.fs.isdir(base):  # Of http, whatever it is is a file.
            raise NotADirectoryError(base)
        infos = self._below(base, selector.recursive)
        return [self._create_file_info(info["name"], info) for info in infos]

    def _below(self, folder: str, deep: bool) -> Iterator[dict[str, Any]]:
        for info in self.fs.ls(folder, detail=True):
            if info["name"].strip("/") == folder.strip("/"):
                continue
            yield info
            if deep and info["type"] == "directory":
                with contextlib.suppress(FileNotFoundError):  # Removed meanwhile.
                    yield from self._below(info["name"], deep)

    def delete_dir(self, path: str) -> None:
        """Remove a folder; an `OSError` if listing it failed on the way, and some of it stays."""
        with contextlib.suppress(FileNotFoundError):  # It says so too where it cannot look.
            self.fs.rm(path, recursive=True)
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=True)
        left = [info.path for info in self.get_file_info_selector(selector) if info.is_file]
        if left:
            raise OSError(f"{left[0]} is still there")

    def delete_file(self, path: str) -> None:
        """Remove a file."""
        if self._kind(path) is None:
            raise FileNotFoundError(path)
        self.fs.rm_file(path)

    def open_input_file(self, path: str) -> Any:
        """A file for reading."""
        if self._kind(path) in (None, "directory"):
            raise FileNotFoundError(path)
        try:
            return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")
        except FileNotFoundError as error:  # It looks once more.
            raise hidden_outage(error) or error from None

    open_input_stream = open_input_file


class Storage:
    """The files below an address or a folder. Names are relative paths with slashes.

    Only a `FileNotFoundError` says that a file is not there. Whatever else fails is a
    `StorageError`, after `ATTEMPTS` attempts; at once on a local disk, and where the store refuses
    (no bucket, no right, wrong credentials).
    """

    def __init__(self, address: str | Path, setting: str = "storage") -> None:
        """Makes and requests nothing yet.

        Args:
            address: such as s3://bucket/folder, or a folder.
            setting: what a message names as the place of a mistake.

        Raises:
            UserError: an address that nothing installed can open.
            StorageError: it does not answer.
        """
        self.address, self.setting = str(address).rstrip("/") or "/", setting
        if is_address(self.address):
            self.filesystem, self.root = open_filesystem(self.address, setting)
        else:
            self.filesystem = pafs.LocalFileSystem()
            self.root = str(Path(self.address).absolute())
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        self._appear_whole = self.filesystem.type_name in _APPEAR_WHOLE

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.address, self.setting)

    def path(self, name: str) -> str:
        """Where a file is, in the filesystem."""
        return f"{self.root}/{name}" if name else self.root

    def address_of(self, name: str) -> str:
        """The address of a file or folder; one's query stays behind it."""
        base, mark, query = self.address.partition("?")
        return f"{base.rstrip('/')}/{name}{mark}{query}"

    def look(self) -> None:
        """See whether it can be read.

        Raises:
            StorageError: it cannot.
        """
        bucket = self.root.split("/")[0]
        if self._appear_whole:
            # Once: the store's own client tries several times, for some ten seconds.
            info = self.tried("read", lambda: self.filesystem.get_file_info(bucket), attempts=1)
            if info.type == pafs.FileType.NotFound:
                raise StorageError(
                    f"{self.setting}: {self.address}: there is no bucket {bucket}, or these "
                    "credentials may not see it; make it, or mend the address"
                )
        self.sizes()

    def check(self) -> None:
        """See whether it can be read and written; a small file is left for that moment.

        Raises:
            StorageError: it cannot.
        """
        self.look()
        probe, content = f".probe-{uuid.uuid4().hex}", b"selfshot"
        self.write(probe, content)
        if self.read(probe) != content:
            raise StorageError(f"{self.setting}: {self.address} does not keep what is written")
        self.remove(probe)

    def files(self, folder: str = "", *, deep: bool = False) -> dict[str, Any]:
        """What the filesystem says of every file of a folder (`pyarrow.fs.FileInfo`), by name.

        Args:
            folder: relative path; empty where there is no such folder.
            deep: those of all folders below as well, by their path in `folder`.

        Raises:
            StorageError: it cannot be listed.
        """
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True, recursive=deep)
        infos = self.tried("listed", lambda: self.filesystem.get_file_info(selector), folder)
        start = len(self.path(folder).strip("/")) + 1
        return {info.path.strip("/")[start:]: info for info in infos if info.is_file}

    def sizes(self, folder: str = "", *, deep: bool = False) -> dict[str, int]:
        """Size in bytes of every file of a folder by its name in it; of all below if `deep`."""
        return {name: int(info.size) for name, info in self.files(folder, deep=deep).items()}

    def size(self, name: str) -> int | None:
        """Of a file, or None where there is none."""
        info = self.tried("read", lambda: self.filesystem.get_file_info(self.path(name)), name)
        return int(info.size) if info.is_file else None

    def open(self, name: str) -> StoredFile:
        """A file for reading at any place, with retries.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be read; also from each read of the file.
        """
        return StoredFile(self, name)

    def read(self, name: str) -> bytes:
        """The whole of a file; raises as `open`."""
        with self.open(name) as file:
            return file.read()

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        """Bytes in the middle of a file; raises as `open`."""
        with self.open(name) as file:
            file.seek(offset)
            return file.read(length)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, a megabyte at a time; raises as `open`."""
        with self.open(name) as file:
            while piece := file.read(COPY_BYTES):
                yield piece

    def download(self, name: str, path: Path) -> None:
        """Copy to a local file, which appears when it is whole; raises as `open`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial, self.open(name) as source, partial.open("wb") as file:
            while piece := source.read(COPY_BYTES):
                file.write(piece)

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file.

        Raises:
            StorageError: it cannot be written.
        """

        def work() -> None:
            with self._written(name) as stream:
                stream.write(content)

        self.tried("written", work, name)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file; raises as `write`."""
        self.join([path], name)

    def join(self, paths: Sequence[Path], name: str) -> None:
        """Write local files as one, one after another; raises as `write`."""

        def work() -> None:
            with self._written(name) as stream:
                for path in paths:
                    with path.open("rb") as file:
                        while piece := file.read(COPY_BYTES):
                            stream.write(piece)

        self.tried("written", work, name)

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""

        def work() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path(name))

        self.tried("written", work, name)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and what is below it, if it is there."""

        def work() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_dir(self.path(folder))

        if self.sizes(folder, deep=True):
            self.tried("written", work, folder)

    def remove_partial(self) -> None:
        """Remove what killed runs left half written in the folder itself."""
        for name in self.sizes():
            if PARTIAL.fullmatch(name):
                self.remove(name)

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[Any]:
        place = self.path(name)
        partial = place
        if not self._appear_whole:
            folder, _, last = place.rpartition("/")
            self.filesystem.create_dir(folder, recursive=True)
            partial = f"{folder}/{partial_name(last)}"
        stream = self.filesystem.open_output_stream(partial)
        try:
            yield stream
        except BaseException:
            # pyarrow cannot abandon an upload: closing it ends it with what was written so far.
            # If it cannot even be closed, what was there before still is.
            with contextlib.suppress(Exception):
                stream.close()
                self.filesystem.delete_file(partial)
            raise
        stream.close()
        if partial != place:
            self.filesystem.move(partial, place)

    def tried(
        self, what: str, work: Callable[[], Result], name: str = "", attempts: int = 0
    ) -> Result:
        """Do it, again after a fault that may pass.

        Args:
            what: "read", "listed" or "written", for the message.
            work: calls the filesystem, and may be called again from its beginning.
            name: of the file.
            attempts: how often; 0: as usual.

        Raises:
            FileNotFoundError: the file is not there.
            StorageError: it cannot be done.
        """
        attempts = 1 if self.is_local else attempts or ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                return work()
            except StorageError:
                raise
            except Exception as error:  # A filesystem may raise what it likes.
                if isinstance(error, FileNotFoundError) and what != "written":
                    raise  # A place that is not there (a bucket, a mount) cannot be written.
                text = str(error)
                final = isinstance(error, PermissionError) or any(one in text for one in _FINAL)
                if final or attempt == attempts:
                    raise self._failure(what, name, error, final) from error
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        raise AssertionError("unreachable")

    def _failure(self, what: str, name: str, error: Exception, final: bool) -> StorageError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if self.is_local:
            reason = getattr(error, "strerror", None) or reason
            mend = "make room or mend its permissions, and run the same command again"
        elif final:
            mend = (
                "mend the address, or the credentials, which come from the environment "
                "(AWS_ACCESS_KEY_ID, AWS_PROFILE, a role of the machine …)"
            )
        else:
            mend = "what is done is kept; run the same command again when it answers"
        which = f" ({name})" if name else ""
        return StorageError(
            f"{self.setting}: {self.address} cannot be {what}{which}: {reason}; {mend}"
        )


class StoredFile(io.RawIOBase):
    """A stored file for reading; a read that fails is tried again from where it began.

    pyarrow's readers raise an `OSError` for damaged Parquet. A filesystem's fault comes out of
    them as the `StorageError` that it is.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        """Args: of `Storage.open`."""
        super().__init__()
        self._storage, self._file_name = storage, name
        self._source: Any = None
        self._position = 0
        self.size = int(self._tried(lambda source: source.size()))

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read begins, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set where the next read begins; returns it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, or all that are left; fewer at the end of the file alone."""
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""

        def work(source: Any) -> bytes:
            source.seek(self._position)
            content = bytes(source.read(wanted))
            if len(content) < wanted:
                raise OSError(f"{len(content)} of {wanted} bytes came")
            return content

        content = self._tried(work)
        self._position += wanted
        return content

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; returns how many bytes were left to fill it with."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close it."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _tried(self, work: Callable[[Any], Result]) -> Result:
        def again() -> Result:
            try:
                if self._source is None:
                    path = self._storage.path(self._file_name)
                    self._source = self._storage.filesystem.open_input_file(path)
                return work(self._source)
            except Exception:
                self._source = None  # Opened anew: what failed once may be of no use.
                raise

        return self._storage.tried("read", again, self._file_name)
