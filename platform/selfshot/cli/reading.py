"""How far the reading of a large file is: a bar on a terminal, lines where there is none."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# What takes less is not worth a word.
QUIET_ON_TERMINAL_S = 0.5
QUIET_ELSEWHERE_S = 2.0
LINE_EVERY_S = 10.0
# A file of this size takes about a second to parse, and parsing says nothing before its end.
ANNOUNCED_BYTES = 2**26

_STEPS = {"bytes": "reading", "parsing": "parsing"}


class ReadingProgress:
    """Shows the progress of the readers, on the error stream.

    On a terminal each step has a bar, which goes away at the end. Elsewhere, as in a log, a line
    is written when a step begins and then every ten seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_terminal = sys.stderr.isatty()
        self.began = time.monotonic()
        self.last_line = -LINE_EVERY_S
        self.size = 0
        self.step = ""
        self.bars: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> ReadingProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def watch(self, step: str, done: int, total: int) -> None:
        """Receives how much of a step is done; a total of 0 is an unknown one."""
        if step == "bytes":
            self.size = total
        now = time.monotonic()
        quiet = QUIET_ON_TERMINAL_S if self.on_terminal else QUIET_ELSEWHERE_S
        announced = step == "parsing" and self.size >= ANNOUNCED_BYTES
        if now - self.began < quiet and not announced:
            return
        begins, self.step = step != self.step, step
        if self.on_terminal:
            self._move_bar(begins, done, total)
        elif begins or now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            print(self._words(done, total), file=sys.stderr, flush=True)

    def _words(self, done: int, total: int) -> str:
        words = f"{self.path.name}: {_STEPS.get(self.step, self.step)}"
        if not total:
            return words
        if self.step == "bytes":
            return f"{words}, {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        return f"{words}, {done:,} of {total:,}"

    def _move_bar(self, begins: bool, done: int, total: int) -> None:
        if self.bars is None:
            self.bars = bars()
            self.bars.start()
        if begins or self.task is None:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.task = self.bars.add_task("", total=total or None)
        self.bars.update(self.task, completed=done, description=self._words(done, total))
        if begins:
            # The parser keeps the drawing thread from its turn.
            self.bars.refresh()


def bars() -> Progress:
    """Bars on standard error, where that is a terminal; they are gone when all is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
