"""`selfshot search`: the clips of a corpus that are nearest to a video or an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfshot.cli.app import DEFAULT_ENCODER, EncoderName, OptionalExperiment, Overrides, app
from selfshot.cli.experiments import opened
from selfshot.config.printable import printable
from selfshot.errors import UserError


@app.command()
def search(
    experiment: OptionalExperiment = None,
    query: Annotated[
        list[Path] | None,
        typer.Option(
            "--query", metavar="FILE", help="A video, an image or a folder of frames; repeatable."
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option("--index", metavar="FOLDER", help="As selfshot index --embeddings made it."),
    ] = None,
    encoder: EncoderName = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            metavar="MANIFEST",
            help="Of --index: the corpus, to print paths and draw frames; needless "
            "after selfshot embed of a folder of videos.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="Clips of each query.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where results.json and nearest.png go."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print, and with --out draw, the clips of a corpus that are nearest to a query."""
    if not query:
        raise UserError(
            "--query: missing (allowed: a video, an image or a folder of frames)", setting="--query"
        )
    if (experiment is None) == (index is None):
        raise UserError("search: give an experiment's file, or --index; one of them")
    of_index = {"--encoder": encoder, "--corpus": corpus}
    for name, value in of_index.items():
        if experiment is not None and value is not None:
            raise UserError(
                f"{name}: {value} goes with --index, not with an experiment's file", setting=name
            )
    if index is not None and overrides:
        raise UserError(
            f"--set {overrides[0]}: goes with an experiment's file, not with --index",
            setting="--set",
        )
    from selfshot.studies import searching

    if experiment is not None:
        with opened(experiment, overrides) as study:
            result = searching.search_experiment(
                study.experiment, query, count, lambda text: print(text, file=sys.stderr)
            )
    else:
        assert index is not None
        result = searching.search_index(
            index, query, count, encoder=encoder or DEFAULT_ENCODER, corpus=corpus
        )
    found, manifest = result
    for one in found:
        print(printable(one.name))
        for hit in one.hits:
            times = "" if hit.start_s is None else f"  {hit.start_s:g} s"
            times += "" if hit.end_s is None else f" to {hit.end_s:g} s"
            print(printable(f"  {hit.score:6.3f}  {hit.clip_id}  {hit.uri or ''}{times}".rstrip()))
    if out is not None:
        searching.write_results(out, found, manifest)
        drawn = "" if manifest is None else f" and {out / searching.SHEET}"
        print(f"{out / searching.RESULTS}{drawn}")
