"""`selfshot track sync`: what MLflow lacks because its server was away or refused it."""

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
    """Log what the MLflow servers of the runs in OUTPUT lack of them."""
    if not output.is_dir():
        raise UserError(f"track sync: {output} is not there (allowed: a run's output folder)")
    from selfshot.distributed.mlflow_runs import reason_of
    from selfshot.studies.run import open_store
    from selfshot.studies.tracking import FACTS, log_left_over

    logged, problems = 0, []
    for path in sorted(output.glob(f"*/mlflow/*/{FACTS}")):
        try:
            arrived, refused = log_left_over(path.parent, open_store)
        except Exception as error:  # Whatever it is, the other runs may have servers that answer.
            arrived, refused = 0, [reason_of(error)]
        logged += arrived
        problems += [f"{path.parent}: {one}" for one in refused]
    print(f"{logged} runs logged" if logged or problems else "nothing is left to log")
    if problems:
        lines = "\n".join(problems)
        raise UserError(f"track sync: MLflow did not take everything; try it again later\n{lines}")
