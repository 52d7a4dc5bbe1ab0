"""Files behind one address, for machines that share no disk: tried again, whole or not there.

Object stores show a file when its upload has ended. Elsewhere a file is written beside its place
and moved.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs as pafs

from selfshot.config.paths import is_address
from selfshot.data.storage import open_filesystem
from selfshot.errors import StorageError, UserError

ATTEMPTS = 4
FIRST_WAIT_S = 0.5
COPY_BYTES = 1 << 20
_APPEAR_WHOLE = ("s3", "gcs", "abfs")
# What another attempt cannot mend, in the words of the stores' answers.
_FINAL = (
    "ACCESS_DENIED", "AccessDenied", "NO_SUCH_BUCKET", "NoSuchBucket", "INVALID_ACCESS_KEY_ID",
    "InvalidAccessKeyId", "SIGNATURE_DOES_NOT_MATCH", "HTTP status 403", "HTTP status 404",
    "credentials",
)  # fmt: skip

Result = TypeVar("Result")


class Remote:
    """The files below an address or a folder. Names are relative paths with slashes."""

    def __init__(self, address: str, setting: str = "storage") -> None:
        """Nothing is looked for yet.

        Args:
            address: such as s3://bucket/folder, or a folder that all machines see.
            setting: what a message names as the place of a mistake.

        Raises:
            UserError: an address that nothing installed can open.
        """
        self.address, self.setting = address.rstrip("/"), setting
        if is_address(address):
            self.filesystem, self.root = open_filesystem(address, setting)
        else:
            self.filesystem, self.root = pafs.LocalFileSystem(), str(Path(address).absolute())
        self._appear_whole = self.filesystem.type_name in _APPEAR_WHOLE

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.address, self.setting)

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
            # Once: the store's own client asks several times, for some ten seconds.
            info = self._tried("be looked at", lambda: self.filesystem.get_file_info(bucket), 1)
            if info.type == pafs.FileType.NotFound:
                raise StorageError(
                    f"{self.setting}: {self.address}: there is no bucket {bucket}, or these "
                    "credentials may not see it; make it, or mend the address"
                )
        self.sizes("")

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

    def sizes(self, folder: str, *, deep: bool = False) -> dict[str, int]:
        """Size of every file of a folder by its name in it; of all folders below if `deep`."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True, recursive=deep)
        infos = self._tried("be listed", lambda: self.filesystem.get_file_info(selector))
        start = len(self.path(folder).strip("/")) + 1
        found = {info.path.strip("/")[start:]: info.size for info in infos if info.is_file}
        return {name: int(size) for name, size in found.items()}

    def size(self, name: str) -> int | None:
        """Of a file, or None where there is none."""
        info = self._tried("be looked at", lambda: self.filesystem.get_file_info(self.path(name)))
        return int(info.size) if info.is_file else None

    def read(self, name: str) -> bytes:
        """The whole of a file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be read.
        """

        def work() -> bytes:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())

        return self._tried(f"be read ({name})", work)

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        """Bytes in the middle of a file."""

        def work() -> bytes:
            with self.filesystem.open_input_file(self.path(name)) as file:
                file.seek(offset)
                return bytes(file.read(length))

        return self._tried(f"be read ({name})", work)

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""

        def work() -> None:
            with self._written(name) as stream:
                stream.write(content)

        self._tried(f"be written ({name})", work)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file."""
        self.join([path], name)

    def join(self, paths: list[Path], name: str) -> None:
        """Write local files as one, one after another."""

        def work() -> None:
            with self._written(name) as stream:
                for path in paths:
                    with path.open("rb") as file:
                        while piece := file.read(COPY_BYTES):
                            stream.write(piece)

        self._tried(f"be written ({name})", work)

    def download(self, name: str, path: Path) -> None:
        """Copy to a local file, which appears when it is whole.

        Raises:
            FileNotFoundError: there is none.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")

        def work() -> None:
            source = self.filesystem.open_input_stream(self.path(name))
            with source as stream, partial.open("wb") as file:
                while piece := stream.read(COPY_BYTES):
                    file.write(piece)
            partial.replace(path)

        try:
            self._tried(f"be read ({name})", work)
        finally:
            partial.unlink(missing_ok=True)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, a megabyte at a time; not tried again."""
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            while piece := stream.read(COPY_BYTES):
                yield piece

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""

        def work() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path(name))

        self._tried(f"be written ({name})", work)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and what is below it, if it is there."""

        def work() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_dir(self.path(folder))

        if self.sizes(folder, deep=True):
            self._tried(f"be written ({folder})", work)

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[Any]:
        place = self.path(name)
        if self._appear_whole:
            with self.filesystem.open_output_stream(place) as stream:
                yield stream
            return
        folder, _, last = place.rpartition("/")
        self.filesystem.create_dir(folder, recursive=True)
        partial = f"{folder}/.{last}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with self.filesystem.open_output_stream(partial) as stream:
            yield stream
        self.filesystem.move(partial, place)

    def _tried(self, what: str, work: Callable[[], Result], attempts: int = 0) -> Result:
        """Do it, again after a fault that may pass."""
        attempts = attempts or ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                return work()
            except (FileNotFoundError, UserError, StorageError):
                raise
            except Exception as error:  # A filesystem may raise what it likes.
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
                lost = isinstance(error, PermissionError) or any(word in reason for word in _FINAL)
                if lost or attempt == attempts:
                    raise self._complaint(what, reason, lost) from error
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        raise AssertionError("unreachable")

    def _complaint(self, what: str, reason: str, lost: bool) -> StorageError:
        mend = (
            "mend the address, or the credentials, which come from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_PROFILE, a role of the machine …)"
            if lost
            else "what is done is kept in the output folder; run the same command again when it "
            "answers"
        )
        return StorageError(f"{self.setting}: {self.address} cannot {what}: {reason}; {mend}")
