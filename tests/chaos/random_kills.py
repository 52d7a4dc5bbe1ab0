"""Random kill -9 over all stages of the toy experiment; prints what was killed, lost and doubled.

    python tests/chaos/random_kills.py --kills 100 --seed 0 --folder /tmp/kills

A driver that was killed is started again with the same command until the experiment is finished;
then another one begins in an empty folder, until there were so many kills. The script goes on where
it was stopped.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))

from test_experiment_killed import GONE_S, start, with_commands

KINDS = ("worker", "driver", "raylet")
# Ray gives a raylet that it lost so long, and a run takes less than the other.
DEAD_S, WHOLE_S = 180.0, 1200.0
SAME = (
    "toy/report/results.json",
    "store/benchmark/*/annotations.json",
    "store/*/*/export/*.safetensors",
    "store/index/*/index.faiss",
    "store/supports/*/supports.json",
    "store/evaluation/*/predictions/*.json",
)
_STAGE = re.compile(r"\[\d+/\d+\] (\w+): (started|going on|reused)")


@dataclasses.dataclass
class Account:
    """What happened, kept in a file so that the script can be stopped."""

    path: Path
    rounds: int = 0
    equal: int = 0
    clips: int = 0
    lost: int = 0
    doubled: int = 0
    kills: list[list[str]] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> Account:
        return cls(path, **json.loads(path.read_text())) if path.exists() else cls(path)

    def keep(self) -> None:
        facts = dataclasses.asdict(self)
        del facts["path"]
        self.path.write_text(json.dumps(facts, indent=1))

    def words(self) -> str:
        stages = collections.Counter(stage for stage, _ in self.kills)
        kinds = collections.Counter(kind for _, kind in self.kills)
        return "\n".join(
            [
                f"{len(self.kills)} kills in {self.rounds} experiments",
                "  by kind: " + ", ".join(f"{name} {count}" for name, count in kinds.items()),
                "  by stage: " + ", ".join(f"{name} {count}" for name, count in stages.items()),
                f"  clips: {self.clips} embedded or quarantined, {self.lost} lost, "
                f"{self.doubled} doubled",
                f"  {self.equal} of {self.rounds} experiments ended with the weights, supports, "
                "predictions and results of the undisturbed one, bit for bit",
                *(f"  WRONG: {line}" for line in self.wrong),
            ]
        )


class Run:
    """A process of `selfshot run`, and how far it is."""

    def __init__(self, output: Path, log: Path) -> None:
        self.log, self.process = log, start(output, log)
        self.stage, self.since = "", time.monotonic()
        self.below: list[psutil.Process] = []

    def look(self) -> str:
        """The stage that is being made; "" before the first."""
        found = _STAGE.findall(self.log.read_text())
        made = [name for name, status in found if status != "reused"]
        now = made[-1] if made and found[-1][0] == made[-1] else ""
        if now != self.stage:
            self.stage, self.since = now, time.monotonic()
        return now

    def children(self, words: str) -> list[psutil.Process]:
        """Processes below whose command line begins with these."""
        found = []
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if re.match(words, " ".join(one.cmdline())):
                        found.append(one)
        return found


def kill(run: Run, kind: str, chance: random.Random) -> str:
    """Kill one process; returns which kind it was: before Ray runs there is only the driver."""
    run.below += run.children("")
    victims = {
        "worker": run.children(r"ray::(?!IDLE|\w+Agent)|\S*python\S* -c .*selfshot\.data\.serving"),
        "raylet": run.children(r"\S*raylet/raylet "),
        "driver": [],
    }[kind]
    if not victims:
        if chance.random() < 0.5:
            os.killpg(run.process.pid, signal.SIGKILL)
        else:
            run.process.kill()
        run.process.wait()
        return "driver"
    with contextlib.suppress(psutil.NoSuchProcess):
        chance.choice(victims).kill()
    return kind


def experiment(
    output: Path, seconds: dict[str, float], wanted: int, chance: random.Random, account: Account
) -> list[psutil.Process]:
    """Run one to its end with kills; returns the processes that it had.

    Each stage is the place of none, one or two kills.
    """
    plan = [
        (stage, chance.choice(KINDS), chance.uniform(0, 0.95) * seconds[stage])
        for stage in seconds
        for _ in range(chance.choice((0, 1, 1, 2)))
    ][:wanted]
    order = list(seconds)
    had: list[psutil.Process] = []
    for number in range(10_000):
        run = Run(output, output.with_name(f"{output.name}-{number}.log"))
        raylet_died: float | None = None
        began = time.monotonic()
        while run.process.poll() is None:
            time.sleep(0.005)
            now = time.monotonic()
            if (raylet_died is not None and now - raylet_died > DEAD_S) or now - began > WHOLE_S:
                account.wrong.append(f"{run.log}: it hangs in {run.stage}")
                run.below += run.children("")
                os.killpg(run.process.pid, signal.SIGKILL)
                run.process.wait()
                break
            stage = run.look()
            if raylet_died is not None or not plan or not stage:
                continue
            place, kind, after_s = plan[0]
            late = order.index(stage) > order.index(place)
            if late or (stage == place and now - run.since >= after_s):
                plan.pop(0)
                killed = kill(run, kind, chance)
                account.kills.append([stage, killed])
                account.keep()
                print(f"kill {len(account.kills)}: {killed} in {stage}, {output.name}", flush=True)
                if killed == "raylet":
                    raylet_died = time.monotonic()
                run.since = time.monotonic()
        had += run.below
        code = run.process.returncode
        if code == 0:
            return had
        if code != -signal.SIGKILL and raylet_died is None:
            account.wrong.append(f"{run.log}: exit {code} after the kill of a worker at most")
        if raylet_died is not None and "Traceback" in run.log.read_text():
            account.wrong.append(f"{run.log}: a traceback after the kill of a raylet")
    raise AssertionError("unreachable")


def clip_ids(output: Path) -> list[str]:
    """Of all shards, in their order."""
    shards = sorted(output.glob("store/embeddings/*/shard-*.parquet"))
    return [name for path in shards for name in pq.read_table(path)["clip_id"].to_pylist()]


def compare(output: Path, whole: Path, account: Account) -> None:
    """Add up what a finished experiment lost, doubled or made otherwise."""
    ours, theirs = (collections.Counter(clip_ids(place)) for place in (output, whole))
    account.clips += ours.total()
    account.lost += (theirs - ours).total()
    account.doubled += (ours - theirs).total()
    differ = []
    for pattern in SAME:
        found = [
            {path.relative_to(place): path.read_bytes() for path in place.glob(pattern)}
            for place in (output, whole)
        ]
        if found[0] != found[1] or not found[1]:
            differ.append(pattern)
    if differ:
        account.wrong.append(f"{output}: other {', '.join(differ)}")
    account.equal += not differ


def left_of(processes: list[psutil.Process]) -> list[Any]:
    """Those that outlive a killed run by more than its agents may."""
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    return with_commands(alive)


def main() -> int:
    """Returns 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    account = Account.of(given.folder / f"kills-{given.seed}.json")
    whole = given.folder / "whole"
    log = given.folder / "whole.log"
    if not (whole / "toy" / "report" / "results.json").exists():
        assert start(whole, log).wait() == 0, log.read_text()
    stages = list(dict.fromkeys(name for name, _ in _STAGE.findall(log.read_text())))
    seconds = dict.fromkeys(stages, 1.0)
    for path in whole.glob("store/*/*/manifest.json"):
        seconds[path.parts[-3]] = json.loads(path.read_text())["seconds"]
    while len(account.kills) < given.kills:
        chance = random.Random(1000 * given.seed + account.rounds)
        output = given.folder / f"seed-{given.seed}-{account.rounds}"
        had = experiment(output, seconds, given.kills - len(account.kills), chance, account)
        account.rounds += 1
        compare(output, whole, account)
        left = left_of(had)
        if left:
            account.wrong.append(f"{output}: {len(left)} processes outlive it: {left[:2]}")
        account.keep()
    print(account.words())
    return 1 if account.wrong or account.lost or account.doubled else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.SubprocessError as error:
        sys.exit(str(error))
