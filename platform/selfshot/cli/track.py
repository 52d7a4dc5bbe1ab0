"""`selfshot track sync`: what MLflow was not told while its server was away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfshot.cli.app import track_app
from selfshot.errors import UserError


@track_app.callback()
def _track() -> None:
    pass


@track_app.command("sync")
def sync(
    output: Annotated[
        Path,
        typer.Argument(metavar="[OUTPUT]", help="The output folder of the runs, such as runs."),
    ] = Path("runs"),
) -> None:
    """Send what is kept in OUTPUT/unsent to the MLflow servers that it was meant for."""
    if not output.is_dir():
        raise UserError(f"track sync: {output} is not there (allowed: a run's output folder)")
    from selfshot.distributed.tracking import send_left_over

    try:
        sent = send_left_over(output)
    except Exception as error:  # whatever it is, the messages stay where they are
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(
            f"track sync: {reason}; what is not sent stays in {output / 'unsent'}, so try again "
            "when the server answers"
        ) from None
    print(f"{sent} messages sent" if sent else "nothing is left to send")
