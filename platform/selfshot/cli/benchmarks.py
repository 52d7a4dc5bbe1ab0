"""`selfshot benchmark build`: a benchmark of any kind, and its Table 6."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfshot.cli.app import Overrides, Resume, benchmark_app
from selfshot.cli.experiments import check_resume, opened
from selfshot.errors import UserError
from selfshot.files import atomic_folder

if TYPE_CHECKING:
    from selfshot.config.schema import Experiment


@benchmark_app.command("build")
def build(
    experiment: Annotated[
        Path,
        typer.Argument(
            metavar="KIND|EXPERIMENT.yaml",
            help="The kind of benchmark, with --config; or an experiment's file.",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.yaml",
            help="Of a KIND: an experiment's file, or only the keys of its benchmark section.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Also copy the finished benchmark there."),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Build the videos, their split and the fixed pairs, and print their Table 6."""
    loaded = _load(experiment, config, overrides)
    if out is not None:
        _check_out(out)
    from selfshot.studies import run

    check_resume(loaded, experiment, resume)
    made = run.run_experiment(loaded, until="benchmark")
    assert made is not None
    if out is not None:
        _copy(made, out)
    print(out if out is not None else made)
    if (made / "benchmark.json").is_file():
        _print_summary(made)


def _load(what: Path, config: Path | None, overrides: Sequence[str] | None) -> Experiment:
    """The experiment that a kind and its settings, or a file, stand for."""
    from selfshot.config.benchmarks import KINDS

    word = str(what)
    if word in KINDS:
        from selfshot.config.load import load_builder
        from selfshot.config.paths import check_inputs

        if config is None and word != "sprites":
            raise UserError(
                f"--config: missing; benchmark build {word} needs a file with its settings (they "
                "are in docs/guide/benchmarks.md)",
                setting="--config",
            )
        loaded = load_builder(word, config, overrides or ())
        check_inputs(loaded)
        return loaded
    if not what.suffix and not what.exists() and what.name == word:
        from selfshot.config.messages import nearest

        meant = nearest(word, list(KINDS))
        hint = f", did you mean {meant}?" if meant else ""
        raise UserError(
            f"benchmark build: {word} is no kind (one of {', '.join(KINDS)}) and no file{hint}"
        )
    if config is not None:
        raise UserError(
            f"--config: belongs to a KIND, and {what} is an experiment's file; name its kind, or "
            "leave --config out",
            setting="--config",
        )
    with opened(what, overrides) as study:
        return study.experiment


def _check_out(out: Path) -> None:
    """Refuse a folder that holds something: nothing is overwritten."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(
            f"--out: {out} cannot be looked at: {error.strerror}", setting="--out"
        ) from None
    if taken:
        raise UserError(
            f"--out: {out} is there already (allowed: a new or an empty folder)", setting="--out"
        )


def _copy(made: Path, out: Path) -> None:
    """Copies a finished benchmark, whole or not at all."""
    try:
        with atomic_folder(out) as partial:
            shutil.copytree(made, partial, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out: {out} cannot be written: {error.strerror or error}; the benchmark is in "
            f"{made}",
            setting="--out",
        ) from None


def _print_summary(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from selfshot.benchmarks.manifest import load_benchmark
    from selfshot.benchmarks.statistics import table_6

    benchmark = load_benchmark(folder)
    if not benchmark.statistics:
        for name, number in benchmark.counts.items():
            print(f"{name}: {number:,}")
        return
    headings, *rows = table_6(benchmark)
    table = Table(title="Table 6, beside the paper's", title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
