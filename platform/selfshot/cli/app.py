"""The program: its groups, the options that commands share, and how it fails."""

from __future__ import annotations

import ctypes
import enum
import errno
import math
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from selfshot import __version__
from selfshot.cli.stopping import stopping
from selfshot.config.printable import printable
from selfshot.errors import Reported, UserError, full_disk, reported_error

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
corpus_app = typer.Typer(help="List the clips of a corpus.", rich_markup_mode=None)
train_app = typer.Typer(help="Train one of the three networks.", rich_markup_mode=None)
track_app = typer.Typer(help="What MLflow has of the runs.", rich_markup_mode=None)
cluster_app = typer.Typer(help="Look at a Ray cluster.", rich_markup_mode=None)
app.add_typer(benchmark_app, name="benchmark")
app.add_typer(corpus_app, name="corpus")
app.add_typer(train_app, name="train")
app.add_typer(track_app, name="track")
app.add_typer(cluster_app, name="cluster")

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment's file.")
]
OptionalExperiment = Annotated[
    Path | None,
    typer.Argument(
        metavar="[EXPERIMENT.yaml]",
        help="An experiment's file; the stages before are run if need be. Leave it out with the "
        "options of a corpus by itself.",
    ),
]
DEFAULT_ENCODER = "efficientnet_lite0"
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="NAME|FOLDER",
        help=f"Without an experiment: a named encoder, or a trained one's. [{DEFAULT_ENCODER}]",
    ),
]


class Format(enum.StrEnum):
    """What is written for each video."""

    MP4 = "mp4"
    GIF = "gif"
    PNG = "png"


def _checked(name: str, allowed: str, fits: Callable[[float], bool]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not fits(value):
            raise UserError(f"{name}: {value:g} is not allowed ({allowed})", setting=name)
        return value

    return check


Formats = Annotated[
    list[Format] | None,
    typer.Option("--format", help="Repeatable; mp4 and png by default. png: contact sheet."),
]
_finite = _checked("--min-score", "a finite number", math.isfinite)
_positive = _checked("--top", "an integer ≥ 1", lambda value: value >= 1)
_rate = _checked("--fps", "0.01 to 240 frames a second", lambda value: 0.01 <= value <= 240)
MinScore = Annotated[
    float, typer.Option(metavar="S", callback=_finite, help="Leave weaker predictions out.")
]
Top = Annotated[
    int, typer.Option(metavar="N", callback=_positive, help="Predictions of a video at most.")
]
Fps = Annotated[
    float, typer.Option(metavar="F", callback=_rate, help="Frames a second of mp4 and gif.")
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
        for storage that cannot be reached and for a full disk, 130 when stopped by Ctrl-C,
        143 by SIGTERM.
    """
    with stopping() as received:
        try:
            code = app(
                args=list(sys.argv[1:] if arguments is None else arguments),
                prog_name="selfshot",
                standalone_mode=False,
            )
            sys.stdout.flush()
        except BaseException as error:
            # A stop may come out as another error: of a library that it interrupted, or of a
            # process of Ray's that the signal reached too.
            stopped = received or isinstance(error, KeyboardInterrupt)
            code = EXIT_STOPPED if stopped else _exit_code(error)
    if received or code == EXIT_STOPPED:
        _forget_interrupt()
        print("stopped; run the same command to go on", file=sys.stderr)
        return 128 + received[0] if received else EXIT_STOPPED
    return code if isinstance(code, int) else 0


def _forget_interrupt() -> None:
    """Let the exit code count.

    Where the stop came in Python that a library's C code ran, as NumPy and others do while they are
    imported, the interpreter remembers it and ends itself by SIGINT in place of the exit code. It
    forgets when it runs anything that way to its end.
    """
    ctypes.pythonapi.PyRun_SimpleString(b"")


def _exit_code(error: BaseException) -> int:
    """The exit code for what a person can mend, whose message is printed; else it is raised."""
    if isinstance(error, Reported):
        return _fail(reported_error(error) or error)
    if isinstance(error, _usage_error()):
        return _fail(_usage_message(error))
    full = full_disk(error)
    if full is not None:
        return _fail(f"a disk is full ({full}); free some space and run the same command to go on")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _fail(f"{error.filename}: a name that is too long for a file; give a shorter path")
    if isinstance(error, typer.Abort) and error.__cause__ is not None:
        if isinstance(error.__cause__, KeyboardInterrupt):
            return EXIT_STOPPED
        raise error.__cause__  # The command parser makes an Abort of every EOFError.
    # The reader has gone (`selfshot schema | head`): nobody is left to read. Another pipe that
    # broke is the work's own, which is an error like any other.
    if isinstance(error, BrokenPipeError) and _unread(sys.stdout):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    raise error


def _unread(stream: Any) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    watch = select.poll()
    try:
        watch.register(stream.fileno(), 0)
    except (OSError, ValueError):
        return False
    return any(event & select.POLLERR for _, event in watch.poll(0))


def _fail(message: object) -> int:
    print("error:", printable(str(message), kept="\n"), file=sys.stderr)
    return EXIT_USER_ERROR


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
