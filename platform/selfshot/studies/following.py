"""What workers write into their logs, as lines in this terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from selfshot.studies.progress import Progress

EVERY_S = 1.0


@contextmanager
def followed(
    progress: Progress, folder: Path, names: Mapping[str, str], *, notes: bool
) -> Iterator[None]:
    """Print what is new in the logs of a folder while a block runs.

    Args:
        progress: prints.
        folder: of the logs, `<name>.log` each.
        names: log's name → what a person calls it.
        notes: print every line, and not only those of stages.
    """
    offsets = {name: _size(folder / f"{name}.log") for name in names}
    ended = threading.Event()

    def read() -> None:
        for name, label in names.items():
            path = folder / f"{name}.log"
            if _size(path) <= offsets[name]:
                continue
            with path.open("rb") as file:
                file.seek(offsets[name])
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            offsets[name] += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                text = line[8:].strip()
                if notes or text.startswith("["):
                    progress.note(f"{label} | {text}")

    def follow() -> None:
        while not ended.wait(EVERY_S):
            read()

    thread = threading.Thread(target=follow, name="logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        read()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
