"""faulty:///folder: a folder of this machine behind fsspec, in which chosen calls fail.

All processes that see $FAULTY_PLAN, a folder, count their calls together. calls.log in it holds a
line for each; plan.json says which of them fail, and how.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

PLAN = "FAULTY_PLAN"
KINDS = {
    "503": lambda: OSError("503 Service Unavailable: SlowDown, reduce your request rate"),
    "403": lambda: PermissionError("403 Forbidden: AccessDenied"),
    "reset": lambda: ConnectionResetError("Connection reset by peer"),
    "timeout": lambda: TimeoutError("the read operation timed out"),
    # What was asked for is done all the same.
    "lost": lambda: ConnectionResetError("Remote end closed connection without response"),
}
PASSING = ("503", "reset", "timeout", "lost")
"""Those that another attempt mends."""


class Plan:
    """Which calls fail.

    calls.log has a line `number process operation fault path` for each call since `begin`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.log = self.folder / "calls.log"

    def begin(
        self,
        first: int | None = None,
        every: int | None = None,
        kinds: Sequence[str] = ("503",),
        within: str = "",
    ) -> None:
        """Count from 1 again.

        Args:
            first: number of the first call that fails; None: none does.
            every: so many calls after a failing one, the next fails; None: no other does.
            kinds: of the errors, taken in turn.
            within: calls are numbered from the first whose path holds this.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = {"first": first, "every": every, "kinds": kinds, "within": within}
        with self.log.open("a+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            (self.folder / "plan.json").write_text(json.dumps(plan))
            log.truncate(0)

    def calls(self) -> list[list[str]]:
        """What was called since `begin`, a list of the words of a line each."""
        return [line.split(" ", 4) for line in self.log.read_text().splitlines()]

    def count(self, operation: str, path: str) -> str | None:
        """Number a call; returns the kind of error that it raises."""
        with self.log.open("a+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            plan = json.loads((self.folder / "plan.json").read_text())
            size = log.seek(0, io.SEEK_END)
            log.seek(max(0, size - 4096))
            lines = log.read().splitlines()
            number = int(lines[-1].split()[0]) if lines else 0
            if number or plan["within"] in path:
                number += 1
            kind = _fault(plan, number)
            log.write(f"{number} {os.getpid()} {operation} {kind or '-'} {path}\n".encode())
        return kind

    def failed(self) -> list[list[str]]:
        """Those of `calls` that failed."""
        return [call for call in self.calls() if call[3] != "-"]


def _fault(plan: dict[str, Any], number: int) -> str | None:
    first, every = plan["first"], plan["every"]
    if first is None or number < first:
        return None
    turn, rest = divmod(number - first, every) if every else (0, number - first)
    return None if rest else str(plan["kinds"][turn % len(plan["kinds"])])


class FaultyFileSystem(AbstractFileSystem):
    """A folder of this machine with the semantics of fsspec's remote file systems."""

    protocol = "faulty"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan = Plan(os.environ[PLAN])
        # The waits between attempts are for storage that needs time.
        for name in ("selfshot.data.storage", "selfshot.data.remote"):
            if hasattr(sys.modules.get(name), "FIRST_WAIT_S"):
                sys.modules[name].FIRST_WAIT_S = 0.001  # type: ignore[attr-defined]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("faulty://").strip("/")

    def _call(self, operation: str, path: str, work: Any) -> Any:
        kind = self.plan.count(operation, path)
        if kind is not None and kind != "lost":
            raise KINDS[kind]()
        result = work()
        if kind is not None:
            raise KINDS[kind]()
        return result

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        return self._call("info", path, lambda: _info(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)

        def work() -> list[dict[str, Any]]:
            if os.path.isfile(path):
                return [_info(path)]
            found = []
            for name in sorted(os.listdir(path)):
                try:
                    found.append(_info(f"{path.rstrip('/')}/{name}"))
                except FileNotFoundError:
                    continue  # Another process has removed it meanwhile.
            return found

        entries = self._call("list", path, work)
        return entries if detail else [entry["name"] for entry in entries]

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        make = os.makedirs if create_parents else os.mkdir
        self._call("mkdir", path, lambda: make(path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        path = self._strip_protocol(path)
        self._call("mkdir", path, lambda: os.makedirs(path, exist_ok=exist_ok))

    def _rm(self, path: str) -> None:
        path = self._strip_protocol(path)
        remove = os.rmdir if os.path.isdir(path) else os.remove
        self._call("delete", path, lambda: remove(path))

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        self._call("move", path2, lambda: os.replace(path1, path2))

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        content = Path(self._strip_protocol(path1)).read_bytes()
        path2 = self._strip_protocol(path2)
        self._call("copy", path2, lambda: Path(path2).write_bytes(content))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        return self._call(f"open-{mode}", path, lambda: _File(self, path, mode))


class _File(io.FileIO):
    """Each read is a call; what is written goes out in one when the file is closed."""

    def __init__(self, filesystem: FaultyFileSystem, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.filesystem, self.path = filesystem, path
        self.content = bytearray()

    def read(self, size: int | None = -1, /) -> bytes:
        size = -1 if size is None else size
        return self.filesystem._call("read", self.path, lambda: io.FileIO.read(self, size))

    def write(self, content: Any, /) -> int:
        view = memoryview(content).cast("B")
        self.content += view
        return len(view)

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self.writable():
                self.filesystem._call("write", self.path, lambda: self._send(self.content))
        except OSError:
            self._send(self.content[: len(self.content) // 2])  # A broken connection leaves a part.
            raise
        finally:
            super().close()

    def _send(self, content: bytearray) -> None:
        io.FileIO.seek(self, 0)
        io.FileIO.truncate(self, 0)
        io.FileIO.write(self, content)


def _info(path: str) -> dict[str, Any]:
    status = os.stat(path)
    kind = "directory" if os.path.isdir(path) else "file"
    return {"name": path, "size": status.st_size, "type": kind, "mtime": status.st_mtime}
