"""`selfshot evaluate`: score an experiment, or two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from selfshot.cli.app import Overrides, Resume, app
from selfshot.cli.experiments import run_until
from selfshot.config.errors import UserError


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
        run_until(experiment, overrides, resume, until="evaluation")
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
