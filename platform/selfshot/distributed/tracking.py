"""MLflow: a run of an experiment, a child for each of its parts, and nothing lost.

Nobody waits for MLflow. What it is to be told is written to a spool first, and a thread sends it.
A server that is slow or down holds up that thread alone; it tries again while the run goes on, and
what is left at the end stays in the spool, for the next run or `selfshot track sync` to send.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfshot.distributed.mlflow_sender import Sender
from selfshot.distributed.spool import (
    Spool,
    head_of,
    left_over,
    note_sent,
    records,
    remove,
    sent_bytes,
)

LONGEST_PARAM = 500
REFUSED = "refused.log"
NAME_TAG = "mlflow.runName"
AGAIN_S = 3.0
"""After a failure the thread waits so long, and twice as long after each further one."""
LONGEST_WAIT_S = 60.0
PATIENCE_S = 15.0
"""So long the end of a run waits for a server that answers."""
LOCAL_PATIENCE_S = 300.0


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
            folder: for the database, and for what could not be sent yet.
        """
        self.folder = Path(folder).resolve()
        self.local = uri is None
        self.uri = uri or f"sqlite:///{self.folder / 'mlflow.db'}"
        self.experiment = experiment
        self.failing = False
        self._spool: Spool | None = None
        self._news = threading.Condition()
        self._sent = 0
        self._closing = False
        self._thread: threading.Thread | None = None

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
                started; its token lies beside it.
            params: nested settings.
            tags: such as hashes.
            parent: the run that this one is a part of.
        """
        run = TrackedRun(self, name, _token(id_file), id_file)
        facts = {
            "name": name,
            "id_file": str(id_file.resolve()),
            "parent": parent.token if parent else None,
            "tags": {**(tags or {}), NAME_TAG: name},
        }
        self.tell(run, "start", facts)
        run.log_params(params or {})
        return run

    def tell(self, run: TrackedRun, what: str, facts: Mapping[str, Any]) -> None:
        """Write a message down; it is sent as soon as the server takes it."""
        if self._spool is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            head = {"what": "head", "uri": self.uri, "experiment": self.experiment,
                    "local": self.local, "time": time.time()}  # fmt: skip
            self._spool = Spool(self.folder, head)
            self._closing = False
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()
        self._spool.put({"what": what, "run": run.token, "time": time.time(), **facts})
        with self._news:
            self._news.notify_all()

    @property
    def unsent(self) -> bool:
        """Whether something of this process is not sent yet."""
        return self._spool is not None and self._sent < self._spool.written

    def close(self, patience: float | None = None) -> bool:
        """Wait for what is left, but not for a server that does not answer.

        Args:
            patience: seconds at most; None: as long as is reasonable.

        Returns:
            whether everything was sent.
        """
        if self._spool is None or self._thread is None:
            return True
        if patience is None:
            patience = LOCAL_PATIENCE_S if self.local else PATIENCE_S
        until = time.monotonic() + patience
        with self._news:
            self._closing = True
            self._news.notify_all()
            while self.unsent and not self.failing and time.monotonic() < until:
                self._news.wait(0.2)
        if not self.unsent:
            self._thread.join(timeout=5)
        done = not self.unsent
        if not done:
            warnings.warn(
                f"MLflow at {self.uri} was not told everything; the rest is kept in "
                f"{self._spool.path} and sent by the next run there, or by: selfshot track sync "
                f"{self.folder}",
                stacklevel=2,
            )
        self._spool.close()
        self._spool = self._thread = None
        return done

    def _work(self) -> None:
        """The thread: first what dead processes left, then what this one writes."""
        spool = self._spool
        assert spool is not None
        sender = Sender(self.uri, self.experiment, self._artifacts())
        wait = AGAIN_S
        rest_sent = False
        self._sent = 0
        while True:
            try:
                if not rest_sent:
                    send_left_over(self.folder, self.uri, self.experiment)
                    rest_sent = True
                for record, end in records(spool.path, self._sent):
                    send_or_refuse(sender, record, spool.path)
                    note_sent(spool.path, end)
                    with self._news:
                        self._sent = end
                        self._news.notify_all()
                self.failing, wait = False, AGAIN_S
            except Exception as error:  # whatever it is, tracking must not stop a run
                with self._news:
                    first, self.failing = not self.failing, True
                    self._news.notify_all()
                if first and wait == AGAIN_S:
                    _warn(self.uri, error)
                with self._news:
                    if self._news.wait_for(lambda: self._closing, timeout=wait):
                        return
                wait = min(2 * wait, LONGEST_WAIT_S)
                continue
            with self._news:
                if self._sent < spool.written:
                    continue
                if self._closing:
                    return
                self._news.wait(1.0)

    def _artifacts(self) -> Path | None:
        return self.folder / "mlartifacts" if self.local else None


def _warn(uri: str, error: Exception) -> None:
    reason = (str(error).splitlines() or [repr(error)])[0]
    warnings.warn(
        f"MLflow at {uri} failed ({reason}); the run goes on, and what is not sent is kept",
        stacklevel=2,
    )


def send_left_over(folder: Path, uri: str | None = None, experiment: str | None = None) -> int:
    """Send what earlier processes could not.

    Args:
        folder: an output folder.
        uri: only what was meant for this server; None: everything.
        experiment: likewise.

    Returns:
        the number of messages sent.

    Raises:
        Exception: whatever MLflow raises; what was sent before stays sent.
    """
    sent = 0
    senders: dict[tuple[str, str], Sender] = {}
    with left_over(Path(folder).resolve()) as paths:
        for path in paths:
            head = head_of(path)
            if not head:
                remove(path)
                continue
            at = (str(head["uri"]), str(head["experiment"]))
            if (uri is not None and at[0] != uri) or (experiment and at[1] != experiment):
                continue
            place = path.parent.parent / "mlartifacts" if head.get("local") else None
            # One for all files, and every start is looked up: a later line needs its run.
            sender = senders.setdefault(at, Sender(*at, place))
            done = sent_bytes(path)
            for record, end in records(path, 0):
                if end > done:
                    send_or_refuse(sender, record, path)
                    note_sent(path, end)
                    sent += 1
                elif record["what"] == "start":
                    sender.find(record)
            remove(path)
    return sent


def send_or_refuse(sender: Sender, record: Mapping[str, Any], spool: Path) -> None:
    """Send a message; one that the server will never take is set aside, not tried for ever."""
    try:
        sender.send(record)
    except Exception as error:
        if not sender.is_refusal(error):
            raise
        with spool.with_name(REFUSED).open("a") as file:
            file.write(json.dumps({"reason": str(error), "message": record}, default=str) + "\n")
        warnings.warn(f"MLflow refused a message, kept in {file.name}: {error}", stacklevel=2)


def _token(id_file: Path) -> str:
    """What finds the run again if its id could not be written; made at its first start."""
    path = id_file.with_name(f"{id_file.name}.token")
    with contextlib.suppress(FileNotFoundError):
        known = path.read_text().strip()
        if known:
            return known
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(f"{token}\n")
    partial.replace(path)
    return token


class TrackedRun:
    """One MLflow run; made by `Tracker.start` or `child`."""

    def __init__(self, tracker: Tracker, name: str, token: str, id_file: Path) -> None:
        self.tracker, self.name, self.token, self.id_file = tracker, name, token, id_file

    @property
    def run_id(self) -> str | None:
        """MLflow's id of it; None until the server has made it."""
        try:
            return self.id_file.read_text().strip() or None
        except FileNotFoundError:
            return None

    def wait_for_id(self, seconds: float = 5.0) -> str | None:
        """MLflow's id, if the server makes it in time; one that fails is not waited for."""
        until = time.monotonic() + seconds
        while self.run_id is None and not self.tracker.failing and time.monotonic() < until:
            time.sleep(0.05)
        return self.run_id

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
        """Nested settings, flattened. What the run has already is left."""
        if params:
            self.tracker.tell(self, "params", {"params": flatten(params)})

    def log_history(self, history: Sequence[Mapping[str, Any]], prefix: str = "") -> None:
        """Logged points of a training, each with its `step` (and `time`); numbers are metrics."""
        points = [
            {
                key if key in ("step", "time") else prefix + key: value
                for key, value in point.items()
                if isinstance(value, int | float) and math.isfinite(value)
            }
            for point in history
        ]
        if points:
            self.tracker.tell(self, "history", {"history": points})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Final numbers; those that are not finite are left out."""
        self.log_history([{**metrics, "step": step}])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Such as the keys of stages."""
        if tags:
            self.tracker.tell(self, "tags", {"tags": dict(tags)})

    def log_dataset(
        self, name: str, digest: str, source: Path, profile: Mapping[str, Any], context: str
    ) -> None:
        """A data set that the run read, known by the hash of its manifest.

        Args:
            name: of the data set.
            digest: of its manifest; MLflow keeps 36 characters.
            source: where it is.
            profile: what was counted in it.
            context: what it was used for.
        """
        facts = {"name": name, "digest": digest[:36], "source": str(source),
                 "profile": dict(profile), "context": context}  # fmt: skip
        self.tracker.tell(self, "dataset", facts)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file; it is read when it is sent."""
        self.tracker.tell(self, "artifact", {"path": str(path.resolve()), "folder": folder})

    def log_artifacts(self, path: Path, folder: str | None = None) -> None:
        """All files of a folder; they are read when they are sent."""
        self.tracker.tell(self, "artifacts", {"path": str(path.resolve()), "folder": folder})

    def log_text(self, text: str, path: str) -> None:
        """A text as a file of the run."""
        self.tracker.tell(self, "text", {"text": text, "path": path})

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Rows of a table, shown by MLflow under `name`.json; logged again, it is replaced.

        (MLflow's own `log_table` would append the rows once more.)
        """
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
        self.tracker.tell(self, "table", {"path": f"{name}.json", "table": table})

    def end(self, status: str = "FINISHED") -> None:
        """Close it as FINISHED, FAILED or KILLED."""
        self.tracker.tell(self, "end", {"status": status})
