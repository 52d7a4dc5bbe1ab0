"""What a study costs beyond its trials' own work.

    python performance/study.py trials     overhead of a trial, over the seconds of its stages
    python performance/study.py points     five points of a sweep of supports against one point

Both run at the toy size of tests/integration/toy.yaml, where the engine's own time is the larger
part: at any real size the ratios are smaller.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from selfshot.config.sweep import load_study
from selfshot.distributed.session import ray_session
from selfshot.studies.study import run_study

TOY = Path(__file__).resolve().parents[1] / "tests" / "integration" / "toy.yaml"
POWERS = [0.0, 0.25, 0.5, 0.75, 1.0]


def run(output: Path, *overrides: str) -> float:
    """Seconds of a study, the start of Ray apart."""
    study = load_study(TOY, [f"output={output}", *overrides])
    with ray_session():
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            made = run_study(study)
        assert not made.failures, made.failures
        return time.monotonic() - began


def trials(output: Path) -> None:
    """A first study makes what is shared; the second has 24 trials that only choose supports."""
    run(output, "sweep.over={supports.foreground_power: [0.0]}", "sweep.until=supports")
    powers = [round(0.1 * n, 1) for n in range(1, 25)]
    seconds = run(
        output, f"sweep.over={{supports.foreground_power: {powers}}}", "sweep.until=supports",
        "name=many",
    )  # fmt: skip
    work = 0.0
    for path in output.glob("many/trials/*.json"):
        timings = json.loads(path.read_text())["timings"]
        work += sum(one["seconds"] for one in timings if one["status"] == "made")
    each = (seconds - work / 2) / len(powers)
    print(f"{len(powers)} trials, 2 at one time: {seconds:.1f} s; their stages took {work:.1f} s")
    print(f"overhead of a trial: {each:.2f} s, {each / (work / len(powers)):.1f} of its own work")


def points(folder: Path) -> None:
    """One point from nothing, then five points from nothing."""
    common = ("evaluation.supports=[self_shot, oracle]",)
    one = run(folder / "one", *common, "sweep.over={supports.foreground_power: [0.0]}")
    five = run(folder / "five", *common, f"sweep.over={{supports.foreground_power: {POWERS}}}")
    print(f"one point {one:.1f} s, five points {five:.1f} s: {five / one:.2f} times one point")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        {"trials": trials, "points": points}[sys.argv[1]](Path(folder))
