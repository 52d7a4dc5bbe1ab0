"""Storage for a library that takes a filesystem of pyarrow's and does not try again by itself."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from selfshot.data.storage import Storage

Result = TypeVar("Result")


def retried_filesystem(storage: Storage) -> Any:
    """The filesystem of a storage, each request tried again as `Storage` does.

    pyarrow's own clients (s3, gs, abfs, hdfs) try again by themselves and are returned as they are.
    """
    if not isinstance(storage.filesystem, pafs.PyFileSystem):
        return storage.filesystem
    return pafs.PyFileSystem(_RetriedHandler(storage))


class _RetriedHandler(pafs.FileSystemHandler):
    def __init__(self, storage: Storage) -> None:
        self.storage, self.files = storage, storage.filesystem

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RetriedHandler) and self.files == other.files

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        return str(self.files.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.files.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[Any]:
        return list(self._tried("read", paths[0], lambda: self.files.get_file_info(paths)))

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        work = self.files.get_file_info
        return list(self._tried("listed", selector.base_dir, lambda: work(selector)))

    def create_dir(self, path: str, recursive: bool) -> None:
        work = self.files.create_dir
        self._tried("written", path, lambda: work(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._tried("written", path, lambda: self.files.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        work = self.files.delete_dir_contents
        self._tried("written", path, lambda: work(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("the whole filesystem is not removed")

    def delete_file(self, path: str) -> None:
        self._tried("written", path, lambda: self.files.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self._tried("written", dest, lambda: self.files.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self._tried("written", dest, lambda: self.files.copy_file(src, dest))

    def open_input_stream(self, path: str) -> Any:
        return pa.PythonFile(self.storage.open(self._name(path)), mode="r")

    def open_input_file(self, path: str) -> Any:
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Upload(self.storage, self._name(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError("files are written whole")

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self.storage.root}/")

    def _tried(self, what: str, path: str, work: Callable[[], Result]) -> Result:
        return self.storage.tried(what, work, self._name(path))


class _Upload(io.RawIOBase):
    """What is written, kept here until it is closed and can be sent as often as it takes."""

    def __init__(self, storage: Storage, name: str) -> None:
        super().__init__()
        self.storage, self.file_name = storage, name
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115  closed below

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        return self.file.write(content)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.file.flush()
            self.storage.upload(Path(self.file.name), self.file_name)
        finally:
            self.file.close()
            super().close()
