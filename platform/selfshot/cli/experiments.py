"""Commands on an experiment: run it whole, or up to one stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfshot.cli.app import ExperimentFile, Overrides, Resume, app, train_app
from selfshot.config.printable import printable
from selfshot.errors import UserError

if TYPE_CHECKING:
    from selfshot.config.schema import Experiment
    from selfshot.config.sweep import Study


@contextmanager
def opened(
    path: Path, overrides: Sequence[str] | None, *, trials: bool = False
) -> Iterator[Study]:
    """An experiment whose input files are there, and if wanted every trial of its sweep.

    Mistakes that the block finds get the lines of their settings.
    """
    from selfshot.config.messages import located
    from selfshot.config.paths import check_inputs
    from selfshot.config.sweep import load_study

    study = load_study(path, overrides or (), trials=trials)
    with located(study.data):
        check_inputs(*study.experiments, data=study.data)
        yield study


def run_until(
    path: Path, overrides: Sequence[str] | None, resume: bool, until: str | None = None
) -> None:
    """Runs an experiment up to and including a stage."""
    with opened(path, overrides) as study:
        _run(study.experiment, path, resume, until)


def _run(experiment: Experiment, path: Path, resume: bool, until: str | None = None) -> None:
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
            "to start it, or check --set and output, which decide what counts as the same run",
            setting="--resume",
        )


def refuse_beside(experiment: Path, options: Mapping[str, object], instead: str) -> None:
    """Refuse options that do not go with an experiment's file."""
    for name, value in options.items():
        if value:
            raise UserError(
                f"{name}: does not go with an experiment's file, here {experiment}; give either "
                f"the file, with --set for its settings, or {instead}",
                setting=name,
            )


def loose_settings(
    name: str,
    sections: Collection[str],
    overrides: Sequence[str] | None,
    option: str,
    address: str | None = None,
) -> Experiment:
    """The defaults with changes, of which only some sections are read."""
    from selfshot.config.load import parse_experiment

    for change in overrides or ():
        if change.partition(".")[0] not in sections:
            raise UserError(
                f"--set {change}: with {option} only settings of {' and '.join(sections)} are read",
                setting="--set",
            )
    joined = [] if address is None else [f"compute.address={address}"]
    return parse_experiment(f"name: {name}", "the defaults", [*(overrides or ()), *joined])


@app.command("run")
def run_command(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages and what is done; run nothing.")
    ] = False,
    resume: Resume = False,
) -> None:
    """Run every stage that is not done, or every trial of a sweep, then write the report."""
    with opened(experiment, overrides, trials=True) as study:
        if dry_run:
            from selfshot.cli.plans import print_plan

            print_plan(study)
        elif study.trials:
            run_whole_study(study, experiment, resume)
        else:
            _run(study.experiment, experiment, resume)


def run_whole_study(study: Study, path: Path, resume: bool) -> None:
    """Runs a study; exits with 1 if trials failed, after all others and the report."""
    from selfshot.studies import study as studies
    from selfshot.studies.sweeping import plan_study

    if resume:
        plan = plan_study(study)
        begun = any(instance.status != "to do" for instance in plan.instances.values())
        if not begun and len(plan.open_trials) == len(plan.trials):
            raise UserError(
                f"--resume: no trial of {path} is begun in {study.experiment.output}; leave "
                "--resume out to start it, or check --set and output",
                setting="--resume",
            )
    made = studies.run_study(study)
    print(made.report)
    if made.failures:
        raise typer.Exit(1)


@app.command()
def validate(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Check an experiment, every trial of its sweep and the files it reads, and start nothing."""
    from selfshot.studies.settings import network_lines

    with opened(experiment, overrides, trials=True) as study:
        of_files = [one for one in study.experiments if one.benchmark.kind != "sprites"]
        if of_files:
            from selfshot.benchmarks.inputs import check_contents, distinct_inputs

            for one in distinct_inputs(of_files):
                check_contents(one, lambda text: print(printable(text), file=sys.stderr))
        networks = dict.fromkeys(
            line for one in study.experiments for line in network_lines(one.encoder)
        )
    for line in networks:
        print(line)
    checked = study.experiment
    trials = f", {len(study.trials)} trials" if study.trials else ""
    print(f"{experiment}: valid ({checked.name}, benchmark {checked.benchmark.kind}{trials})")


@app.command()
def schema() -> None:
    """Print the JSON schema of experiments, for editors."""
    from selfshot.config.load import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@app.command()
def report(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Write the report again from the stages that are done, or a study's from its trials."""
    with opened(experiment, overrides, trials=True) as study:
        if study.trials:
            from selfshot.studies.study import report_study

            print(report_study(study))
        else:
            from selfshot.studies.run import report_experiment

            print(report_experiment(study.experiment))


@app.command()
def path(
    experiment: ExperimentFile,
    stage: Annotated[str, typer.Argument(help="Such as vis or encoder.")],
    overrides: Overrides = None,
) -> None:
    """Print the folder of a finished stage, such as that of the trained vis."""
    from selfshot.studies.finished import stage_folders
    from selfshot.studies.stages import STAGES

    with opened(experiment, overrides) as study:
        names = [one.name for one in STAGES if one.wanted(study.experiment)]
        if stage not in names:
            raise UserError(f"STAGE: {stage} is not allowed ({', '.join(names)})", setting="STAGE")
        print(stage_folders(study.experiment, [stage])[stage])


@app.command()
def verify(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Hash the experiment's stored files again; exit with 1 if one has changed."""
    with opened(experiment, overrides) as study:
        from selfshot.studies.run import verify_experiment

        problems = verify_experiment(study.experiment)
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
