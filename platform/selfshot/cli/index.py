"""`selfshot index`: an index of an experiment's corpus, or of any folder of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfshot.cli.app import OptionalExperiment, Overrides, Resume, app
from selfshot.cli.experiments import loose_settings, refuse_beside, run_until
from selfshot.errors import UserError


@app.command("index")
def index_command(
    experiment: OptionalExperiment = None,
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
        options = {"--embeddings": embeddings, "--out": out}
        refuse_beside(experiment, options, "--embeddings and --out")
        run_until(experiment, overrides, resume, until="index")
        return
    if embeddings is None or out is None:
        raise UserError(
            f"{'--out' if embeddings else '--embeddings'}: missing (allowed: selfshot index "
            "EXPERIMENT.yaml, or selfshot index --embeddings FOLDER --out FOLDER)"
        )
    settings = loose_settings("index", ("index", "compute"), overrides, "--embeddings")
    from selfshot.studies.corpus import index

    index(settings, embeddings=embeddings, out=out)
    print(out)
