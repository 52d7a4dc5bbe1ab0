"""`selfshot index`: an index of an experiment's corpus, or of any folder of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfshot.cli.app import Overrides, Resume, app
from selfshot.cli.experiments import run_until
from selfshot.errors import UserError


@app.command("index")
def index_command(
    experiment: Annotated[
        Path | None,
        typer.Argument(
            metavar="[EXPERIMENT.yaml]",
            help="An experiment's file; the stages before are run if need be. Leave it out with "
            "--embeddings.",
        ),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--embeddings", metavar="FOLDER", help="Of shards, as selfshot embed writes them."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Of --embeddings: where the index goes."),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Index the embeddings of an experiment, or any with --embeddings and --out.

    Killed, it goes on where it was: give the same command again.
    """
    if experiment is not None:
        given = [name for name, value in (("--embeddings", embeddings), ("--out", out)) if value]
        if given:
            raise UserError(
                f"{given[0]}: does not go with an experiment's file, here {experiment}; give "
                "either the file, with --set for its settings, or --embeddings and --out"
            )
        run_until(experiment, overrides, resume, until="index")
        return
    if embeddings is None or out is None:
        raise UserError(
            f"{'--out' if embeddings else '--embeddings'}: missing (allowed: selfshot index "
            "EXPERIMENT.yaml, or selfshot index --embeddings FOLDER --out FOLDER)"
        )
    from selfshot.config.load import parse_experiment

    for change in overrides or ():
        if change.partition(".")[0] not in ("index", "compute"):
            raise UserError(
                f"--set {change}: with --embeddings only settings of index and compute are read"
            )
    settings = parse_experiment("name: index", "the defaults", overrides or ())
    from selfshot.studies.corpus import index

    index(settings, embeddings=embeddings, out=out)
    print(out)
