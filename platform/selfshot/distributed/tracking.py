"""MLflow: a run of an experiment, a child for each of its stages, and nothing lost.

Tracking never stops a run. When the server fails, a warning says so once and whatever could not
be sent goes to unsent.jsonl beside the run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST_PARAM = 500
METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
UNSENT = "unsent.jsonl"
TABLES_TAG = "mlflow.loggedArtifacts"
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # A dead server is noticed in seconds, not in the minutes of the defaults.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's flat names, long texts cut."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = str(value)
            cut = len(text) > LONGEST_PARAM
            flat[prefix + name] = text[: LONGEST_PARAM - 1] + "…" if cut else text
    return flat


class Tracker:
    """One MLflow experiment."""

    def __init__(self, uri: str | None, experiment: str, folder: Path) -> None:
        """Nothing is contacted yet.

        Args:
            uri: of a tracking server; None for SQLite in `folder`, artifacts beside it.
            experiment: its name in MLflow.
            folder: for the database, and for what could not be sent.
        """
        self.folder = Path(folder).resolve()
        self.uri = uri or f"sqlite:///{self.folder / 'mlflow.db'}"
        self.experiment, self.local = experiment, uri is None
        self.working = True
        self._client: Any = None
        self._experiment_id: str | None = None

    def start(
        self,
        name: str,
        *,
        id_file: Path,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        parent: TrackedRun | None = None,
    ) -> TrackedRun:
        """Open a run, the one whose id is in `id_file` if the server knows it.

        Args:
            name: shown in MLflow.
            id_file: keeps the run's id, so that the same output is one run however often it is
                started.
            params: nested settings.
            tags: such as hashes.
            parent: the run that this one is a part of.
        """
        run = TrackedRun(self, name, None)
        facts = {"tags": {**(tags or {}), NAME_TAG: name}, "params": flatten(params or {})}
        if parent is not None and parent.run_id is not None:
            facts["tags"][PARENT_TAG] = parent.run_id
        self._attempt("start", run, facts, lambda: self._open(run, id_file, facts["tags"]))
        run.log_params(params or {})
        return run

    def _open(self, run: TrackedRun, id_file: Path, tags: dict[str, str]) -> None:
        client = self._connect()
        known = id_file.read_text().strip() if id_file.exists() else ""
        if known and self._resume(client, run, known):
            for key, value in tags.items():
                client.set_tag(known, key, value)
            return
        created = client.create_run(self._experiment_id, run_name=run.name, tags=tags)
        run.run_id = created.info.run_id
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(f"{run.run_id}\n")

    def _resume(self, client: Any, run: TrackedRun, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return False
        if found.info.lifecycle_stage != "active":
            return False
        client.update_run(run_id, status="RUNNING")
        run.run_id, run.resumed = run_id, True
        run.params = dict(found.data.params)
        run.metrics = set(found.data.metrics)
        return True

    def _connect(self) -> Any:
        """The client, made at the first use: importing mlflow takes over a second."""
        if self._client is not None:
            return self._client
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.folder.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            place = (self.folder / "mlartifacts").as_uri() if self.local else None
            self._experiment_id = client.create_experiment(self.experiment, place)
        else:
            if found.lifecycle_stage != "active":
                client.restore_experiment(found.experiment_id)
            self._experiment_id = found.experiment_id
        self._client = client
        return client

    def _attempt(
        self, what: str, run: TrackedRun, facts: Mapping[str, Any], action: Callable[[], None]
    ) -> None:
        """Do it, or keep it; after the first failure nothing is tried any more."""
        if self.working and (run.run_id is not None or what == "start"):
            try:
                action()
                return
            except Exception as error:  # whatever it is, tracking must not stop a run
                self.working = False
                reason = (str(error).splitlines() or [repr(error)])[0]
                warnings.warn(
                    f"MLflow at {self.uri} failed ({reason}); the run goes on, and what is not "
                    f"sent is kept in {self.folder / UNSENT}",
                    stacklevel=3,
                )
        record = {"what": what, "run": run.name, "run_id": run.run_id, "time": time.time(), **facts}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / UNSENT).open("a") as file:
            file.write(json.dumps(record, default=str) + "\n")


class TrackedRun:
    """One MLflow run; made by `Tracker.start` or `child`."""

    def __init__(self, tracker: Tracker, name: str, run_id: str | None) -> None:
        self.tracker, self.name, self.run_id = tracker, name, run_id
        self.resumed = False
        self.params: dict[str, str] = {}
        self.metrics: set[str] = set()

    def child(
        self,
        name: str,
        *,
        id_file: Path,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> TrackedRun:
        """A run shown below this one."""
        return self.tracker.start(name, id_file=id_file, params=params, tags=tags, parent=self)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nested settings, flattened. What the run has already is left (MLflow forbids changes)."""
        fresh = {k: v for k, v in flatten(params).items() if k not in self.params}

        def send() -> None:
            from mlflow.entities import Param

            entries = [Param(key, value) for key, value in fresh.items()]
            for start in range(0, len(entries), PARAMS_A_BATCH):
                part = entries[start : start + PARAMS_A_BATCH]
                self._client.log_batch(self.run_id, params=part)

        if fresh:
            self._attempt("params", {"params": fresh}, send)
            self.params |= fresh

    def log_history(self, history: Sequence[Mapping[str, Any]], prefix: str = "") -> None:
        """Logged points of a training, each with its `step` (and `time`); numbers are metrics.

        Points that a resumed run has already are not sent twice.
        """
        points: list[tuple[str, float, int, float]] = [
            (prefix + key, float(value), int(point["step"]), float(point.get("time", time.time())))
            for point in history
            for key, value in point.items()
            if key not in ("step", "time") and isinstance(value, (int, float))
        ]

        def send() -> None:
            from mlflow.entities import Metric

            there = {
                (key, metric.step)
                for key in {key for key, *_ in points} & self.metrics
                for metric in self._client.get_metric_history(self.run_id, key)
            }
            entries = [
                Metric(key, value, round(when * 1000), step)
                for key, value, step, when in points
                if (key, step) not in there
            ]
            for start in range(0, len(entries), METRICS_A_BATCH):
                part = entries[start : start + METRICS_A_BATCH]
                self._client.log_batch(self.run_id, metrics=part)
            self.metrics |= {key for key, *_ in points}

        if points:
            self._attempt("history", {"history": [dict(point) for point in history]}, send)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Final numbers; those that are not finite are left out."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self.log_history([{"step": step, **finite}])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Such as the keys of stages."""

        def send() -> None:
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, value)

        self._attempt("tags", {"tags": dict(tags)}, send)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file."""
        facts = {"path": str(path), "folder": folder}
        self._attempt(
            "artifact", facts, lambda: self._client.log_artifact(self.run_id, str(path), folder)
        )

    def log_artifacts(self, path: Path, folder: str | None = None) -> None:
        """All files of a folder."""
        facts = {"path": str(path), "folder": folder}
        self._attempt(
            "artifacts", facts, lambda: self._client.log_artifacts(self.run_id, str(path), folder)
        )

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Rows of a table, shown by MLflow under `name`.json; logged again, it is replaced.

        (MLflow's own `log_table` would append the rows once more.)
        """
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
        path = f"{name}.json"

        def send() -> None:
            self._client.log_text(self.run_id, json.dumps(table, default=str), path)
            tags = self._client.get_run(self.run_id).data.tags
            listed = json.loads(tags.get(TABLES_TAG, "[]"))
            entry = {"path": path, "type": "table"}
            if entry not in listed:
                self._client.set_tag(self.run_id, TABLES_TAG, json.dumps([*listed, entry]))

        self._attempt("table", {"path": path, "table": table}, send)

    def end(self, status: str = "FINISHED") -> None:
        """Close it as FINISHED, FAILED or KILLED."""
        self._attempt(
            "end",
            {"status": status},
            lambda: self._client.set_terminated(self.run_id, status=status),
        )

    @property
    def _client(self) -> Any:
        return self.tracker._connect()

    def _attempt(self, what: str, facts: Mapping[str, Any], action: Callable[[], None]) -> None:
        self.tracker._attempt(what, self, facts, action)
