"""The words that a person types.

Nothing heavy is imported at the top: `selfshot validate` answers before Ray or torch would have
been loaded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfshot import __version__
from selfshot.config.errors import UserError

if TYPE_CHECKING:
    from selfshot.config.schema import Experiment

EXIT_USER_ERROR = 2
EXIT_STOPPED = 130

app = typer.Typer(
    name="selfshot",
    help="Self-shot video instance segmentation, from a laptop to a Ray cluster.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
benchmark_app = typer.Typer(help="Build a benchmark's videos and splits.", rich_markup_mode=None)
train_app = typer.Typer(help="Train one of the three networks.", rich_markup_mode=None)
app.add_typer(benchmark_app, name="benchmark")
app.add_typer(train_app, name="train")

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment's file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, as in --set vis.optimiser.steps=100; may be repeated.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with an earlier run, and fail if there is none. Every run reuses and resumes "
        "what is there, with or without this.",
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        arguments: The words after `selfshot`; those of this process by default.

    Returns:
        The exit code: 0, 1 for findings of `verify`, 2 for a mistake that the person can mend,
        130 when stopped by Ctrl-C.
    """
    try:
        code = app(
            args=list(sys.argv[1:] if arguments is None else arguments),
            prog_name="selfshot",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except UserError as error:
        return _fail(_innermost(error))
    except _usage_error() as error:
        return _fail(_usage_message(error))
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_STOPPED
    except BrokenPipeError:
        # The reader has gone (`selfshot schema | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if code == EXIT_STOPPED:
        print("stopped; run the same command to go on", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _fail(message: object) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def _innermost(error: BaseException) -> BaseException:
    """A mistake found by a remote worker arrives wrapped together with that worker's traceback."""
    cause = getattr(error, "cause", None)
    return _innermost(cause) if isinstance(cause, UserError) else error


def _usage_error() -> type[Exception]:
    """The base of the command parser's own errors, wherever this typer keeps it."""
    bases = typer.BadParameter.__mro__
    return next(base for base in bases if base.__name__ == "ClickException")


def _usage_message(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "selfshot"
    message = error.format_message().rstrip(".")
    if message == "Missing command" and context:
        message += f", one of {', '.join(context.command.list_commands(context))}"
    return f"{message} (see {command} --help)"


def _load(path: Path, overrides: Sequence[str] | None) -> Experiment:
    from selfshot.config.load import load_experiment
    from selfshot.config.paths import check_inputs

    experiment = load_experiment(path, overrides or ())
    check_inputs(experiment)
    return experiment


def _run(
    path: Path, overrides: Sequence[str] | None, resume: bool, until: str | None = None
) -> None:
    """Runs an experiment up to and including a stage."""
    experiment = _load(path, overrides)
    from selfshot.studies import run

    if resume and all(plan.status == "to do" for plan in run.plan_experiment(experiment)):
        raise UserError(
            f"--resume: no stage of {path} is begun in {experiment.output}; leave --resume out "
            "to start it, or check --set and output, which decide what counts as the same run"
        )
    made = run.run_experiment(experiment, until=until)
    if made is not None:
        print(made)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"selfshot {__version__}")
        raise typer.Exit


@app.callback()
def _selfshot(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


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
        _print_plan(_load(experiment, overrides))
    else:
        _run(experiment, overrides, resume)


@app.command()
def validate(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Check an experiment and the files it reads, and start nothing."""
    checked = _load(experiment, overrides)
    print(f"{experiment}: valid ({checked.name}, benchmark {checked.benchmark.kind})")


@app.command()
def schema() -> None:
    """Print the JSON schema of experiments, for editors."""
    from selfshot.config.load import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@app.command()
def report(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Write the report again from the stages that are done."""
    loaded = _load(experiment, overrides)
    from selfshot.studies import run

    print(run.report_experiment(loaded))


@app.command()
def verify(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Hash the experiment's stored files again; exit with 1 if one has changed."""
    loaded = _load(experiment, overrides)
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
        _run(experiment, overrides, resume, until=stage)

    group.command(name, help=f"{words} Stages before it are run if need be.")(command)
    return command


_stage_command(benchmark_app, "build", "benchmark", "Build the videos and their splits.")
_stage_command(train_app, "backbone", "backbone", "Pretrain the network of frames.")
_stage_command(train_app, "encoder", "encoder", "Train the video encoder without labels.")
_stage_command(train_app, "vis", "vis", "Train the video instance segmentation transformer.")
_stage_command(app, "embed", "embeddings", "Embed the corpus.")
_stage_command(app, "index", "index", "Index the embeddings.")


@app.command()
def evaluate(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXPERIMENT.yaml]", help="The experiment's file.")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    ground_truth: Annotated[
        Path | None,
        typer.Option("--ground-truth", metavar="G.json", help="Annotations, YouTube-VIS JSON."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="R.json", help="Predictions, YouTube-VIS JSON."),
    ] = None,
    class_agnostic: Annotated[
        bool, typer.Option("--class-agnostic", help="Score all categories as one.")
    ] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Also write the figures here.")
    ] = None,
) -> None:
    """Score an experiment, or any results file against any annotations."""
    files = ground_truth is not None or results is not None
    if experiment is not None:
        if files or class_agnostic or json_out is not None:
            raise UserError(
                "evaluate: EXPERIMENT.yaml and --ground-truth, --results, --class-agnostic or "
                "--json exclude each other; give an experiment, or two files"
            )
        _run(experiment, overrides, resume, until="evaluation")
    elif ground_truth is None or results is None:
        missing = "--results" if ground_truth else "--ground-truth" if results else None
        raise UserError(
            f"evaluate: {missing} is missing; give both files"
            if missing
            else "evaluate: nothing to score; give EXPERIMENT.yaml, or --ground-truth and --results"
        )
    elif overrides or resume:
        raise UserError("evaluate: --set and --resume belong to EXPERIMENT.yaml, not to two files")
    else:
        _evaluate_files(ground_truth, results, class_agnostic, json_out)


def _evaluate_files(
    ground_truth: Path, results: Path, class_agnostic: bool, json_out: Path | None
) -> None:
    for option, path in (("--ground-truth", ground_truth), ("--results", results)):
        if not path.is_file():
            raise UserError(f"{option}: {path} is no file (allowed: a YouTube-VIS JSON)")
    if json_out is not None and (json_out.is_dir() or not json_out.parent.is_dir()):
        raise UserError(f"--json: {json_out} cannot be written (allowed: a file in a folder)")
    from selfshot.data.ytvis import load_annotations, load_results
    from selfshot.evaluation.video_ap import evaluate_tracks

    annotations = load_annotations(ground_truth)
    predictions = load_results(results, annotations)
    scores = evaluate_tracks(annotations, predictions, class_agnostic=class_agnostic)
    _print_scores(scores, dict(annotations.categories))
    if json_out is not None:
        try:
            json_out.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json: {json_out} cannot be written: {error.strerror}") from None


def _print_scores(scores: dict[str, Any], categories: dict[int, str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def percent(value: float) -> str:
        return "–" if value == -1 else f"{100 * value:.1f}"

    table = Table(title="Video AP, percent", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        if isinstance(value, dict):
            for category, one in value.items():
                label = f"AP50 {categories.get(int(category), category)}"
                table.add_row(Text(label), percent(float(one)))
        else:
            table.add_row(Text(name), percent(float(value)))
    Console().print(table)


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


if __name__ == "__main__":
    sys.exit(main())
