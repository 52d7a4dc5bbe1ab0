"""Lines of progress for a person, in a terminal or in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfshot.config.printable import printable
from selfshot.repeating import repeated

EVERY_S = 1.0
"""Between two looks at the logs of workers."""
COLLAPSED = 0.1
"""A spread of embeddings below it is a collapse: retrieval would choose by noise."""


class Progress:
    """Prints whole lines, so that a log of a remote job reads as well as a terminal."""

    def __init__(self, stages: int, log: Path | None = None) -> None:
        """Args: how many stages there are, and a file to write to instead of the terminal."""
        self.stages, self.log = stages, log
        # While Tune runs, what it prints itself is held back.
        self.out = sys.stdout
        self.began = time.monotonic()
        self._last = 0.0
        self._warned: set[str] = set()

    def _line(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        line = f"{minutes:3d}:{seconds:02d}  {printable(text)}"
        if self.log is None:
            print(line, flush=True, file=self.out)
            return
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def stage(self, number: int, name: str, status: str) -> None:
        """A stage begins or is reused."""
        self._line(f"[{number}/{self.stages}] {name}: {status}")

    def note(self, text: str) -> None:
        """Anything else worth a line."""
        self._line(f"       {text}")

    def training(self, point: dict[str, Any]) -> None:
        """A logged step of a training."""
        text = f"step {point['step']}/{point['steps']}"
        if "loss" in point:
            text += (
                f"  loss {point['loss']:.4f}  {point['steps_per_s']:.2f} steps/s  "
                f"{point['eta_s']:.0f} s left"
            )
        probed = "probe_precision_5" in point
        if probed:
            text += (
                f"  precision@5 of unseen classes {100 * point['probe_precision_5']:.1f}% "
                f"(chance {100 * point['probe_chance']:.1f}%)"
            )
        self._seldom(text, last=point["step"] == point["steps"] or probed)
        if point.get("embedding_std", 1.0) < COLLAPSED and point["stage"] not in self._warned:
            self._warned.add(point["stage"])
            self.note(
                f"warning: at step {point['step']} the embeddings' deviation is "
                f"{point['embedding_std']:.3f} (1 is that of random directions): they collapse to "
                "a point; lower the learning rate, or raise the momentum or the queue"
            )

    def embedding(self, state: dict[str, Any]) -> None:
        """How far the embedding job is."""
        text = (
            f"{state['done']}/{state['clips']} clips  {state['clips_per_s']:.0f} clips/s  "
            f"{state['quarantined']} quarantined"
        )
        self._seldom(text, last=state["done"] == state["clips"])

    def every(self, what: str) -> Callable[[int, int], None]:
        """A counter of `what`."""
        return lambda done, total: self._seldom(f"{done}/{total} {what}", last=done == total)

    def _seldom(self, text: str, *, last: bool) -> None:
        """At most a line every five seconds, and always the last one."""
        now = time.monotonic()
        if last or now - self._last >= 5:
            self._last = now
            self.note(text)


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

    try:
        with repeated(read, EVERY_S, "logs"):
            yield
    finally:
        read()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
