"""Runs in MLflow: what each should have, and what of it is missing.

A `Record` says what MLflow should have of a run. Logging it again changes nothing: a run is found
by its token, parameters and points that it has are left out, files replace themselves. So a kill
at any moment loses nothing and doubles nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfshot.distributed.mlflow_database import make_database

LONGEST_PARAM = 500
"""Characters of a parameter that every MLflow keeps."""
TOKEN_TAG = "selfshot.token"
LOGGED_TAG = "selfshot.logged"
TABLES_TAG = "mlflow.loggedArtifacts"

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # A dead server is noticed in seconds, not in the minutes of the defaults.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # Two lines in a job's log for each run that ends.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """An MLflow experiment.

    Attributes:
        uri: of a tracking server; None: SQLite in `output`, artifacts beside it.
        experiment: its name in MLflow.
        output: the output folder.
    """

    uri: str | None
    experiment: str
    output: Path

    @property
    def address(self) -> str:
        """The tracking URI."""
        return self.uri or f"sqlite:///{self.output.resolve() / 'mlflow.db'}"

    def connect(self) -> Any:
        """MLflow's client.

        Raises:
            Exception: whatever MLflow raises.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.ERROR)
        make_database(self.address)
        return MlflowClient(tracking_uri=self.address, registry_uri=self.address)


@dataclasses.dataclass(frozen=True)
class Record:
    """What MLflow should have of a run.

    Attributes:
        token: finds the run; those below a run begin with its token and a slash.
        name: shown in MLflow.
        parent: token of the run that it is a part of.
        status: RUNNING, FINISHED, FAILED or KILLED.
        start, end: seconds since 1970; no end while it is running.
        params: nested settings.
        tags: such as keys; logged again, they are replaced.
        points: numbers of a training, each with its `step` and `time`.
        texts: name of a file → what is in it.
        tables: name → rows, which MLflow shows as a table.
        datasets: each with name, digest, source, profile and context.
        files: files and folders → the folder of the run that they go to.
    """

    token: str
    name: str
    parent: str | None = None
    status: str = "RUNNING"
    start: float = 0.0
    end: float | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    datasets: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


class _Run:
    """What MLflow has of a run, and which parts of its record this process has logged."""

    def __init__(self, found: Any, known: bool) -> None:
        self.run_id, self.status = found.info.run_id, found.info.status
        self.params, self.tags = dict(found.data.params), dict(found.data.tags)
        self.unread = set(found.data.metrics) if known else set()
        self.points: set[tuple[str, int]] = set()
        self.sent: dict[str, Any] = {}


