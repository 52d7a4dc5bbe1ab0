"""`selfshot evaluate`: score an experiment, or two files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfshot.cli.app import Overrides, Resume, app
from selfshot.cli.experiments import run_until
from selfshot.cli.reading import ReadingProgress
from selfshot.cli.score_tables import print_quarantined, print_tables
from selfshot.errors import UserError

if TYPE_CHECKING:
    from selfshot.data.ytvis import Annotations, Prediction, Quarantined

DEFAULT_RESAMPLES = 1000


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
    breakdown: Annotated[
        bool,
        typer.Option(
            "--breakdown",
            help="Also by instances, classes and length of a video, area and absence of a track.",
        ),
    ] = False,
    resamples: Annotated[
        int | None,
        typer.Option(
            "--bootstrap",
            metavar="N",
            min=1,
            help="Also 95% intervals, by drawing the videos N times again.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="OTHER.json",
            help="Also the interval of the difference to these predictions.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the draws of --bootstrap and --compare.")
    ] = 0,
    skip_invalid: Annotated[
        bool,
        typer.Option("--skip-invalid", help="Quarantine wrong entries, count and list them."),
    ] = False,
) -> None:
    """Score an experiment, or any results file against any annotations."""
    of_files = {
        "--ground-truth": ground_truth is not None,
        "--results": results is not None,
        "--class-agnostic": class_agnostic,
        "--json": json_out is not None,
        "--breakdown": breakdown,
        "--bootstrap": resamples is not None,
        "--compare": compare is not None,
        "--skip-invalid": skip_invalid,
    }
    if experiment is not None:
        given = [option for option, is_given in of_files.items() if is_given]
        if given:
            raise UserError(
                f"evaluate: EXPERIMENT.yaml and {', '.join(given)} exclude each other; give an "
                "experiment, or two files",
                setting=given[0],
            )
        run_until(experiment, overrides, resume, until="evaluation")
    elif ground_truth is None or results is None:
        missing = "--results" if ground_truth else "--ground-truth" if results else None
        said = f"{missing} is missing; give both files"
        if missing is None:
            said = "nothing to score; give EXPERIMENT.yaml, or --ground-truth and --results"
        raise UserError(f"evaluate: {said}", setting=missing)
    elif overrides or resume:
        raise UserError(
            "evaluate: --set and --resume belong to EXPERIMENT.yaml, not to two files",
            setting="--set" if overrides else "--resume",
        )
    else:
        _check_files(ground_truth, results, compare, json_out)
        files = _read_files(ground_truth, results, compare, skip_invalid)
        if compare is not None and resamples is None:
            resamples = DEFAULT_RESAMPLES
        scores = _score(files, class_agnostic, breakdown, resamples, seed)
        print_tables(scores, dict(files.annotations.categories))
        if skip_invalid:
            print_quarantined(files.quarantined)
            scores["quarantined"] = [
                {"file": str(path)} | dataclasses.asdict(one) for path, one in files.quarantined
            ]
        if json_out is not None:
            _write_json(json_out, scores)


@dataclasses.dataclass(frozen=True)
class _Files:
    """What was read, and what was quarantined on the way."""

    annotations: Annotations
    predictions: list[Prediction]
    other: list[Prediction] | None
    quarantined: list[tuple[Path, Quarantined]]


def _check_files(
    ground_truth: Path, results: Path, compare: Path | None, json_out: Path | None
) -> None:
    named = {"--ground-truth": ground_truth, "--results": results, "--compare": compare}
    for option, path in named.items():
        if path is not None and not path.is_file():
            raise UserError(
                f"{option}: {path} is no file (allowed: a YouTube-VIS JSON)", setting=option
            )
    if json_out is not None and (json_out.is_dir() or not json_out.parent.is_dir()):
        raise UserError(
            f"--json: {json_out} cannot be written (allowed: a file in a folder)", setting="--json"
        )


def _read_files(
    ground_truth: Path, results: Path, compare: Path | None, skip_invalid: bool
) -> _Files:
    from selfshot.data.ytvis import EntryError, load_annotations, load_results

    noted: list[tuple[Path, list[Quarantined]]] = []

    def note(path: Path) -> list[Quarantined] | None:
        noted.append((path, []))
        return noted[-1][1] if skip_invalid else None

    def read_results(path: Path) -> list[Prediction]:
        with ReadingProgress(path) as progress:
            return load_results(path, truth, quarantined=note(path), watch=progress.watch)

    try:
        with ReadingProgress(ground_truth) as progress:
            truth = load_annotations(
                ground_truth, quarantined=note(ground_truth), watch=progress.watch
            )
        predictions = read_results(results)
        other = None if compare is None else read_results(compare)
    except EntryError as error:
        raise UserError(f"{error}, or quarantine it with --skip-invalid") from None
    quarantined = [(path, one) for path, entries in noted for one in entries]
    return _Files(truth, predictions, other, quarantined)


def _score(
    files: _Files, class_agnostic: bool, breakdown: bool, resamples: int | None, seed: int
) -> dict[str, Any]:
    from selfshot.evaluation.bootstrap import bootstrap
    from selfshot.evaluation.breakdown import break_down
    from selfshot.evaluation.matches import compare_tracks
    from selfshot.evaluation.video_ap import score_tracks

    compared = compare_tracks(files.annotations, files.predictions)
    scores = score_tracks(compared, class_agnostic=class_agnostic)
    wanted = [track for track in files.annotations.tracks if not track.iscrowd]
    without = [track.id for track in wanted if not track.has_pixels]
    scores["ground_truth"] = {"instances": len(wanted), "without_pixels": without}
    if breakdown:
        scores["breakdown"] = break_down(compared, class_agnostic=class_agnostic)
    if resamples is not None:
        other = None if files.other is None else compare_tracks(files.annotations, files.other)
        scores["bootstrap"] = bootstrap(
            compared, other, class_agnostic=class_agnostic, resamples=resamples, seed=seed
        )
    return scores


def _write_json(path: Path, scores: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--json: {path} cannot be written: {error.strerror}", setting="--json"
        ) from None
