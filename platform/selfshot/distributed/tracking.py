"""A run is logged to MLflow by a thread of its own, while it goes on and at its end.

Nothing waits for MLflow but the end of a run, and that not for long. What could not be logged is
still on disk: the next run logs it, or `selfshot track sync`.
"""

from __future__ import annotations

import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock

from selfshot.distributed.mlflow_runs import Record, RunTree, Target, reason_of
from selfshot.files import try_lock, write_atomically

if TYPE_CHECKING:
    from selfshot.store.folders import RemoteFolder

LIVE_S = 2.0
"""Between two looks at what is on disk."""
AGAIN_S = 30.0
"""Until what failed or was refused is tried again."""
PATIENCE_S = 15.0
"""So long the end of a run waits for a server."""
LOCAL_PATIENCE_S = 300.0

Records = Callable[[RunTree], Iterable[Record]]
"""The records that a tree lacks, the parent's first."""


class Tracker:
    """Logs a run from a thread of its own while it goes on."""

    def __init__(self, target: Target, folder: Path, records: Records) -> None:
        """Start.

        Args:
            target: where.
            folder: of this run: its token, its lock and the id of its run in MLflow.
            records: what is to be logged by now.
        """
        self.target, self.folder, self.records = target, folder, records
        self.problems: list[str] = []
        self._closing, self._tried = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def run_id(self, seconds: float = 5.0) -> str | None:
        """MLflow's id of the run; a server that fails is not waited for."""
        path = self.folder / "run_id"
        if not path.exists():
            self._tried.wait(seconds)
        return path.read_text().strip() if path.exists() else None

    def close(self, patience: float | None = None) -> bool:
        """Have the rest logged, but do not wait for ever.

        Args:
            patience: seconds at most; None: as long as is reasonable.

        Returns:
            whether everything arrived.
        """
        if patience is None:
            patience = LOCAL_PATIENCE_S if self.target.uri is None else PATIENCE_S
        self._closing.set()
        self._thread.join(patience)
        if self._thread.is_alive():
            self.problems = [*self.problems, f"no answer within {patience:g} s"]
        if self.problems:
            self._warn("did not take everything", "the next run logs the rest, or: selfshot "
                       f"track sync {self.target.output}")  # fmt: skip
        return not self.problems

    def _warn(self, what: str, so: str) -> None:
        reasons = "; ".join(self.problems)
        warnings.warn(f"MLflow at {self.target.address} {what} ({reasons}); {so}", stacklevel=3)

    def _work(self) -> None:
        lock: BaseFileLock | None = None
        tree: RunTree | None = None
        monitor: Any = None
        warned, again = False, 0.0
        while True:
            last = self._closing.is_set()  # What is on disk by now is logged by this pass.
            now = time.monotonic()
            try:
                lock = lock or locked(self.folder)
                if lock is not None and (tree or last or now >= again):
                    tree = tree or RunTree(self.target, token_of(self.folder))
                    tree.log(self.records(tree), again=last or now >= again)
                    self.problems = [*tree.refused.values()]
                    monitor = monitor or self._watch_machine(tree.runs[tree.token].run_id)
            except FileNotFoundError as error:
                # A stage was finished while it was read; the next look finds it.
                self.problems = [reason_of(error)] if last else []
            except Exception as error:  # Whatever it is, it must not stop a run.
                self.problems = [reason_of(error)]
            self._tried.set()
            if last:
                break
            if now >= again:
                again = now + AGAIN_S
            if self.problems and not warned:
                warned = True
                self._warn("failed", "the run goes on, and it is tried again")
            self._closing.wait(LIVE_S)
        if monitor is not None:
            monitor.finish()
        if lock is not None:
            lock.release()

    def _watch_machine(self, run_id: str) -> Any:
        """Keep the run's id, and have MLflow's monitor log the load of this machine."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        write_atomically(self.folder / "run_id", f"{run_id}\n")
        address = self.target.address
        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=address)
        monitor.start()
        return monitor


def locked(folder: Path) -> BaseFileLock | None:
    """A lock that says that this process alone logs that run; None: another holds it."""
    return try_lock(folder / "lock")


def token_of(folder: Path, remote: RemoteFolder | None = None) -> str:
    """What finds the run of an output again, made at its first start.

    Args:
        folder: of this run.
        remote: of it in storage, from which another machine takes the token.
    """
    path = folder / "token"
    if remote is not None:
        remote.pull(path.name, missing=True)
    if not path.exists():
        write_atomically(path, f"{uuid.uuid4().hex}\n")
    if remote is not None:
        remote.push(path.name)
    return path.read_text().strip()
