"""What every stage of a run is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfshot.config.schema import Experiment
from selfshot.studies.progress import Progress

if TYPE_CHECKING:
    from selfshot.distributed.sharing import Sharing


@dataclasses.dataclass
class Context:
    """What a stage is given.

    Attributes:
        experiment: all settings; a stage passes plain arguments on.
        folders: finished folders of the earlier stages by name.
        progress: prints lines that a person can read.
        timings: what each earlier stage of this run took, for the report.
        tracking: how to find the run in MLflow, for the report.
        keys: key of every stage of the run.
        sharing: how nodes without a common output folder find each other's files.
    """

    experiment: Experiment
    folders: dict[str, Path]
    progress: Progress
    timings: list[dict[str, Any]]
    tracking: dict[str, str]
    keys: dict[str, str]
    sharing: Sharing | None = None


Metrics = dict[str, Any]