class RunTree:
    """A run in MLflow and those below it."""

    def __init__(self, target: Target, token: str) -> None:
        """Find the runs that are there.

        Raises:
            Exception: whatever MLflow raises.
        """
        self.client = client = target.connect()
        found = client.get_experiment_by_name(target.experiment)
        if found is None:
            artifacts = target.output.resolve() / "mlartifacts"
            place = artifacts.as_uri() if target.uri is None else None
            self._experiment = client.create_experiment(target.experiment, place)
        else:
            if found.lifecycle_stage != "active":
                client.restore_experiment(found.experiment_id)
            self._experiment = found.experiment_id
        self.token = token
        self.runs: dict[str, _Run] = {}
        self.refused: dict[str, str] = {}
        page = None
        while page != "":
            some = client.search_runs(
                [self._experiment], f"tags.`{TOKEN_TAG}` LIKE '{token}%'", page_token=page
            )
            self.runs |= {run.data.tags[TOKEN_TAG]: _Run(run, known=True) for run in some}
            page = some.token or ""

    def has(self, token: str, end: float | None = None) -> bool:
        """Whether all of a finished record arrived, or of one that ended at that time."""
        run = self.runs.get(token)
        if run is None or LOGGED_TAG not in run.tags:
            return False
        return run.status == "FINISHED" if end is None else run.tags[LOGGED_TAG] == str(end)

    def log(self, records: Iterable[Record], *, again: bool = True) -> int:
        """Log what is missing of each record, independently of the others.

        What MLflow did not take is in `refused`: token → which part of which run, and why.

        Args:
            records: the parent's first.
            again: try those that were refused before once more.

        Returns:
            how many ended ones arrived whole.

        Raises:
            Exception: the parent's run could not be made, so there is none to log to.
        """
        arrived = 0
        for record in records:
            if record.token in self.refused and not again:
                continue
            try:
                problems = self._log(record)
            except Exception as error:  # Its run could not be made; those of others may be.
                if record.parent is None:
                    raise
                problems = [reason_of(error)]
            if problems:
                self.refused[record.token] = f"{record.name}: {', '.join(problems)}"
            else:
                self.refused.pop(record.token, None)
                arrived += record.end is not None
        return arrived

    def _log(self, record: Record) -> list[str]:
        """Log the parts that are missing; returns those that were refused, with the reasons."""
        run = self.runs.get(record.token) or self._create(record)
        problems = []
        for what, value, send in self._parts(run, record):
            if run.sent.get(what) != value:
                try:
                    send(value)
                    run.sent[what] = value
                except Exception as error:  # Whatever it is, the other parts may be taken.
                    problems.append(f"{what}: {reason_of(error)}")
        if record.end is not None and not problems:
            self._log_tags(run, {LOGGED_TAG: str(record.end)})
        return problems

    def end_running(self, status: str, end: float) -> None:
        """End the runs below that were cut short with their parent."""
        for token, run in self.runs.items():
            if token != self.token and run.status == "RUNNING":
                self._set_status(run, (status, end))

    def _create(self, record: Record) -> _Run:
        tags = {TOKEN_TAG: record.token}
        if record.parent is not None:
            tags["mlflow.parentRunId"] = self.runs[record.parent].run_id
        made = self.client.create_run(
            self._experiment, run_name=record.name, tags=tags, start_time=_ms(record.start)
        )
        run = self.runs[record.token] = _Run(made, known=False)
        return run

    def _parts(
        self, run: _Run, record: Record
    ) -> Iterator[tuple[str, Any, Callable[[Any], None]]]:
        """Each part of a record: what it is, its value, and how it is logged."""
        call, run_id = functools.partial, run.run_id
        ended = record.end is not None
        if not ended:
            yield "status", (record.status, None), call(self._set_status, run)
        yield "params", record.params, call(self._log_params, run)
        yield "metrics", record.points, call(self._log_points, run, record.end)
        yield "tags", record.tags, call(self._log_tags, run)
        for name, text in record.texts.items():
            yield name, text, call(self.client.log_text, run_id, artifact_file=name)
        for name, rows in record.tables.items():
            yield name, rows, call(self._log_table, run, name)
        for facts in record.datasets:
            yield f"data set {facts['name']}", facts, call(self._log_dataset, run)
        for path, folder in record.files.items():
            send = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
            yield Path(path).name, path, call(send, run_id, artifact_path=folder or None)
        if ended:
            yield "status", (record.status, record.end), call(self._set_status, run)

    def _set_status(self, run: _Run, status: tuple[str, float | None]) -> None:
        word, end = status
        if end is not None:
            self.client.set_terminated(run.run_id, status=word, end_time=_ms(end))
        elif run.status != word:
            self.client.update_run(run.run_id, status=word)
        run.status = word

    def _log_params(self, run: _Run, params: Mapping[str, Any]) -> None:
        """What the run has already is left: MLflow forbids changes."""
        from mlflow.entities import Param

        texts = {valid_name(key): str(value) for key, value in flatten(params, ".").items()}
        fresh = {
            key: text if len(text) <= LONGEST_PARAM else f"{text[: LONGEST_PARAM - 1]}…"
            for key, text in texts.items()
            if key not in run.params
        }
        self._log_batches(run, "params", [Param(*one) for one in fresh.items()], 100)
        run.params |= fresh

    def _log_points(
        self, run: _Run, end: float | None, points: Sequence[Mapping[str, Any]]
    ) -> None:
        """Points that the run has already are not logged twice."""
        from mlflow.entities import Metric

        found = {}
        for point in points:
            when = _ms(point.get("time") or end or time.time())
            for name, value in point.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if name not in ("step", "time") and number and math.isfinite(value):
                    key, step = valid_name(name), int(point["step"])
                    found[key, step] = Metric(key, float(value), when, step)
        for key in run.unread & {key for key, _ in found}:
            history = self.client.get_metric_history(run.run_id, key)
            run.points |= {(key, metric.step) for metric in history}
            run.unread.remove(key)
        fresh = [metric for at, metric in found.items() if at not in run.points]
        self._log_batches(run, "metrics", fresh, 1000)
        run.points |= found.keys()

    def _log_tags(self, run: _Run, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        fresh = {key: value for key, value in tags.items() if run.tags.get(key) != value}
        self._log_batches(run, "tags", [RunTag(*one) for one in fresh.items()], 100)
        run.tags |= fresh

    def _log_batches(self, run: _Run, kind: str, entries: Sequence[Any], size: int) -> None:
        for start in range(0, len(entries), size):
            self.client.log_batch(run.run_id, **{kind: entries[start : start + size]})

    def _log_dataset(self, run: _Run, facts: Mapping[str, Any]) -> None:
        """The same data set twice is one in MLflow, which keeps 36 characters of its digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=facts["name"],
            digest=facts["digest"][:36],
            source_type="local",
            source=json.dumps({"uri": facts["source"]}),
            profile=json.dumps(facts["profile"]),
        )
        tags = [InputTag("mlflow.data.context", facts["context"])]
        self.client.log_inputs(run.run_id, datasets=[DatasetInput(dataset, tags)])

    def _log_table(self, run: _Run, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As a table that replaces itself; MLflow's own `log_table` appends the rows."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
        self.client.log_text(run.run_id, json.dumps(table, default=str), f"{name}.json")
        listed = json.loads(run.tags.get(TABLES_TAG, "[]"))
        entry = {"path": f"{name}.json", "type": "table"}
        if entry not in listed:
            self._log_tags(run, {TABLES_TAG: json.dumps([*listed, entry])})


def flatten(values: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested values under one name each."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def valid_name(name: str) -> str:
    """A name as every MLflow takes it."""
    return re.sub(r"[^\w./ -]", "_", name)[:250]


def reason_of(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).splitlines() or [repr(error)])[0]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
