"""Folders of files, on this machine or behind an address such as s3://bucket/folder.

What is written appears under its name when it is whole: a file is written beside it and moved.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs

from selfshot.config.paths import is_address
from selfshot.errors import UserError


def open_filesystem(address: str, setting: str) -> tuple[Any, str]:
    """The filesystem of an address, and the root's path in it.

    pyarrow's own are taken where it has one (file, s3, gs, hdfs), and fsspec's otherwise.

    Args:
        address: such as s3://bucket/folder.
        setting: what a message names as the place of the mistake.

    Raises:
        UserError: nothing that is installed knows such addresses.
    """
    try:
        filesystem, root = pafs.FileSystem.from_uri(address)
    except (ValueError, OSError):  # pyarrow knows no such address, or not in this form.
        try:
            other, root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError, OSError) as error:
            raise UserError(
                f"{setting}: {address} cannot be opened ({error}); give a folder, or an "
                "address that pyarrow or fsspec can open"
            ) from None
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(other))
    return filesystem, root.rstrip("/")


class Storage:
    """The files of one folder. Names are those of files directly in it."""

    def __init__(self, address: str | Path, setting: str) -> None:
        """Nothing is made or looked for yet.

        Args:
            address: path or address of the folder.
            setting: what a message names as the place of a mistake.

        Raises:
            UserError: an address that nothing installed can open.
        """
        self.address, self.setting = str(address), setting
        if is_address(self.address):
            self.filesystem, self.root = open_filesystem(self.address, setting)
            self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        else:
            self.filesystem, self.is_local = pafs.LocalFileSystem(), True
            self.root = str(Path(self.address).absolute())

    def path(self, name: str) -> str:
        """Where a file is, in the filesystem."""
        return f"{self.root}/{name}"

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file of the folder, by name; empty where there is no folder.

        Raises:
            UserError: it cannot be listed.
        """
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        try:
            infos = self.filesystem.get_file_info(selector)
        except OSError as error:
            raise UserError(f"{self.setting}: {self.address} cannot be listed ({error})") from None
        return {info.base_name: info.size for info in infos if info.is_file}

    def open(self, name: str) -> Any:
        """A file for reading at any place."""
        return self.filesystem.open_input_file(self.path(name))

    def read(self, name: str) -> bytes:
        """The whole of a file."""
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file so that a reader finds all of it or none, and make the folder if need be.

        Raises:
            UserError: it cannot be written.
        """
        # Two writers must not share a name: a killed run may still breathe beside the next one.
        partial = self.path(f".{name}.{os.getpid()}-{threading.get_ident()}")
        try:
            if self.is_local:
                os.makedirs(self.root, exist_ok=True)
            else:
                self.filesystem.create_dir(self.root, recursive=True)
            with self.filesystem.open_output_stream(partial) as stream:
                stream.write(content)
            if self.is_local:
                os.replace(partial, self.path(name))
            else:
                self.filesystem.move(partial, self.path(name))
        except OSError as error:
            raise UserError(
                f"{self.setting}: {self.address} cannot be written ({error.strerror or error})"
            ) from None

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        try:
            self.filesystem.delete_file(self.path(name))
        except FileNotFoundError:
            return

    def remove_partial(self) -> None:
        """Remove what killed runs left half written."""
        for name in self.sizes():
            if re.fullmatch(r"\..+\.\d+-\d+", name):
                self.remove(name)
