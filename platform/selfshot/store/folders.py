"""Folders of work in progress, and their counterparts behind an address."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from selfshot.data.storage import Storage

FileState = tuple[int, int, int]
"""Inode, time in nanoseconds and size of a file: no clock has to agree with another one's."""


def is_safe(name: str) -> bool:
    """Whether a name of another machine stays inside the folder that it is put into."""
    parts = name.split("/")
    return bool(name) and "\\" not in name and "\0" not in name and not (
        {"", ".", ".."} & set(parts)
    )  # fmt: skip


class RemoteFolder:
    """A folder of work in progress, and its counterpart behind the address."""

    def __init__(self, storage: Storage, place: str, folder: Path) -> None:
        """Args: the files, the counterpart's name there, and the folder here."""
        self.storage, self.place, self.folder = storage, place, folder

    @property
    def address(self) -> str:
        """Of the counterpart."""
        return self.storage.address_of(self.place)

    def attempt(self, name: str, folder: Path | None = None) -> RemoteFolder:
        """A counterpart beside those of other machines that may make the same.

        Args:
            name: of the attempt.
            folder: another folder here than this one's.
        """
        return RemoteFolder(self.storage, f"{self.place}/attempt-{name}", folder or self.folder)

    def states(self, *names: str) -> dict[str, FileState]:
        """The files of it by their relative path, but hidden ones.

        Args:
            names: relative paths of files and folders, which may be absent; none: the whole.
        """
        found: dict[str, FileState] = {}
        for name in names or ("",):
            path = self.folder / name
            for one in [path] if path.is_file() else sorted(path.rglob("*")):
                relative = PurePosixPath(one.relative_to(self.folder))
                if one.is_file() and not any(part.startswith(".") for part in relative.parts):
                    state = one.stat()
                    found[str(relative)] = (state.st_ino, state.st_mtime_ns, state.st_size)
        return found

    def push(self, *names: str, unless: Mapping[str, FileState] | None = None) -> None:
        """Send files and folders of it; those that are not there are left out.

        Args:
            names: see `states`.
            unless: what `states` said earlier: a file that is still so is not sent.
        """
        for relative, state in self.states(*names).items():
            if (unless or {}).get(relative) != state:
                self.storage.upload(self.folder / relative, f"{self.place}/{relative}")

    def pull(self, name: str, *, missing: bool = False) -> bool:
        """Bring a file.

        Args:
            name: relative path.
            missing: only if it is not here.

        Returns:
            whether it is here.
        """
        if missing and (self.folder / name).exists():
            return True
        try:
            self.storage.download(f"{self.place}/{name}", self.folder / name)
        except FileNotFoundError:
            return (self.folder / name).exists()
        return True

    def pull_folder(self, name: str = "", *, missing: bool = False) -> int:
        """Bring all files of a folder but hidden ones; returns how many were brought.

        Args:
            name: relative path; empty: the whole.
            missing: only those that are not here.
        """
        there = self.storage.sizes(f"{self.place}/{name}".rstrip("/"), deep=True)
        brought = 0
        for relative in sorted(there):
            path = self.folder / name / relative
            hidden = any(part.startswith(".") for part in relative.split("/"))
            if is_safe(relative) and not hidden and not (missing and path.exists()):
                self.storage.download(f"{self.place}/{name}/{relative}".replace("//", "/"), path)
                brought += 1
        return brought

    def remove(self, name: str = "") -> None:
        """Remove a file or folder of the counterpart, or all of it."""
        whole = f"{self.place}/{name}".rstrip("/")
        if self.storage.size(whole) is not None:
            self.storage.remove(whole)
        else:
            self.storage.remove_folder(whole)
