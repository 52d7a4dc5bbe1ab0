"""`selfshot predict`: a trained experiment on a video of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfshot.cli.app import (
    ExperimentFile,
    Format,
    Formats,
    Fps,
    Overrides,
    Top,
    app,
)
from selfshot.cli.experiments import opened
from selfshot.errors import UserError


@app.command()
def predict(
    experiment: ExperimentFile,
    video: Annotated[
        Path, typer.Option("--video", metavar="FILE", help="A video, or a folder of its frames.")
    ],
    supports: Annotated[
        list[Path] | None,
        typer.Option(
            "--supports",
            metavar="FILE",
            help="A video, an image or a folder of frames that shows the same class; repeatable. "
            "Without any they are "
            "retrieved from the experiment's corpus.",
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            metavar="FOLDER",
            help="Clips of your own, from which supports are retrieved; embedded once.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", metavar="CLIP", help="A clip that is passed over; repeatable."
        ),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option("--shots", min=1, help="How many are retrieved; else the most of the run."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where results and pictures go.")
    ] = Path("predicted"),
    every: Annotated[
        int, typer.Option("--every", min=1, help="Look at each so many-th frame only.")
    ] = 1,
    overlap: Annotated[
        int | None,
        typer.Option("--overlap", min=1, help="Frames that consecutive windows share at least."),
    ] = None,
    min_score: Annotated[
        float, typer.Option("--min-score", min=0, max=1, help="Of a track, to be kept and drawn.")
    ] = 0.1,
    top: Top = 5,
    fps: Fps = 8.0,
    formats: Formats = None,
    attention: Annotated[
        bool,
        typer.Option("--attention", help="Draw where the first window's instances look, too."),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Segment and track in a video what it has in common with its supports."""
    retrieved = {"--shots": shots, "--corpus": corpus, "--without": without}
    for name, value in retrieved.items():
        if supports and value:
            raise UserError(
                f"predict: {name} is for supports that are retrieved; leave it, or --supports",
                setting=name,
            )
    from selfshot.studies.predicting import RESULTS, Supports, Wanted
    from selfshot.studies.predicting import predict as run

    with opened(experiment, overrides) as study:
        count = run(
            study.experiment,
            video,
            out,
            Wanted(
                overlap=overlap,
                every=every,
                min_score=min_score,
                top=top,
                fps=fps,
                formats=[str(one) for one in formats or (Format.MP4, Format.PNG)],
                attention=attention,
            ),
            supports=Supports(supports or (), corpus, shots, without or ()),
            on_message=lambda text: print(text, file=sys.stderr),
        )
    print(f"{count} tracks: {out / RESULTS} and {out / 'index.html'}")
