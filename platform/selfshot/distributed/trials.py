"""Trials on Ray Tune: one function, many settings, some at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfshot.data.retried_files import retried_filesystem
from selfshot.distributed.session import current_session, quieten
from selfshot.distributed.sharing import Sharing
from selfshot.files import write_atomically
from selfshot.store.folders import RemoteFolder

TRIAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")

INSIDE = "SELFSHOT_INSIDE_TRIAL"
ERROR = ".error"  # Beside the results: of a trial that is not tried again.

OnResult = Callable[[str, dict[str, Any]], None]
_LISTENERS: dict[str, Callable[[str], None]] = {}


@dataclasses.dataclass(frozen=True)
class Stopping:
    """ASHA: a trial goes on to its next budget only if it is among the best so far.

    Attributes:
        budgets: rising; the function is called with each as `budget`, and its result's `score` is
            what ranks trials. A trial's result is that of its last budget.
        mode: whether a larger (`max`) or a smaller (`min`) score is better.
        reduction: one in so many goes on.
    """

    budgets: tuple[int, ...]
    mode: str
    reduction: float


@dataclasses.dataclass(frozen=True)
class TrialPlan:
    """Where and how trials run.

    Attributes:
        out_dir: where results go; without `sharing` it must be seen by every node.
        name: of all of them, for people.
        parallel: trials at one time.
        cpus: cores of a trial, which are also its threads; 0 for one that only waits for what it
            starts on the same Ray, and must not keep a core from it.
        gpus: its share of a GPU; 0: it sees none.
        max_failures: times that a failing trial is tried again; one without cores only if its
            process died, as what it waits for is tried again by itself.
        stopping: stop weak trials early; the result of a stopped one says `stopped_at`, its last
            budget. Results of every budget are kept, so a later call ranks as this one did.
        sharing: set where nodes have folders of their own: what configs name is fetched, and
            results go by way of its storage, so a run on another machine finds them.
        carry: another folder that trials write to, which is brought here too.
    """

    out_dir: Path
    name: str
    parallel: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = 0
    stopping: Stopping | None = None
    sharing: Sharing | None = None
    carry: Path | None = None


class TrialsFailedError(RuntimeError):
    """Some trials failed; the others' results are kept and not computed again.

    Attributes:
        failures: trial id → the last line of its error.
    """

    def __init__(self, name: str, failures: Mapping[str, str], total: int) -> None:
        lines = "\n".join(f"  {trial_id}: {reason}" for trial_id, reason in failures.items())
        super().__init__(
            f"{name}: {len(failures)} of {total} trials failed; run it again to try them again:\n"
            f"{lines}"
        )
        self.failures = dict(failures)


def run_trials(
    function: str,
    configs: Sequence[Mapping[str, Any]],
    plan: TrialPlan,
    on_result: OnResult | None = None,
) -> list[dict[str, Any]]:
    """Call `function(config)` for every config, each in a process of its own.

    A result is written to <out_dir>/<trial_id>.json as its trial ends, and a trial whose result is
    there does not run again.

    Args:
        function: dotted path; takes a config and returns a dict of JSON values.
        configs: JSON values each with a `trial_id` of its own, in the order of the results.
        plan: where and how they run.
        on_result: called here with the trial id and result of each one that ends.

    Returns:
        the results, in the order of the configs.

    Raises:
        ValueError: trial ids that are missing, repeated or no file names.
        TrialsFailedError: after all others were run.
    """
    out_dir, sharing, carry = plan.out_dir.resolve(), plan.sharing, plan.carry
    plan = dataclasses.replace(plan, out_dir=out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    ids = _trial_ids(configs)
    remote = None if sharing is None else sharing.remote(out_dir)
    carried = None if sharing is None or carry is None else sharing.remote(carry)
    if remote is not None:
        remote.pull_folder(missing=True)
    waiting = [
        dict(config)
        for trial_id, config in zip(ids, configs, strict=True)
        if _read_result(out_dir, trial_id) is None
    ]
    common: dict[str, Any] = {
        "function": function,
        "out_dir": str(out_dir),
        "sharing": None if sharing is None else dataclasses.asdict(sharing),
        "carry": None if carry is None else str(carry.resolve()),
    }
    failures: dict[str, str] = {}
    if waiting and inside_trial():
        failures = _as_tasks(common, waiting, plan, on_result, remote)
    elif waiting:
        # Those that are done report again what they scored, for the others are ranked with them.
        all_of_them = [dict(config) for config in configs] if plan.stopping else waiting
        failures = _tune(common, all_of_them, plan, on_result, remote)
    if remote is not None:
        remote.pull_folder(missing=True)
    if carried is not None:
        carried.pull_folder(missing=True)
    results = [_read_result(out_dir, trial_id) for trial_id in ids]
    for trial_id, result in zip(ids, results, strict=True):
        if result is None:
            failures.setdefault(trial_id, "it ended without a result")
    if failures:
        raise TrialsFailedError(plan.name, failures, len(configs))
    return [result for result in results if result is not None]


def inside_trial() -> bool:
    """Whether this process runs a trial, which may not be the driver of other trials."""
    return INSIDE in os.environ


def _as_tasks(
    common: dict[str, Any],
    waiting: list[dict[str, Any]],
    plan: TrialPlan,
    on_result: OnResult | None,
    remote: RemoteFolder | None,
) -> dict[str, str]:
    """Run the trials of a trial as tasks: a Tune inside a Tune is more than Ray promises."""
    import ray

    cpus = _cpus(plan)
    # A trial of Tune has a place of its own, in which its tasks would otherwise have to fit.
    # Ray retries none: the loop below does.
    work = ray.remote(
        num_cpus=cpus, num_gpus=plan.gpus, max_retries=0, scheduling_strategy="DEFAULT"
    )(_keep)
    queue = list(waiting)
    running: dict[Any, tuple[dict[str, Any], int]] = {}
    failures: dict[str, str] = {}
    while queue or running:
        while queue and len(running) < plan.parallel:
            trial = queue.pop(0)
            running[work.remote({**common, "cpus": cpus, "trial": trial})] = (trial, 0)
        (done,), _ = ray.wait(list(running), num_returns=1)
        trial, attempts = running.pop(done)
        trial_id = str(trial["trial_id"])
        try:
            ray.get(done)
        except Exception as error:  # whatever a trial raises, the others go on
            if attempts < plan.max_failures:
                again = {**common, "cpus": cpus, "trial": trial}
                running[work.remote(again)] = (trial, attempts + 1)
                continue
            failures[trial_id] = last_line(error)
            continue
        result = _read_result(plan.out_dir, trial_id, remote)
        if result is not None and on_result is not None:
            on_result(trial_id, result)
    return failures


def _cpus(plan: TrialPlan) -> float:
    """Cores of a trial: one that requests more than an embedded Ray has would wait for ever."""
    session = current_session()
    return min(plan.cpus, session.num_cpus) if session.embedded else plan.cpus


def last_line(error: BaseException) -> str:
    """The line of an error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def _run_one(config: dict[str, Any]) -> None:
    """The trainable: a worker process imports the function, calls it and keeps its result."""
    os.environ[INSIDE] = "1"
    out_dir, remote = _results_here(config)
    try:
        _run_budgets(config, out_dir, remote)
    except Exception as error:
        if config["cpus"]:
            raise  # Tune tries it again; what a trial without cores waits for has been already.
        name = f"{config['trial']['trial_id']}{ERROR}"
        write_atomically(out_dir / name, last_line(error))
        if remote is not None:
            remote.push(name)


