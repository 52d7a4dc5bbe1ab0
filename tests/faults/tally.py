"""How many faults were injected, and how many of the runs that met one ended right."""

from __future__ import annotations

import collections
import dataclasses
import os

EVERY = os.environ.get("SELFSHOT_FAULTS") == "every"
"""Whether each call is the first that fails for good, in a run of its own; that takes hours."""


@dataclasses.dataclass
class Tally:
    """Sums over all tests of this process."""

    faults: int = 0
    runs: int = 0
    right: int = 0
    endings: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, faults: int, ending: str, problem: str | None) -> None:
        """A run in which so many calls failed."""
        self.faults += faults
        self.runs += 1
        self.right += problem is None
        self.endings[ending if problem is None else "wrong"] += 1

    def words(self) -> str:
        """A line."""
        how = ", ".join(f"{count} {ending}" for ending, count in sorted(self.endings.items()))
        return (
            f"{self.faults} faults injected into {self.runs} runs; {self.right} of {self.runs} "
            f"ended right ({how})"
        )


TALLY = Tally()
