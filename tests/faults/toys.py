"""Toy runs whose storage fails: where each begins, and what it must end as."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from faulty import KINDS, PASSING, Plan
from tally import EVERY, TALLY

from selfshot.cli.app import app, main
from selfshot.cli.experiments import run_until
from selfshot.data.storage import Storage
from selfshot.store.remote import SharedStore

TOY = Path(__file__).parents[1] / "integration" / "toy.yaml"
SMALL = [
    "benchmark.corpus_clips=16",
    "benchmark.train_queries=2",
    "benchmark.eval_queries=2",
    "backbone.optimiser.steps=2",
    "backbone.optimiser.warmup_steps=1",
    "encoder.optimiser.steps=2",
    "vis.optimiser.steps=2",
    "compute.checkpoint_every=1",
    "supports.shots=[1]",
]
HANGS_S = 600.0
# What is tried again takes fewer calls. For those that Ray makes, it restarts a worker.
APART = 20
PATIENT = "compute.max_failures=20"
VOLATILE = re.compile(r"history\.jsonl|summary\.json|metadata\.json|report\.(html|md)")
"""Files that hold times."""


@contextlib.contextmanager
def until_command() -> Iterator[None]:
    """A command for the toy up to a stage, with the messages and exit codes of the program."""

    def until(stage: str, settings: list[str]) -> None:
        run_until(TOY, settings, False, stage)

    app.command("until")(until)
    try:
        yield
    finally:
        app.registered_commands.pop()


@dataclasses.dataclass(frozen=True)
class Ending:
    """What a person sees of a run."""

    code: int
    said: str


class Toys:
    """Runs of the toy in this process, on one Ray, each in a folder of its own."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.number = 0

    def run(self, place: Path, stage: str | None, settings: Sequence[str] = ()) -> Ending:
        """`selfshot run` in a folder that holds output and storage, or up to a stage."""
        given = [
            f"output={place}/output",
            f"storage=faulty://{place}/storage",
            # One for all: to make a database takes longer than a stage.
            f"tracking.uri=sqlite:///{self.folder}/mlflow.db",
            *SMALL,
            *settings,
        ]
        if stage is None:
            words = ["run", str(TOY), *(word for one in given for word in ("--set", one))]
        else:
            words = ["until", stage, *given]
        said = io.StringIO()
        faulthandler.dump_traceback_later(HANGS_S, exit=True, file=sys.__stderr__)
        try:
            with (
                until_command(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
            ):  # fmt: skip
                code = main(words)
        finally:
            faulthandler.cancel_dump_traceback_later()
        return Ending(code, said.getvalue())

    @contextlib.contextmanager
    def copy(self, snapshot: Path) -> Iterator[Path]:
        """A folder that begins as a snapshot of another one."""
        self.number += 1
        place = self.folder / f"run-{self.number}"
        shutil.copytree(snapshot, place)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def manifests(place: Path) -> dict[str, dict[str, str]]:
    """stage/key of each finished stage → name and SHA-256 of its files that hold no time."""
    found = {}
    for path in sorted(place.glob("output/store/*/*/manifest.json")):
        if "." in path.parent.name:
            continue
        files: dict[str, Any] = json.loads(path.read_text())["files"]
        found["/".join(path.parts[-3:-1])] = {
            name: entry["sha256"]
            for name, entry in files.items()
            if not VOLATILE.fullmatch(name.rpartition("/")[2])
        }
    return found


def steps(place: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and loss of each logged point, which histories hold beside the time."""
    found = {}
    for path in sorted(place.glob("output/store/*/*/history.jsonl")):
        if "." not in path.parent.name:
            points = [json.loads(line) for line in path.read_text().splitlines()]
            found["/".join(path.parts[-3:-1])] = [(one["step"], one["loss"]) for one in points]
    return found


def pointers(place: Path) -> dict[str, bytes]:
    """stage/key.json of each stage in storage."""
    found = sorted(place.glob("storage/store/*/*.json"))
    return {"/".join(path.parts[-2:]): path.read_bytes() for path in found}


def results(place: Path) -> dict[str, str]:
    """The published results, here and in storage, as they are without times."""
    found = {}
    for path in sorted(place.glob("*/*/report/results.json")):
        text = path.read_text()
        said = json.loads(text)
        if isinstance(said, dict):  # A study's.
            for trial in said["trials"]:
                trial.pop("timings", None)
            text = json.dumps(said)
        found[path.relative_to(place).as_posix()] = text
    return found


class Case:
    """Runs from one snapshot, with faults, that must end as the undisturbed one does."""

    def __init__(
        self,
        toys: Toys,
        before: Path,
        truth: Path,
        stage: str | None,
        settings: Sequence[str] = (),
        within: str = "",
        prepare: Callable[[Path], None] = lambda place: None,
    ) -> None:
        """Args: where runs begin, what they end as, how they are run, and which calls fail.

        `prepare` changes a copy of the snapshot before it is used.
        """
        self.toys, self.before, self.truth = toys, before, truth
        self.stage, self.settings, self.within, self.prepare = stage, settings, within, prepare
        self.wrong: list[str] = []

    def calls(self) -> list[list[str]]:
        """Those of an undisturbed run that may fail."""
        with self.toys.copy(self.before) as place:
            self.prepare(place)
            self.toys.plan.begin(within=self.within)
            ending = self.toys.run(place, self.stage, self.settings)
            problem = self._problem_of_end(place, ending)
            assert problem is None, f"undisturbed: {problem}\n{ending.said}"
        return [call for call in self.toys.plan.calls() if call[0] != "0"]

    def disturb(
        self, first: int, every: int | None, kinds: Sequence[str], *more: str
    ) -> None:
        """A run with faults, and with more settings, and the same command without faults."""
        plan, settings = self.toys.plan, [*self.settings, *more]
        with self.toys.copy(self.before) as place:
            self.prepare(place)
            kept = pointers(place)
            plan.begin(first, every, kinds, self.within)
            ending = self.toys.run(place, self.stage, settings)
            failed = plan.failed()
            plan.begin()
            if not failed:
                return  # It made fewer calls than the undisturbed one, which waited longer.
            how = "finished" if ending.code == 0 else "told that storage fails"
            if ending.code == 0:
                problem = self._problem_of_end(place, ending)
            else:
                problem = self._problem_of_words(ending, every, kinds)
            if problem is None:
                again = self.toys.run(place, self.stage, settings)
                problem = self._problem_of_end(place, again)
                if problem is not None:
                    problem = f"the same command again: {problem}"
                    ending = again
            if problem is None and not kept.items() <= pointers(place).items():
                problem = "a stage that was in storage was written again"
            TALLY.add(len(failed), how, problem)
            if problem is not None:
                call = " ".join([*failed[0][:4], failed[0][4].removeprefix(str(place))])
                self.wrong.append(
                    f"from {first}, every {every}, {kinds}; the first was {call}: {problem}\n"
                    + "\n".join(f"    {line}" for line in ending.said.splitlines()[-8:])
                )
                print(self.wrong[-1], file=sys.__stderr__, flush=True)

    def _problem_of_end(self, place: Path, ending: Ending) -> str | None:
        if ending.code != 0:
            return f"exit {ending.code}"
        if "Traceback" in ending.said:
            return "a traceback"
        for what in (manifests, steps, results):
            ours, theirs = what(place), what(self.truth)
            if ours != theirs:
                differ = [
                    f"{name}: {ours.get(name)}, not {theirs.get(name)}"
                    for name in {**ours, **theirs}
                    if ours.get(name) != theirs.get(name)
                ]
                return f"other {what.__name__}: {differ}"[:1000]
        return self._problem_of_storage(place)

    def _problem_of_storage(self, place: Path) -> str | None:
        """Every finished stage is there, each file with the hash of its manifest."""
        shared = SharedStore(Storage(f"{place}/storage"))
        for stage, key in (name.split("/") for name in manifests(place)):
            if self.stage is not None and stage != self.stage:
                continue
            if not shared.fetch(stage, key, place / "fetched" / stage):
                return f"storage does not have {stage}"
            ours = place / "output" / "store" / stage / key / "manifest.json"
            if (place / "fetched" / stage / "manifest.json").read_bytes() != ours.read_bytes():
                return f"storage has another {stage}"
        shutil.rmtree(place / "fetched", ignore_errors=True)
        return None

    def _problem_of_words(
        self, ending: Ending, every: int | None, kinds: Sequence[str]
    ) -> str | None:
        if ending.code != 2 and not (ending.code == 1 and "trials failed" in ending.said):
            return f"exit {ending.code}"
        if "Traceback" in ending.said:
            return "a traceback"
        if not re.search(r"^(error|.*failed): .*storage: faulty://", ending.said, re.MULTILINE):
            return "the message does not name storage"
        if every != 1 and set(kinds) <= set(PASSING):
            return "single faults were not tried again"
        return None

    def once(self) -> None:
        """Each call fails once, and works when it is tried again: no run ends early."""
        apart = min(APART, len(self.calls()))
        for first in range(1, apart + 1):
            self.disturb(first, apart, PASSING, PATIENT)

    def from_then_on(self) -> None:
        """A call and all after it fail: one of each sort, or each ($SELFSHOT_FAULTS=every)."""
        chosen: dict[object, int] = {}
        for number, pid, operation, _, path in self.calls():
            name = re.sub(r"[0-9a-f]{8,}|\d+", "#", path.partition("/storage/")[2])
            place = (operation, name, int(pid) == os.getpid())
            chosen.setdefault(number if EVERY else place, int(number))
        kinds = [kind for kind in KINDS if kind != "lost"]
        for turn, first in enumerate(sorted(chosen.values())):
            self.disturb(first, 1, [kinds[turn % len(kinds)]])

    def check(self) -> None:
        """All ended right."""
        assert not self.wrong, f"{len(self.wrong)} runs ended wrong:\n" + "\n".join(self.wrong)