def _run_budgets(config: dict[str, Any], out_dir: Path, remote: RemoteFolder | None) -> None:
    from ray import tune

    trial_id = config["trial"]["trial_id"]
    for budget in config["budgets"]:
        name = f"{trial_id}.budget-{budget}"
        result = _read_result(out_dir, name, remote)
        if result is None:
            _keep({**config, "trial": {**config["trial"], "trial_id": name, "budget": budget}})
            result = _read_result(out_dir, name)
        assert result is not None
        if budget == config["budgets"][-1]:
            _write_result(out_dir, trial_id, result, remote)
        tune.report({"trial_id": trial_id, "budget": budget, "score": result["score"]})
    if not config["budgets"]:
        _keep(config)
        tune.report({"trial_id": trial_id})


def _scheduler(stopping: Stopping | None) -> Any:
    if stopping is None:
        return None
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="budget",
        metric="score",
        mode=stopping.mode,
        grace_period=stopping.budgets[0],
        max_t=stopping.budgets[-1],
        reduction_factor=stopping.reduction,
    )


def _keep_stopped(
    out_dir: Path, trial_id: str, stopping: Stopping, remote: RemoteFolder | None
) -> None:
    """The result of a trial that was stopped is that of the last budget it reached."""
    if _read_result(out_dir, trial_id, remote) is not None:
        return
    for budget in reversed(stopping.budgets):
        result = _read_result(out_dir, f"{trial_id}.budget-{budget}", remote)
        if result is not None:
            _write_result(out_dir, trial_id, {**result, "stopped_at": budget}, remote)
            return


def _keep(config: dict[str, Any]) -> None:
    """Call the function, and write its result where a later run finds it."""
    threads = max(1, int(config["cpus"]))
    # Set before numpy or torch are imported; it bounds OpenMP, and torch reads it too.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    from selfshot.training.loop import resolve

    trial = config["trial"]
    out_dir, remote = _results_here(config)
    carried = None
    if remote is not None:
        sharing = Sharing(**config["sharing"])
        trial = sharing.local(trial)
        if config["carry"] is not None:
            carried = sharing.remote(Path(config["carry"]))
            before = carried.states()
    result = resolve(config["function"])(trial)
    if carried is not None:
        carried.push(unless=before)  # Before the result, which says that all is there.
    _write_result(out_dir, trial["trial_id"], result, remote)


