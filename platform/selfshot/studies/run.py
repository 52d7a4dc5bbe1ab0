"""Running an experiment: its stages in order, each made once, found again, or gone on with."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfshot.benchmarks.inputs import check_corpus
from selfshot.config.addresses import is_address
from selfshot.config.load import resolved_yaml
from selfshot.config.schema import Experiment
from selfshot.data.storage import Storage
from selfshot.errors import UserError
from selfshot.files import file_lock, write_atomically
from selfshot.store.local import (
    StageFolder,
    Store,
    damage_of,
    stage_key,
    verify,
)
from selfshot.store.remote import SharedStore
from selfshot.studies.progress import Progress
from selfshot.studies.resources import refuse_without_capacity, refuse_without_faiss
from selfshot.studies.stages import STAGES, Context, Stage
from selfshot.studies.tracking import results_of_experiment, tracked

if TYPE_CHECKING:
    from selfshot.distributed.sharing import Sharing

Made = TypeVar("Made")

ONE_AT_A_TIME = ("embeddings",)
"""Stages whose jobs take every core: two that wait for their last actors wait for each other."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What a run would do with a stage.

    Attributes:
        stage: its name.
        key: hash of its settings and inputs.
        status: `done`, `partial` (a killed run goes on) or `to do`.
        path: where its result is or will be.
        stored: its address, if it is in storage and not here.
    """

    stage: str
    key: str
    status: str
    path: Path
    stored: str | None = None


def wanted_stages(experiment: Experiment, until: str | None = None) -> list[Stage]:
    """The stages of the experiment, up to one of them and only those that it needs."""
    stages = [stage for stage in STAGES if stage.wanted(experiment)]
    if until is None:
        return stages
    by_name = {stage.name: stage for stage in stages}
    if until not in by_name:
        raise UserError(
            f"stage {until!r} is no part of this experiment; it has {', '.join(by_name)}"
        )
    needed: set[str] = set()
    waiting = [until]
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in needed:
            needed.add(name)
            waiting += by_name[name].inputs
    return [stage for stage in stages if stage.name in needed]


def open_store(experiment: Experiment, progress: Progress | None = None) -> Store:
    """The store in the experiment's output folder, a cache of its storage if it has one."""
    say = progress.note if progress else None
    root = experiment.output / "store"
    if experiment.storage is None:
        return Store(root, say)
    return Store(root, say, SharedStore(Storage(experiment.storage), say))


def sharing_of(experiment: Experiment) -> Sharing | None:
    """What workers must know to find this process's files; None: they see the same folder."""
    if experiment.storage is None:
        return None
    from selfshot.distributed.sharing import Sharing

    output = str(experiment.output.resolve())
    storage = experiment.storage
    absolute = storage if is_address(storage) else str(Path(storage).absolute())
    return Sharing(absolute, output, output)


def stage_status(store: Store, known: dict[str, set[str]], stage: str, key: str) -> StagePlan:
    """Whether a stage is done, here or in storage.

    Args:
        store: where.
        known: stage → keys that storage has, listed once.
        stage, key: which.
    """
    final = store.root / stage / key
    if final.exists() and damage_of(final) is None:
        return StagePlan(stage, key, "done", final)
    if store.shared is not None:
        if stage not in known:
            known[stage] = store.shared.keys(stage)
        if key in known[stage]:
            return StagePlan(stage, key, "done", final, store.shared.address(stage, key))
    begun = final.with_name(f"{key}.partial").exists()
    return StagePlan(stage, key, "partial" if begun else "to do", final)


def plan_experiment(experiment: Experiment, until: str | None = None) -> list[StagePlan]:
    """What a run would make, go on with and reuse; nothing is written."""
    store = open_store(experiment)
    if store.shared is not None:
        store.shared.storage.look()
    stages = wanted_stages(experiment, until)
    keys = stage_keys(stages, stage_settings(stages, experiment))
    return _statuses(store, stages, keys)


def _statuses(store: Store, stages: Sequence[Stage], keys: Mapping[str, str]) -> list[StagePlan]:
    known: dict[str, set[str]] = {}
    return [stage_status(store, known, stage.name, keys[stage.name]) for stage in stages]


def _inputs(stage: Stage, keys: dict[str, str]) -> dict[str, str]:
    return {name: keys[name] for name in stage.inputs if name in keys}


