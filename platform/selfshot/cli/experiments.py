"""Commands on an experiment: run it whole, or up to one stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfshot.cli.app import ExperimentFile, Overrides, Resume, app, train_app
from selfshot.config.errors import UserError

if TYPE_CHECKING:
    from selfshot.config.schema import Experiment


def load_checked(path: Path, overrides: Sequence[str] | None) -> Experiment:
    """An experiment whose input files are there."""
    from selfshot.config.load import load_experiment
    from selfshot.config.paths import check_inputs

    experiment = load_experiment(path, overrides or ())
    check_inputs(experiment)
    return experiment


def run_until(
    path: Path, overrides: Sequence[str] | None, resume: bool, until: str | None = None
) -> None:
    """Runs an experiment up to and including a stage."""
    experiment = load_checked(path, overrides)
    from selfshot.studies import run

    check_resume(experiment, path, resume)
    made = run.run_experiment(experiment, until=until)
    if made is not None:
        print(made)


def check_resume(experiment: Experiment, path: Path, resume: bool) -> None:
    """Refuses --resume where there is nothing to go on with."""
    from selfshot.studies import run

    if resume and all(plan.status == "to do" for plan in run.plan_experiment(experiment)):
        raise UserError(
            f"--resume: no stage of {path} is begun in {experiment.output}; leave --resume out "
            "to start it, or check --set and output, which decide what counts as the same run"
        )


@app.command("run")
def run_command(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages and what is done; run nothing.")
    ] = False,
    resume: Resume = False,
) -> None:
    """Run every stage that is not done, then write the report."""
    if dry_run:
        _print_plan(load_checked(experiment, overrides))
    else:
        run_until(experiment, overrides, resume)


@app.command()
def validate(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Check an experiment and the files it reads, and start nothing."""
    checked = load_checked(experiment, overrides)
    print(f"{experiment}: valid ({checked.name}, benchmark {checked.benchmark.kind})")


@app.command()
def schema() -> None:
    """Print the JSON schema of experiments, for editors."""
    from selfshot.config.load import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@app.command()
def report(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Write the report again from the stages that are done."""
    loaded = load_checked(experiment, overrides)
    from selfshot.studies import run

    print(run.report_experiment(loaded))


@app.command()
def verify(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Hash the experiment's stored files again; exit with 1 if one has changed."""
    loaded = load_checked(experiment, overrides)
    from selfshot.studies import run

    problems = run.verify_experiment(loaded)
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print("every stored file is as it was written")


def _stage_command(group: typer.Typer, name: str, stage: str, words: str) -> Callable[..., None]:
    """Adds a command that runs an experiment up to and including one stage."""

    def command(
        experiment: ExperimentFile, overrides: Overrides = None, resume: Resume = False
    ) -> None:
        run_until(experiment, overrides, resume, until=stage)

    group.command(name, help=f"{words} Stages before it are run if need be.")(command)
    return command


_stage_command(train_app, "backbone", "backbone", "Pretrain the network of frames.")
_stage_command(train_app, "encoder", "encoder", "Train the video encoder without labels.")
_stage_command(train_app, "vis", "vis", "Train the video instance segmentation transformer.")


def _print_plan(experiment: Experiment) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from selfshot.studies import run

    table = Table(title=f"{experiment.name}: the stages", title_justify="left")
    for heading in ("stage", "status", "key"):
        table.add_column(heading, no_wrap=True)
    table.add_column("path", overflow="fold")
    for plan in run.plan_experiment(experiment):
        table.add_row(*(Text(str(one)) for one in (plan.stage, plan.status, plan.key, plan.path)))
    Console().print(table)