def _results_here(config: dict[str, Any]) -> tuple[Path, RemoteFolder | None]:
    """Where a worker keeps results on its node, and where it sends them."""
    if config["sharing"] is None:
        return Path(config["out_dir"]), None
    remote = Sharing(**config["sharing"]).remote(Path(config["out_dir"]))
    return remote.folder, remote


def _write_result(
    out_dir: Path, trial_id: str, result: Mapping[str, Any], remote: RemoteFolder | None
) -> None:
    write_atomically(out_dir / f"{trial_id}.json", json.dumps(result, allow_nan=False) + "\n")
    if remote is not None:
        remote.push(f"{trial_id}.json")


def _announce(out_dir: str, trial_id: str) -> None:
    """Tell whoever waits in this process that a trial has ended."""
    if out_dir in _LISTENERS:
        _LISTENERS[out_dir](trial_id)


def _tune(
    common: dict[str, Any],
    waiting: list[dict[str, Any]],
    plan: TrialPlan,
    on_result: OnResult | None,
    remote: RemoteFolder | None,
) -> dict[str, str]:
    """Run the trials; returns the error of each that failed."""
    from ray import tune

    quieten()
    out_dir, stopping, cpus = plan.out_dir, plan.stopping, _cpus(plan)
    # Tune refuses to place what requests nothing at all.
    booked = {"cpu": cpus} if cpus else {"memory": 2.0**20}
    booked |= {"gpu": plan.gpus} if plan.gpus else {}
    budgets = list(stopping.budgets) if stopping else []
    for stale in out_dir.glob(f"*{ERROR}"):
        stale.unlink()
        if remote is not None:
            remote.remove(stale.name)
    space = {**common, "cpus": cpus, "budgets": budgets, "trial": tune.grid_search(waiting)}
    # Tune's own records of this call; results are what resumes, so the records start anew.
    storage = out_dir / ".tune"
    shutil.rmtree(storage, ignore_errors=True)
    records, files = str(storage), None
    if remote is not None:
        # Workers write there too, and see no folder of this machine.
        records = remote.storage.path(f"{remote.place}/.tune")
        files = retried_filesystem(remote.storage)

    class Watch(tune.Callback):
        # Tune pickles its callbacks, so this one holds nothing but names.
        folder = str(out_dir)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            _announce(self.folder, trial.config["trial"]["trial_id"])

    terminal = sys.stdout

    def listen(trial_id: str) -> None:
        result = _read_result(out_dir, trial_id, remote)
        if result is not None and on_result is not None:
            with contextlib.redirect_stdout(terminal):
                on_result(trial_id, result)

    tuner = tune.Tuner(
        tune.with_resources(_run_one, booked),
        param_space=space,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=plan.parallel,
            reuse_actors=True,
            scheduler=_scheduler(stopping),
            trial_name_creator=lambda trial: trial.config["trial"]["trial_id"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["trial_id"],
        ),
        run_config=tune.RunConfig(
            name=plan.name,
            storage_path=records,
            storage_filesystem=files,
            failure_config=tune.FailureConfig(max_failures=plan.max_failures),
            callbacks=[Watch()],
            verbose=0,
        ),
    )
    failures = {}
    # At its lowest verbosity Tune still prints a table and a line for each trial.
    _LISTENERS[str(out_dir)] = listen
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            results = tuner.fit()
    finally:
        del _LISTENERS[str(out_dir)]
    for index in range(len(results)):
        result = results[index]
        if result.error is not None:
            trial = (result.config or {}).get("trial", {})
            failures[str(trial.get("trial_id", "?"))] = last_line(result.error)
    for trial in waiting:
        error = out_dir / f"{trial['trial_id']}{ERROR}"
        if error.exists() or (remote is not None and remote.pull(error.name)):
            failures[str(trial["trial_id"])] = error.read_text()
        elif stopping is not None and str(trial["trial_id"]) not in failures:
            _keep_stopped(out_dir, str(trial["trial_id"]), stopping, remote)
    shutil.rmtree(storage, ignore_errors=True)
    if remote is not None:
        remote.remove(".tune")
    return failures


def _trial_ids(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    ids = [str(config.get("trial_id", "")) for config in configs]
    wrong = [trial_id for trial_id in ids if not TRIAL_ID.fullmatch(trial_id)]
    if wrong:
        raise ValueError(f"trial_id: {wrong[0]!r} is not allowed (letters, digits, and . _ = -)")
    if len(set(ids)) != len(ids):
        raise ValueError(f"trial ids come more than once in {ids}")
    return ids


def _read_result(
    out_dir: Path, trial_id: str, remote: RemoteFolder | None = None
) -> dict[str, Any] | None:
    path = out_dir / f"{trial_id}.json"
    result = _parsed(path)
    if result is None and remote is not None and remote.pull(path.name):
        result = _parsed(path)
    return result


def _parsed(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # Cut short, as by a loss of power: made again.
        return None
    return content
