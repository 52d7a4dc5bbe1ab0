"""Messages of the spool → calls of MLflow, each of which may be made a second time."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfshot.distributed.mlflow_database import make_database

METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
TABLES_TAG = "mlflow.loggedArtifacts"
PARENT_TAG = "mlflow.parentRunId"
TOKEN_TAG = "selfshot.token"

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


class _Run:
    """What the server has of a run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.params: dict[str, str] = {}
        self.metrics: set[str] = set()


class Sender:
    """One MLflow experiment at one server."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        """Args: where, the experiment's name, and where a local one keeps its artifacts."""
        self.uri, self.experiment, self.artifacts = uri, experiment, artifacts
        self.runs: dict[str, _Run] = {}
        self._client: Any = None
        self._experiment_id: str | None = None

    def send(self, record: Mapping[str, Any]) -> None:
        """Send one message.

        Raises:
            Exception: whatever MLflow raises; the message is then to be sent again.
        """
        what = record["what"]
        if what == "head":
            return
        if what == "start":
            self._start(record)
            return
        run = self.runs.get(record["run"])
        if run is None:
            return  # Its start could not be read: there is nothing to add this to.
        getattr(self, f"_{what}")(run, record)

    def find(self, record: Mapping[str, Any]) -> None:
        """Know the run of a start that was sent before, and leave it as it is.

        It may have ended since, and nobody would end it again.
        """
        token = record["run"]
        run = self._known(Path(record["id_file"])) or self._with_token(token)
        if run is None:
            self._start(record)  # Somebody deleted it; what is told of it now needs one.
        else:
            self.runs[token] = run

    @staticmethod
    def is_refusal(error: Exception) -> bool:
        """Whether the server understood a message and will never take it."""
        from mlflow.exceptions import MlflowException

        refusals = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
        return isinstance(error, MlflowException) and error.error_code in refusals

    @property
    def client(self) -> Any:
        """MLflow's client, made at the first use: importing mlflow takes over a second."""
        if self._client is not None:
            return self._client
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.ERROR)
        make_database(self.uri)
        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            place = self.artifacts.as_uri() if self.artifacts else None
            self._experiment_id = client.create_experiment(self.experiment, place)
        else:
            if found.lifecycle_stage != "active":
                client.restore_experiment(found.experiment_id)
            self._experiment_id = found.experiment_id
        self._client = client
        return client

    def _start(self, record: Mapping[str, Any]) -> None:
        """Open a run: the one of its id file, the one with its token, or a new one.

        A kill between the making of a run and the writing of its id leaves a run that only its
        token, which was written first, can find.
        """
        token, id_file = record["run"], Path(record["id_file"])
        tags = {**record["tags"], TOKEN_TAG: token}
        parent = self.runs.get(record.get("parent") or "")
        if parent is not None:
            tags[PARENT_TAG] = parent.run_id
        run = self._known(id_file) or self._with_token(token)
        if run is not None:
            self.client.update_run(run.run_id, status="RUNNING")
            for key, value in tags.items():
                self.client.set_tag(run.run_id, key, value)
        else:
            created = self.client.create_run(
                self._experiment_id,
                run_name=record["name"],
                tags=tags,
                start_time=round(record["time"] * 1000),
            )
            run = _Run(created.info.run_id)
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(f"{run.run_id}\n")
        self.runs[token] = run

    def _known(self, id_file: Path) -> _Run | None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        try:
            run_id = id_file.read_text().strip()
        except FileNotFoundError:
            return None
        if not run_id:
            return None
        try:
            return self._opened(self.client.get_run(run_id))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return None

    def _with_token(self, token: str) -> _Run | None:
        client = self.client
        found = client.search_runs(
            [self._experiment_id], f"tags.`{TOKEN_TAG}` = '{token}'", max_results=1
        )
        return self._opened(found[0]) if found else None

    @staticmethod
    def _opened(found: Any) -> _Run | None:
        if found.info.lifecycle_stage != "active":
            return None
        run = _Run(found.info.run_id)
        run.params, run.metrics = dict(found.data.params), set(found.data.metrics)
        return run

    def _params(self, run: _Run, record: Mapping[str, Any]) -> None:
        """What the run has already is left: MLflow forbids changes."""
        from mlflow.entities import Param

        fresh = {k: v for k, v in record["params"].items() if k not in run.params}
        entries = [Param(key, value) for key, value in fresh.items()]
        for start in range(0, len(entries), PARAMS_A_BATCH):
            self.client.log_batch(run.run_id, params=entries[start : start + PARAMS_A_BATCH])
        run.params |= fresh

    def _history(self, run: _Run, record: Mapping[str, Any]) -> None:
        """Points that the run has already are not sent twice."""
        from mlflow.entities import Metric

        points = [
            (key, float(value), int(point["step"]), float(point.get("time", record["time"])))
            for point in record["history"]
            for key, value in point.items()
            if key not in ("step", "time")
            and isinstance(value, int | float)
            and math.isfinite(value)
        ]
        there = {
            (key, metric.step)
            for key in {key for key, *_ in points} & run.metrics
            for metric in self.client.get_metric_history(run.run_id, key)
        }
        entries = [
            Metric(key, value, round(when * 1000), step)
            for key, value, step, when in points
            if (key, step) not in there
        ]
        for start in range(0, len(entries), METRICS_A_BATCH):
            self.client.log_batch(run.run_id, metrics=entries[start : start + METRICS_A_BATCH])
        run.metrics |= {key for key, *_ in points}

    def _tags(self, run: _Run, record: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in record["tags"].items()]
        self.client.log_batch(run.run_id, tags=tags)

    def _dataset(self, run: _Run, record: Mapping[str, Any]) -> None:
        """A benchmark's manifest; the same one twice is one in MLflow."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type="local",
            source=json.dumps({"uri": record["source"]}),
            profile=json.dumps(record["profile"]),
        )
        tags = [InputTag("mlflow.data.context", record["context"])]
        self.client.log_inputs(run.run_id, datasets=[DatasetInput(dataset, tags)])

    def _artifact(self, run: _Run, record: Mapping[str, Any]) -> None:
        if Path(record["path"]).exists():
            self.client.log_artifact(run.run_id, record["path"], record["folder"])

    def _artifacts(self, run: _Run, record: Mapping[str, Any]) -> None:
        if Path(record["path"]).exists():
            self.client.log_artifacts(run.run_id, record["path"], record["folder"])

    def _text(self, run: _Run, record: Mapping[str, Any]) -> None:
        self.client.log_text(run.run_id, record["text"], record["path"])

    def _table(self, run: _Run, record: Mapping[str, Any]) -> None:
        self.client.log_text(
            run.run_id, json.dumps(record["table"], default=str), record["path"]
        )
        tags = self.client.get_run(run.run_id).data.tags
        listed = json.loads(tags.get(TABLES_TAG, "[]"))
        entry = {"path": record["path"], "type": "table"}
        if entry not in listed:
            self.client.set_tag(run.run_id, TABLES_TAG, json.dumps([*listed, entry]))

    def _end(self, run: _Run, record: Mapping[str, Any]) -> None:
        self.client.set_terminated(
            run.run_id, status=record["status"], end_time=round(record["time"] * 1000)
        )
