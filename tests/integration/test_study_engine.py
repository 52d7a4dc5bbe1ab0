"""What a study asks of the engine: work in the order of its needs, trials in trials, ASHA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_parts import deadly
from ray.exceptions import WorkerCrashedError

from selfshot.distributed.graph import run_graph
from selfshot.distributed.mapping import parallel_map
from selfshot.distributed.trials import INSIDE, Stopping, TrialPlan, TrialsFailedError, run_trials

pytestmark = pytest.mark.usefixtures("ray_running")


def test_a_graph_runs_in_the_order_of_its_needs(tmp_path: Path) -> None:
    needs = {"c": {"a", "b"}, "a": set(), "b": {"a"}, "wrong": set(), "d": {"wrong"}, "e": {"d"}}
    units = {
        name: (
            {"name": name, "folder": str(tmp_path), "fails": name == "wrong"},
            frozenset(some),
        )
        for name, some in needs.items()
    }
    ended: list[tuple[str, bool]] = []
    failures = run_graph(
        "engine_parts:graph_unit",
        units,
        parallel=2,
        max_failures=1,
        on_end=lambda name, error: ended.append((name, error is None)),
    )
    assert set(failures) == {"wrong", "d", "e"}
    assert failures["wrong"].endswith("wrong was told to fail")
    assert failures["d"].startswith("it needs wrong, which failed")
    assert dict(ended) == {"a": True, "b": True, "c": True, "wrong": False, "d": False, "e": False}
    times = {
        name: [float(one) for one in (tmp_path / name).read_text().split()] for name in "abc"
    }
    assert times["a"][1] <= times["b"][0] and times["b"][1] <= times["c"][0]


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


@pytest.mark.parametrize(
    ("inside", "cpus", "raises", "attempts"),
    [
        (False, 1.0, False, 3),
        (False, 1.0, True, 3),
        # It waits for others, which are tried again by themselves.
        (False, 0.0, False, 3),
        (False, 0.0, True, 1),
        (True, 1.0, False, 3),
        (True, 1.0, True, 3),
    ],
)
@pytest.mark.slow
def test_a_trial_is_tried_so_often_and_not_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inside: bool,
    cpus: float,
    raises: bool,
    attempts: int,
) -> None:
    if inside:  # As tasks, and not with Tune.
        monkeypatch.setenv(INSIDE, "1")
    config = {"trial_id": "one", "folder": str(tmp_path), "raises": raises}
    plan = TrialPlan(tmp_path / "out", "deadly", cpus=cpus, max_failures=2)
    for runs in (1, 2):  # What failed is tried again by the next run, as often.
        with pytest.raises(TrialsFailedError, match="it was told to fail" if raises else "one: "):
            run_trials("engine_parts:deadly", [config], plan)
        assert calls(tmp_path) == runs * attempts


@pytest.mark.parametrize(("raises", "attempts"), [(False, 3), (True, 1)])
def test_a_unit_whose_process_dies_is_tried_so_often_and_not_more(
    tmp_path: Path, raises: bool, attempts: int
) -> None:
    config = {"folder": str(tmp_path), "raises": raises}
    units = {"one": (config, frozenset[str]())}
    assert run_graph("engine_parts:deadly", units, parallel=1, max_failures=2).keys() == {"one"}
    assert calls(tmp_path) == attempts


def test_a_unit_of_a_map_is_tried_so_often_and_not_more(tmp_path: Path) -> None:
    units = parallel_map(max_failures=2)(deadly, [{"folder": str(tmp_path), "raises": False}])
    with pytest.raises(WorkerCrashedError):
        list(units)
    assert calls(tmp_path) == 3


def test_a_trial_may_run_trials(tmp_path: Path) -> None:
    configs = [{"trial_id": f"outer{n}", "folder": str(tmp_path)} for n in range(2)]
    results = run_trials(
        "engine_parts:trial_of_trials",
        configs,
        TrialPlan(tmp_path / "outer", "outer", parallel=2, cpus=0.0),
    )
    assert results == [{"sum": 5}, {"sum": 5}]


def test_weak_trials_are_stopped_and_stay_stopped(tmp_path: Path) -> None:
    configs = [
        # The best comes first, so that each of the others is compared with it.
        {"trial_id": f"n{n}", "number": n, "folder": str(tmp_path)}
        for n in (9, 1, 2, 3)
    ]

    def run() -> list[dict[str, object]]:
        return run_trials(
            "engine_parts:budgeted_trial",
            configs,
            TrialPlan(
                tmp_path / "results", "asha", cpus=0.0, stopping=Stopping((1, 2, 4), "max", 2.0)
            ),
        )

    first = run()
    assert first[0] == {"score": 36.0}
    # The last is in the better half at first, and then alone with the best.
    assert [result.get("stopped_at") for result in first[1:]] == [1, 1, 2]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3 + 1 + 1 + 2
    # A trial whose result was lost is ranked with what the others scored, without calling them.
    (tmp_path / "results" / "n2.json").unlink()
    (tmp_path / "results" / "n2.budget-1.json").unlink()
    assert run() == first
    assert (tmp_path / "calls").read_text().splitlines()[len(calls) :] == ["n2.budget-1"]


ON_GPUS = """
import os
from pathlib import Path

os.environ["PYTHONPATH"] = os.pathsep.join([{here!r}, os.environ.get("PYTHONPATH", "")])
import ray
from selfshot.distributed.session import ray_session
from selfshot.distributed.trials import TrialPlan, run_trials

# Ray counts this GPU whether or not the machine has one.
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
with ray_session():
    for share, inner in ((0.5, ""), (0.0, ""), (0.5, "1")):
        os.environ.pop("SELFSHOT_INSIDE_TRIAL", None)
        if inner:
            os.environ["SELFSHOT_INSIDE_TRIAL"] = inner
        results = run_trials(
            "engine_parts:gpus_of_trial",
            [{{"trial_id": f"t{{n}}"}} for n in range(2)],
            TrialPlan(Path({folder!r}) / f"{{share}}{{inner}}", "gpus", parallel=2, gpus=share),
        )
        print("GPUs", [result["gpus"] for result in results])
ray.shutdown()
"""


@pytest.mark.slow
def test_trials_book_a_share_of_a_gpu(tmp_path: Path) -> None:
    code = ON_GPUS.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("GPUs")]
    both, neither = "GPUs [['0'], ['0']]", "GPUs [[], []]"
    assert said == [both, neither, both], done.stdout + done.stderr
