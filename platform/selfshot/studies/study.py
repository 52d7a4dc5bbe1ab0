"""Running a study: what its trials share, then the trials, then its report."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfshot.benchmarks.inputs import check_corpus, distinct_inputs
from selfshot.config.load import resolved_yaml
from selfshot.config.sweep import Study
from selfshot.errors import UserError
from selfshot.files import write_atomically
from selfshot.studies.environment import run_environment
from selfshot.studies.progress import Progress, followed
from selfshot.studies.reports.tables import Table
from selfshot.studies.resources import refuse_without_capacity, refuse_without_faiss
from selfshot.studies.run import check_storage, open_store, publish, sharing_of
from selfshot.studies.sweeping import PlannedTrial, StudyPlan, plan_study, worker_config
from selfshot.studies.tracking import results_of_study, tracked


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """What became of a study.

    Attributes:
        report: the folder of its report.
        failures: label of a trial → why it failed.
        results: of the finished trials, in the study's order.
    """

    report: Path
    failures: dict[str, str]
    results: list[dict[str, Any]]


def run_study(study: Study) -> StudyRun:
    """Run a study, or go on with it: no finished stage and no finished trial is made again.

    What fails in a trial is tried again `compute.max_failures` times. Then the trial is reported
    and the others go on. Failed ones are tried once more by the next run.

    Raises:
        UserError: the cluster cannot be joined.
    """
    check_storage(study.experiment)
    plan = plan_study(study)
    for one in distinct_inputs(trial.trial.experiment for trial in plan.open_trials):
        check_corpus(one)
    folder = plan.folder
    waits = _refuse_without_capacity(plan)
    sharing = sharing_of(study.experiment)
    if sharing is not None:
        # Of runs from before there was storage.
        there = sharing.remote((folder / "trials").resolve())
        known = there.storage.sizes(there.place)
        made = [trial.path.name for trial in plan.trials if trial.done]
        there.push(*(name for name in made if name not in known))
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "study.yaml", resolved_yaml(study.experiment))
    write_atomically(folder / "trials.json", json.dumps(_listed(plan), indent=1) + "\n")
    progress = Progress(len(plan.trials))
    waiting = plan.open_trials
    progress.note(
        f"{study.experiment.name}: {len(plan.trials)} trials, "
        f"{len(plan.trials) - len(waiting)} of them done"
    )
    if waits is not None:
        progress.note(waits)
    store = open_store(study.experiment)
    trials = {
        trial.key: {
            "label": trial.trial.label,
            "stages": {
                plan.instances[name].stage: plan.instances[name].key for name in trial.instances
            },
        }
        for trial in plan.trials
    }
    ids = folder / "mlflow" / "study"
    with tracked(study.experiment, ids, store, sharing, kind="study", trials=trials) as run:
        failures = _run_open(plan, progress)
        run.outcome = "FAILED" if failures else "FINISHED"
        tables = write_report(plan, failures)
        left = len(plan.open_trials)
        description = study.experiment.description
        run.write(**results_of_study(tables, description, len(plan.trials) - left, left))
        if sharing is not None:
            sharing.remote(folder.resolve()).push("report", "study.yaml", "trials.json")
    results = plan.results()
    for label, reason in failures.items():
        progress.note(f"failed: {label}: {reason}")
    if failures:
        progress.note(f"{len(failures)} of {len(plan.trials)} trials failed; run it again to try "
                      "them again")  # fmt: skip
    progress.note(f"the report is {folder / 'report' / 'report.html'}")
    return StudyRun(folder / "report", failures, results)


def _run_open(plan: StudyPlan, progress: Progress) -> dict[str, str]:
    """Run what is not done; returns the failures."""
    if not plan.open_trials:
        return {}
    from selfshot.distributed.session import ray_session

    study = plan.study
    with ray_session(study.experiment.compute.address) as session:
        parallel = 1 if session.embedded and _heavy(plan) else study.experiment.sweep.parallel
        broken = _make_shared(plan, progress, 1 if session.embedded else parallel)
        return _run_trials(plan, progress, parallel, broken)


def report_study(study: Study) -> Path:
    """Write the report of the trials that are done, and return its folder.

    Raises:
        UserError: none is done.
    """
    plan = plan_study(study)
    if len(plan.open_trials) == len(plan.trials):
        raise UserError(
            f"report: none of the {len(plan.trials)} trials is done; run `selfshot run` with the "
            "same file and settings first"
        )
    write_report(plan, {})
    return plan.folder / "report"


def write_report(plan: StudyPlan, failures: Mapping[str, str]) -> list[Table]:
    """The report of what is done; trials that are not are listed with the reason."""
    from selfshot.studies.reports.page import write_study_report

    experiment = plan.study.experiment
    write = functools.partial(
        write_study_report,
        title=experiment.name,
        description=experiment.description,
        table=experiment.sweep.table,
        results=plan.results(),
        unfinished=[
            (trial.trial.label, failures.get(trial.trial.label, "it was not run"))
            for trial in plan.open_trials
        ],
        settings=resolved_yaml(experiment),
        environment=run_environment(),
    )
    return publish(plan.folder / "report", write)


def _refuse_without_capacity(plan: StudyPlan) -> str | None:
    """Of every way in which trials request machines; what is waited for, if anything."""
    words = None
    seen = set()
    for trial in plan.open_trials:
        experiment = trial.trial.experiment
        left = [plan.instances[name].stage for name in trial.instances
                if plan.instances[name].status != "done"]  # fmt: skip
        wanted = (experiment.compute.model_dump_json(), frozenset(left))
        if wanted not in seen:
            seen.add(wanted)
            refuse_without_faiss(left)
            words = refuse_without_capacity(experiment, left) or words
    return words


def _heavy(plan: StudyPlan) -> bool:
    """Whether trials train or embed by themselves: on one machine each takes all the cores."""
    return any(instance.stage not in ("index", "supports", "evaluation") for instance in plan.own())


def _make_shared(plan: StudyPlan, progress: Progress, parallel: int) -> dict[str, str]:
    """Make what several trials read, once; returns the instances that failed, with the reason."""
    from selfshot.distributed.graph import run_graph

    instances = plan.shared()
    if not instances:
        return {}
    by_number = {trial.number: trial for trial in plan.trials}
    waiting = {trial.number for trial in plan.open_trials}
    progress.note(f"{len(instances)} stages are shared by several trials and made first")
    units = {}
    for instance in instances:
        trial = by_number[next(n for n in instance.trials if n in waiting)]
        config = worker_config(plan, trial, instance.stage, instance.id)
        units[instance.id] = (config, instance.needs)
    made = 0

    def ended(name: str, error: str | None) -> None:
        nonlocal made
        made += 1
        if error is not None:
            progress.note(f"{name} failed: {error}")

    labels = {instance.id: f"{instance.stage} {instance.key[:6]}" for instance in instances}
    with followed(progress, plan.folder / "logs", labels, notes=True):
        return run_graph(
            "selfshot.studies.trial:make_until",
            units,
            parallel=parallel,
            max_failures=plan.study.experiment.compute.max_failures,
            on_end=ended,
        )


def _run_trials(
    plan: StudyPlan,
    progress: Progress,
    parallel: int,
    broken: Mapping[str, str],
) -> dict[str, str]:
    """Run the open trials on Ray Tune; returns why each failed one did, by its label."""
    from selfshot.distributed.trials import Stopping, TrialPlan, TrialsFailedError, run_trials

    failures: dict[str, str] = {}
    waiting: list[PlannedTrial] = []
    for trial in plan.open_trials:
        reasons = [f"{name}: {broken[name]}" for name in trial.instances if name in broken]
        if reasons:
            failures[trial.trial.label] = reasons[0]
        else:
            waiting.append(trial)
    # Every point once before any is repeated: a study that is cut short has all of them.
    waiting.sort(key=lambda trial: trial.trial.repeat)
    labels = {trial.key: trial.trial.label for trial in waiting}
    sweep = plan.study.experiment.sweep
    stopping = None
    if sweep.asha is not None:
        stopping = Stopping(plan.study.budgets, sweep.asha.mode, sweep.asha.reduction_factor)
    # Trials that are done are ranked with the others, from what they scored.
    wanted = list(plan.trials) if stopping else waiting
    done = len(plan.trials) - len(plan.open_trials)

    def finished(key: str, result: dict[str, Any]) -> None:
        nonlocal done
        if key not in labels:
            return
        done += 1
        progress.stage(done, labels[key], f"done, {_figures(result)}")

    if not waiting:
        return failures
    with followed(progress, plan.folder / "logs", labels, notes=False):
        try:
            run_trials(
                "selfshot.studies.trial:run_trial",
                [worker_config(plan, trial, sweep.until, trial.key) for trial in wanted],
                TrialPlan(
                    out_dir=plan.folder / "trials",
                    name=plan.study.experiment.name,
                    parallel=parallel,
                    cpus=0.0,
                    max_failures=plan.study.experiment.compute.max_failures,
                    stopping=stopping,
                    sharing=sharing_of(plan.study.experiment),
                ),
                on_result=finished,
            )
        except TrialsFailedError as error:
            failures |= {labels.get(key, key): reason for key, reason in error.failures.items()}
    return failures


def _figures(result: Mapping[str, Any]) -> str:
    rows = result.get("rows")
    if rows:
        return "AP50 " + ", ".join(
            f"{row['supports']}" + (f" {row['shots']}" if row["shots"] else "")
            + (f"+{row['extra']}" if row["extra"] else "") + f" {row['AP50']['mean']:.1f}"
            for row in rows
        )  # fmt: skip
    precision = result.get("retrieval", {}).get("test", {}).get("precision_at")
    if precision:
        return f"precision@5 {100 * precision['5']:.1f}%"
    return f"{sum(entry['seconds'] for entry in result['timings']):.1f} s of stages"


def _listed(plan: StudyPlan) -> list[dict[str, Any]]:
    return [
        {
            "key": trial.key,
            "label": trial.trial.label,
            "case": trial.trial.case,
            "settings": trial.trial.settings,
            "repeat": trial.trial.repeat,
            "stages": list(trial.instances),
        }
        for trial in plan.trials
    ]
