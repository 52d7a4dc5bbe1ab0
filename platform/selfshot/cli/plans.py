"""`selfshot run --dry-run`: what a run would do, what it would cost, and whether it could."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from selfshot.config.sweep import Study
    from selfshot.studies.estimates import Estimate


def print_plan(study: Study) -> None:
    """Prints the plan of an experiment or of a study; starts nothing.

    Raises:
        UserError: an input is missing, or the machines cannot place what is requested.
    """
    from rich.console import Console

    from selfshot.studies.resources import check_resources

    console = Console()
    estimate = _print_study(study, console) if study.trials else _print_stages(study, console)
    _print_estimate(estimate, console)
    console.print(f"resources: {check_resources(study.experiment)}", highlight=False)


def _print_stages(study: Study, console: Console) -> Estimate:
    from rich.table import Table
    from rich.text import Text

    from selfshot.studies.estimates import estimate_stages
    from selfshot.studies.run import plan_experiment

    experiment = study.experiment
    plans = plan_experiment(experiment)
    estimate = estimate_stages(experiment, [(p.stage, p.status) for p in plans])
    table = Table(title=f"{experiment.name}: the stages", title_justify="left")
    for heading in ("stage", "status", "key"):
        table.add_column(heading, no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("path", overflow="fold")
    for plan, part in zip(plans, estimate.parts, strict=True):
        cells = (plan.stage, plan.status, plan.key, part.time, plan.stored or plan.path)
        table.add_row(*(Text(str(one)) for one in cells))
    console.print(table)
    return estimate


def _print_study(study: Study, console: Console) -> Estimate:
    from rich.table import Table
    from rich.text import Text

    from selfshot.studies.estimates import estimate_study
    from selfshot.studies.sweeping import plan_study

    plan = plan_study(study)
    estimate = estimate_study(plan)
    stages = Table(title=f"{study.experiment.name}: the stages", title_justify="left")
    for heading in ("stage", "results", "done", "to make", "shared", "time of one"):
        stages.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    shared = {instance.id for instance in plan.shared()}
    names = list(dict.fromkeys(instance.stage for instance in plan.instances.values()))
    times = {part.stage: part.time for part in estimate.parts if part.status != "done"}
    for name in names:
        instances = [instance for instance in plan.instances.values() if instance.stage == name]
        done = sum(instance.status == "done" for instance in instances)
        once = sum(instance.id in shared for instance in instances)
        row = (name, len(instances), done, len(instances) - done, once, times.get(name, ""))
        stages.add_row(*(Text(str(one)) for one in row))
    console.print(stages)
    trials = Table(title=f"{len(plan.trials)} trials", title_justify="left")
    for heading in ("trial", "status", "to make", "key"):
        trials.add_column(heading, overflow="fold" if heading == "trial" else "ellipsis")
    for trial in plan.trials:
        left = [
            plan.instances[name]
            for name in trial.instances
            if plan.instances[name].status != "done"
        ]
        alone = [instance.stage for instance in left if instance.id not in shared]
        status = "done" if trial.done else "to do"
        words = "" if trial.done else ", ".join(alone) or "nothing of its own"
        trials.add_row(*(Text(one) for one in (trial.trial.label, status, words, trial.key)))
    console.print(trials)
    return estimate


def _print_estimate(estimate: Estimate, console: Console) -> None:
    for line in estimate.lines():
        console.print(line, highlight=False, soft_wrap=True)