def stage_settings(stages: list[Stage], experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Each stage's settings, made once: those of a folder take a walk over its files."""
    return {stage.name: stage.settings(experiment) for stage in stages}


def stage_keys(stages: list[Stage], settings: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The key of each stage, from its settings and the keys of those that it reads."""
    keys: dict[str, str] = {}
    for stage in stages:
        inputs = _inputs(stage, keys)
        keys[stage.name] = stage_key(stage.name, stage.version, settings[stage.name], inputs)
    return keys


def check_storage(experiment: Experiment) -> None:
    """See that storage can be read and written, before any work.

    Raises:
        StorageError: it cannot.
    """
    if experiment.storage is not None:
        Storage(experiment.storage).check()


def run_experiment(
    experiment: Experiment, *, until: str | None = None, report_anew: bool = False
) -> Path | None:
    """Run an experiment, or go on with it.

    Args:
        experiment: what to run.
        until: the last stage to run; none: all.
        report_anew: write the report also where it is of these settings and no stage is made.

    Returns:
        The report's folder, or the folder of the stage `until`.

    Raises:
        UserError: a stage cannot be made with these settings.
    """
    check_storage(experiment)
    stages, every = wanted_stages(experiment, until), wanted_stages(experiment)
    if any(stage.name == "encoder" for stage in stages):
        check_corpus(experiment)
    settings = stage_settings(every, experiment)
    keys = stage_keys(every, settings)
    progress = Progress(len(stages))
    plans = _statuses(open_store(experiment), stages, keys)
    missing = [plan.stage for plan in plans if plan.status != "done"]
    refuse_without_faiss(missing)
    waits = refuse_without_capacity(experiment, missing)
    if waits is not None:
        progress.note(waits)
    output = experiment.output / experiment.name
    output.mkdir(parents=True, exist_ok=True)
    (output / "experiment.yaml").write_text(resolved_yaml(experiment), encoding="utf-8")
    store = open_store(experiment, progress)
    sharing = sharing_of(experiment)
    # Other settings are another run in MLflow, where parameters and figures stay as they were.
    page = {"description": experiment.description, **experiment.report.model_dump(mode="json")}
    ids = output / "mlflow" / stage_key("run", 1, page, keys)
    wanted = {stage.name: keys[stage.name] for stage in stages}
    with tracked(experiment, ids, store, sharing, kind="experiment", stages=wanted) as run:
        target = run.tracker.target
        context = Context(
            experiment=experiment,
            folders={},
            progress=progress,
            timings=[],
            tracking={
                "uri": target.address,
                "command": f"mlflow ui --backend-store-uri {_shown_uri(target.address)}",
                "experiment": target.experiment,
            },
            keys={},
            sharing=sharing,
        )
        make_stages(stages, settings, keys, context, store)
        if until is not None or "evaluation" not in context.folders:
            return context.folders[stages[-1].name]
        report, of_settings = output / "report", output / "report.key"
        reused = all(timing["status"] == "reused" for timing in context.timings)
        if report_anew or not reused or not _is_report_of(report, of_settings, ids.name):
            from selfshot.studies.reports.page import make_page

            context.tracking["run_id"] = run.tracker.run_id() or "not known yet"
            of_settings.unlink(missing_ok=True)
            publish(report, functools.partial(make_page, context))
            write_atomically(of_settings, ids.name)
            if sharing is not None:
                sharing.remote(output.resolve()).push("report", "experiment.yaml")
        rows = json.loads((report / "results.json").read_text())
        run.write(**results_of_experiment(rows))
    progress.note(f"the report is {report / 'report.html'}")
    progress.note(f"in MLflow: {context.tracking['command']}")
    return report


def _is_report_of(report: Path, of_settings: Path, key: str) -> bool:
    whole = all((report / name).exists() for name in ("results.json", "report.md", "report.html"))
    return whole and of_settings.exists() and of_settings.read_text() == key


def make_stages(
    stages: Sequence[Stage],
    settings: Mapping[str, dict[str, Any]],
    keys: Mapping[str, str],
    context: Context,
    store: Store,
) -> None:
    """Make, go on with or reuse each stage, and put its folder into the context.

    Args:
        stages: in order, with those that they need.
        settings, keys: of each stage by name.
        context: of the run.
        store: where results are.
    """
    experiment = context.experiment
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start_ray() -> None:
            from selfshot.distributed.session import ray_session

            stack.enter_context(ray_session(experiment.compute.address))

        def turn(name: str) -> contextlib.AbstractContextManager[None]:
            """Drivers on one cluster may share no file locks."""
            from selfshot.distributed.session import cluster_address
            from selfshot.distributed.sharing import take_turn

            if cluster_address(experiment.compute.address)[0] is not None:
                start_ray()
            return take_turn(name, context.progress.note)

        for number, stage in enumerate(stages, 1):
            key = context.keys[stage.name] = keys[stage.name]
            opened = store.stage(
                stage.name,
                stage.version,
                settings[stage.name],
                _inputs(stage, context.keys),
                seeds=[experiment.seed],
                exclusive=turn,
            )
            with opened as folder:
                if folder.done:
                    context.progress.stage(number, stage.name, f"reused {key}")
                    context.timings.append(_timing(stage, folder, "reused"))
                else:
                    if stage.needs_ray(experiment):
                        start_ray()
                    try:
                        _make(stage, folder, context, number)
                    except Exception:
                        if folder.done or not store.overtaken(folder):
                            raise
                        context.timings.append(_timing(stage, folder, "reused"))
                context.folders[stage.name] = folder.final.resolve()


def _make(stage: Stage, folder: StageFolder, context: Context, number: int) -> None:
    """Make a stage that is not done, or go on with it."""
    before = folder.seconds_before
    resumed = before > 0
    words = f"going on after {before:.0f} s" if resumed else "started"
    context.progress.stage(number, stage.name, f"{words}, {folder.key}")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if stage.name in ONE_AT_A_TIME:
            lock = folder.final.parent / "turn.lock"
            what = f"the turn of {stage.name}"
            stack.enter_context(file_lock(lock, context.progress.note, what))
            if context.sharing is not None:
                from selfshot.distributed.sharing import take_turn

                stack.enter_context(take_turn(stage.name, context.progress.note))
        metrics = stage.make(context, folder)
    folder.finish(metrics=_finite(metrics))
    context.progress.note(f"{stage.name} made in {time.monotonic() - began:.1f} s")
    context.timings.append(_timing(stage, folder, "resumed" if resumed else "made"))


def _timing(stage: Stage, folder: StageFolder, status: str) -> dict[str, Any]:
    """What a stage took when it was made, killed attempts included, for the report."""
    seconds = folder.manifest["seconds"]
    return {"stage": stage.name, "seconds": seconds, "status": status, "key": folder.key}


def _finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as JSON can carry them."""
    plain: dict[str, Any] = json.loads(
        json.dumps(metrics, default=str), parse_constant=lambda name: None
    )
    return plain


def _shown_uri(uri: str) -> str:
    """A tracking URI as one types it where the run was started."""
    prefix = "sqlite:///"
    if uri.startswith(prefix):
        with contextlib.suppress(ValueError):
            return prefix + str(Path(uri.removeprefix(prefix)).relative_to(Path.cwd()))
    return uri


def publish(target: Path, write: Callable[[Path], Made]) -> Made:
    """Write a report anew; a reader finds each of its files whole, whenever the writer is killed.

    Args:
        target: its folder.
        write: writes all files into another folder.

    Returns:
        what `write` returned.
    """
    target.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial")
    with file_lock(beside.with_suffix(".lock"), lambda text: None, "the report"):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        made = write(beside)
        for path in sorted(beside.rglob("*")):
            goal = target / path.relative_to(beside)
            goal.mkdir(exist_ok=True) if path.is_dir() else path.replace(goal)
        shutil.rmtree(beside)
    return made


def report_experiment(experiment: Experiment) -> Path:
    """Write the report of a finished run again, and return its folder.

    Raises:
        UserError: an earlier stage is not done.
    """
    open_stages = [plan.stage for plan in plan_experiment(experiment) if plan.status != "done"]
    if open_stages:
        raise UserError(
            f"report: the stages {', '.join(open_stages)} are not done; "
            "run `selfshot run` with the same file and settings first"
        )
    made = run_experiment(experiment, report_anew=True)
    assert made is not None
    return made


def verify_experiment(experiment: Experiment) -> list[str]:
    """Hash every stored file of the experiment again; one line for each that differs."""
    problems = []
    store = open_store(experiment)
    for plan in plan_experiment(experiment):
        if plan.stored is not None and store.find(plan.stage, plan.key) is None:
            problems.append(f"{plan.stage}/{plan.key}: {plan.stored} is damaged")
        elif plan.status == "done":
            problems += [f"{plan.stage}/{plan.key}: {line}" for line in verify(plan.path)]
        else:
            problems.append(f"{plan.stage}/{plan.key}: {plan.status}")
    return problems
