"""`selfshot corpus build` lists clips; `selfshot embed` makes vectors of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from selfshot.cli.app import (
    DEFAULT_ENCODER,
    EncoderName,
    OptionalExperiment,
    Overrides,
    Resume,
    app,
    corpus_app,
)
from selfshot.cli.experiments import loose_settings, refuse_beside, run_until
from selfshot.errors import UserError


@corpus_app.command("build")
def build_command(
    out: Annotated[
        str, typer.Option("--out", metavar="FOLDER", help="Of the manifest; or an address.")
    ],
    videos: Annotated[
        str | None,
        typer.Option("--videos", metavar="FOLDER", help="Of videos, at any depth; or an address."),
    ] = None,
    uris: Annotated[
        Path | None,
        typer.Option("--uris", metavar="FILE", help="A path or an address on each line."),
    ] = None,
    segments: Annotated[
        Path | None,
        typer.Option(
            "--segments", metavar="CSV", help="With columns uri, start_s and, if wanted, end_s."
        ),
    ] = None,
    tars: Annotated[
        str | None,
        typer.Option(
            "--tars", metavar="FOLDER", help="Of tars with videos inside; or an address."
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="FOLDER",
            help="Of --uris and --segments: where paths start. [the file's own folder]",
        ),
    ] = None,
    clip_s: Annotated[
        float | None,
        typer.Option(
            "--clip-s", metavar="SECONDS", help="Cut longer videos into clips of this length."
        ),
    ] = None,
    shots: Annotated[
        bool, typer.Option("--shots", help="Cut where one shot ends and the next begins.")
    ] = False,
    segment_s: Annotated[
        float,
        typer.Option(
            "--segment-s", metavar="SECONDS", help="Of --segments: where a line names no end."
        ),
    ] = 5.0,
    hashed: Annotated[
        bool, typer.Option("--hash/--no-hash", help="Hash the videos' bytes, or do not read them.")
    ] = True,
    items_per_file: Annotated[
        int,
        typer.Option("--items-per-file", min=1, help="Videos listed in one Parquet file."),
    ] = 10_000,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Videos looked at together. [two a core]"),
    ] = None,
) -> None:
    """List the clips of a corpus in a manifest, which selfshot embed reads.

    Killed, it goes on where it was: give the same command again.
    """
    sources = {"videos": videos, "uris": uris, "segments": segments, "tars": tars}
    chosen = [(kind, str(where)) for kind, where in sources.items() if where is not None]
    if len(chosen) != 1:
        raise UserError(
            f"{len(chosen)} sources (allowed: one of --videos, --uris, --segments or --tars)"
        )
    for name, value in (("--clip-s", clip_s), ("--segment-s", segment_s)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(
                f"{name}: {value} is not allowed (seconds, a number above 0)", setting=name
            )
    from selfshot.benchmarks.corpus_build import Cutting
    from selfshot.studies import corpus
    from selfshot.studies.progress import Progress

    corpus.build(
        *chosen[0],
        root=root,
        out=out,
        segment_s=segment_s,
        cutting=Cutting(clip_s=clip_s, shots=shots, hashed=hashed),
        items_per_file=items_per_file,
        workers=workers,
        progress=Progress(1),
    )
    print(out)


@app.command("embed")
def embed_command(
    experiment: OptionalExperiment = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            metavar="FOLDER|MANIFEST",
            help="A corpus by itself: a folder of videos; or the Parquet file or folder of its "
            "manifest, or its address.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Of --corpus: where the shards go; or an address."
        ),
    ] = None,
    encoder: EncoderName = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="FOLDER",
            help="Of --corpus: what the manifest's paths start at, if it is not as it says.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="HEIGHTxWIDTH",
            help="Of --corpus: of a frame, if the encoder does not say.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="HOST:PORT", help="Of --corpus: a Ray cluster; or auto."
        ),
    ] = None,
    retry_quarantined: Annotated[
        bool,
        typer.Option(
            "--retry-quarantined",
            help="Of --corpus: embed the shards again that hold quarantined clips.",
        ),
    ] = False,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Embed the corpus of an experiment, or any corpus with --corpus and --out.

    Killed, it goes on where it was: give the same command again.
    """
    of_corpus = {
        "--out": out,
        "--encoder": encoder,
        "--root": root,
        "--size": size,
        "--address": address,
        "--retry-quarantined": retry_quarantined or None,
    }
    if experiment is not None:
        refuse_beside(experiment, {"--corpus": corpus, **of_corpus}, "--corpus and --out")
        run_until(experiment, overrides, resume, until="embeddings")
        return
    if corpus is None or out is None:
        raise UserError(
            f"{'--out' if corpus else '--corpus'}: missing (allowed: selfshot embed "
            "EXPERIMENT.yaml, or selfshot embed --corpus MANIFEST --out FOLDER)"
        )
    settings = loose_settings("embed", ("embedding", "compute"), overrides, "--corpus", address)
    frame = _frame_size(size)
    from selfshot.studies.corpus import embed

    embed(
        settings,
        corpus=corpus,
        out=out,
        encoder=encoder or DEFAULT_ENCODER,
        root=root,
        size=frame,
        retry_quarantined=retry_quarantined,
    )
    print(out)


def _frame_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})", text)
    if match is None:
        raise UserError(
            f"--size: {text!r} is not allowed (height × width, as 224x224)", setting="--size"
        )
    return int(match[1]), int(match[2])
