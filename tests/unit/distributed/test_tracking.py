"""MLflow that is there, that is not, that refuses; runs that are killed while they are logged."""

from __future__ import annotations

import dataclasses
import http.client
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfshot.distributed import tracking
from selfshot.distributed.mlflow_runs import Record, RunTree, Target
from selfshot.distributed.tracking import Tracker, locked, token_of

Refuse = Callable[[str, bytes], tuple[int, bytes] | None]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("database")
    Target(None, "paper", folder).connect()
    return folder / "mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    """An output folder with a database in which no run is."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real `mlflow server`."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


class Proxy(http.server.ThreadingHTTPServer):
    """Hands requests on to MLflow's server but those that `refuse` answers itself."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.port, self.refused = port, 0
        self.refuse: Refuse = lambda path, body: None
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.refuse(self.path, body)
        if answer is None:
            there = http.client.HTTPConnection("127.0.0.1", self.server.port)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            there.request(self.command, self.path, body, headers)
            response = there.getresponse()
            answer = response.status, response.read()
        else:
            self.server.refused += 1
        self.send_response(answer[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    made = Proxy(server)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes requests and answers none."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def family(folder: Path, token: str = "t", end: float | None = 50.0) -> list[Record]:
    """A run with two parts, one of which has everything that a run may have."""
    picture = folder / "picture.png"
    picture.write_bytes(b"png")
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "report.html").write_text("page")
    status = "RUNNING" if end is None else "FINISHED"
    points = [{"step": n, "time": 11.0 + n, "loss": 1 / (n + 1)} for n in range(3)]
    dataset = {"name": "sprites", "digest": "ab" * 32, "source": "x", "profile": {"clips": 3},
               "context": "test"}  # fmt: skip
    return [
        Record(
            token, "whole", status=status, start=10.0, end=end,
            params={"m": {"d": 7}, "long": "x" * 900}, tags={"kind": "experiment"},
            texts={"experiment.yaml": "name: x\n"}, datasets=[dataset],
            tables={"rows": [{"supports": "oracle", "AP50": 75.0}, {"supports": "random"}]},
            files={str(folder / "report"): "report"},
        ),
        Record(
            f"{token}/vis", "vis", token, "FINISHED", 11.0, 20.0, params={"steps": 3},
            tags={"selfshot.key": "k"}, files={str(picture): ""},
            points=[*points, {"step": 0, "bad": float("nan"), "seconds": 9.0, "ok": True}],
        ),
        Record(
            f"{token}/evaluation", "evaluation", token, "FINISHED", 21.0, 30.0,
            points=[{"step": 0, "AP50/self_shot/1_shot": 60.0, "per_class/Bär\n": 1.0}],
        ),
    ]  # fmt: skip


def everything(target: Target) -> dict[str, Any]:
    """All that MLflow has, by the names of the runs, without what differs from run to run."""
    client = target.connect()
    found = client.get_experiment_by_name(target.experiment)
    runs = client.search_runs([found.experiment_id]) if found is not None else []
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(runs), "a run is there twice"

    def files(run_id: str, path: str = "") -> Iterator[str]:
        for item in client.list_artifacts(run_id, path or None):
            yield from files(run_id, item.path) if item.is_dir else [item.path]

    return {
        run.info.run_name: {
            "status": run.info.status,
            "time": (run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
            "tags": {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"},
            "points": {
                name: [(m.step, m.value, m.timestamp)
                       for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
            "files": sorted(files(run.info.run_id)),
            "datasets": [one.dataset.digest for one in run.inputs.dataset_inputs],
        }
        for run in runs
    }  # fmt: skip


def logged(target: Target, folder: Path) -> dict[str, Any]:
    tree = RunTree(target, "t")
    tree.log(family(folder))
    assert tree.refused == {}
    return everything(target)


def test_a_run_has_all_that_its_record_says(folder: Path) -> None:
    found = logged(Target(None, "paper", folder), folder)
    assert set(found) == {"whole", "vis", "evaluation"}
    whole, vis = found["whole"], found["vis"]
    assert whole["params"] == {"m.d": "7", "long": "x" * 499 + "…"}
    assert whole["files"] == ["experiment.yaml", "report/report.html", "rows.json"]
    assert whole["datasets"] == [("ab" * 32)[:36]] and whole["parent"] is None
    assert vis["parent"] == "whole" and vis["time"] == (11_000, 20_000)
    assert vis["points"] == {
        "loss": [(0, 1.0, 11_000), (1, 0.5, 12_000), (2, 1 / 3, 13_000)],
        "seconds": [(0, 9.0, 20_000)],
    }
    assert set(found["evaluation"]["points"]) == {"AP50/self_shot/1_shot", "per_class/Bär_"}
    assert {one["status"] for one in found.values()} == {"FINISHED"}


def test_logged_again_nothing_is_doubled(folder: Path) -> None:
    target = Target(None, "paper", folder)
    assert logged(target, folder) == logged(target, folder)
    tree = RunTree(target, "t")
    assert tree.has("t/vis") and tree.has("t", 50.0) and not tree.has("t", 51.0)
    assert not tree.has("t/index")


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it."""


class Mortal:
    """A client that dies at its k-th change, before it was made or right after."""

    CHANGES = ("create_run", "log_batch", "log_text", "log_inputs", "log_artifact",
               "log_artifacts", "update_run", "set_terminated")  # fmt: skip

    def __init__(self, client: Any, at: int, after: bool) -> None:
        self.client, self.left, self.after = client, at, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name not in self.CHANGES:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise KilledError
            result = method(*args, **kwargs)
            if self.left == 0:
                raise KilledError
            return result

        return call


def test_a_kill_at_any_moment_loses_and_doubles_nothing(folder: Path) -> None:
    whole = logged(Target(None, "whole", folder), folder)
    kills = 0
    for after in (False, True):
        for at in range(1, 100):
            target = Target(None, f"killed-{at}-{after}", folder)
            tree = RunTree(target, "t")
            tree.client = Mortal(tree.client, at, after)
            try:
                tree.log(family(folder))
                break
            except KilledError:
                kills += 1
            assert logged(target, folder) == whole, (at, after)
    assert kills >= 2 * 12


def test_a_dead_server_stops_nothing_and_all_is_logged_later(proxy: Proxy, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the thread's own warning
        dead = Tracker(Target("http://127.0.0.1:9", "dead", tmp_path), tmp_path,
                       lambda tree: family(tmp_path, tree.token))  # fmt: skip
        assert dead.run_id() is None
    with pytest.warns(UserWarning, match="selfshot track sync"):
        assert not dead.close(patience=30)
    target = Target(proxy.uri, "dead", tmp_path)
    again = Tracker(target, tmp_path, lambda tree: family(tmp_path, tree.token))
    assert again.close(patience=60)
    assert set(everything(target)) == {"whole", "vis", "evaluation"}


def test_a_silent_server_is_not_waited_for(silent_server: str, tmp_path: Path) -> None:
    target = Target(silent_server, "paper", tmp_path)
    tracker = Tracker(target, tmp_path, lambda tree: family(tmp_path, tree.token))
    assert tracker.run_id(seconds=0.1) is None
    with pytest.warns(UserWarning, match=r"no answer within 0\.2 s.*selfshot track sync"):
        assert not tracker.close(patience=0.2)


def denied(code: str) -> bytes:
    return json.dumps({"error_code": code, "message": f"no: {code}"}).encode()


@pytest.mark.parametrize(
    ("refuse", "part", "kept"),
    [
        (lambda path, body: (413, b"<html>too large</html>") if "picture" in path else None,
         "picture.png: ", {"params", "points", "tags"}),
        (lambda path, body: (403, denied("PERMISSION_DENIED"))
         if path.endswith("log-batch") and b'"steps"' in body else None,
         "params: PERMISSION_DENIED", {"points", "files"}),
        (lambda path, body: (400, denied("INVALID_PARAMETER_VALUE"))
         if path.endswith("log-batch") and b'"loss"' in body else None,
         "metrics: INVALID_PARAMETER_VALUE", {"params", "files"}),
        (lambda path, body: (500, b"")
         if path.endswith("runs/create") and b'"vis"' in body else None,
         "", set()),
    ],
    ids=["413", "denied", "invalid", "no run"],
)  # fmt: skip
def test_what_is_refused_silences_nothing_else(
    proxy: Proxy, tmp_path: Path, refuse: Refuse, part: str, kept: set[str]
) -> None:
    experiment = f"refused-{part[:3]}{len(kept)}"
    target = Target(proxy.uri, experiment, tmp_path)
    proxy.refuse = refuse
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracker = Tracker(target, tmp_path, lambda tree: family(tmp_path, tree.token))
        tracker.run_id(60)
    with pytest.warns(UserWarning, match=f"did not take everything .*vis: {part}"):
        assert not tracker.close(patience=60)
    assert proxy.refused >= 1
    found = everything(target)
    assert found["whole"]["status"] == found["evaluation"]["status"] == "FINISHED"
    assert found["evaluation"]["points"] and found["whole"]["files"]
    assert all(found["vis"][one] for one in kept)
    # The next run, whose server takes it, sends what is missing and nothing twice.
    proxy.refuse = lambda path, body: None
    again = Tracker(target, tmp_path, lambda tree: family(tmp_path, tree.token))
    assert again.close(patience=60)
    token = token_of(tmp_path)
    mended = everything(target)
    assert mended["vis"]["tags"].pop("selfshot.token") == f"{token}/vis"
    other = Target(None, "whole", tmp_path)
    expected = logged(other, tmp_path)["vis"]
    expected["tags"].pop("selfshot.token")
    assert mended["vis"] == expected


def test_points_appear_while_a_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LIVE_S", 0.05)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    target = Target(None, "paper", folder)
    points: list[dict[str, float]] = []

    def records(tree: RunTree) -> list[Record]:
        whole, vis, _ = family(folder, tree.token, end=None)
        return [whole, dataclasses.replace(vis, status="RUNNING", end=None, points=list(points))]

    def wait_for(key: str, steps: list[int]) -> None:
        client = target.connect()
        while True:
            found = client.search_runs(["1"], f"metrics.`{key}` > -1")
            if found:
                history = client.get_metric_history(found[0].info.run_id, key)
                if [one.step for one in history][: len(steps)] == steps:
                    assert found[0].info.status == "RUNNING"
                    return
            time.sleep(0.05)

    tracker = Tracker(target, folder, records)
    for step in range(3):
        points.append({"step": step, "time": 1.0 + step, "loss": 1.0})
        wait_for("loss", list(range(step + 1)))
    wait_for("system/cpu_utilization_percentage", [0, 1])
    assert tracker.close()
    assert tracker.run_id() == (folder / "run_id").read_text().strip()
    assert everything(target)["vis"]["points"]["loss"] == [(n, 1.0, 1000 + 1000 * n)
                                                           for n in range(3)]  # fmt: skip


def test_parts_that_were_cut_short_end_with_their_parent(folder: Path) -> None:
    target = Target(None, "paper", folder)
    whole, vis, evaluation = family(folder)
    tree = RunTree(target, "t")
    tree.log([whole, dataclasses.replace(vis, status="RUNNING", end=None), evaluation])
    tree.end_running("KILLED", 40.0)
    found = everything(target)
    assert found["vis"]["status"] == "KILLED" and found["vis"]["time"] == (11_000, 40_000)
    assert found["evaluation"]["status"] == "FINISHED"
    assert not tree.has("t/vis")
    again = logged(target, folder)
    assert again["vis"]["status"] == "FINISHED" and again["vis"]["time"] == (11_000, 20_000)


def test_one_process_at_a_time_logs_a_run(folder: Path) -> None:
    held = locked(folder)
    assert held is not None and locked(folder) is None
    target = Target(None, "paper", folder)
    other = Tracker(target, folder, lambda tree: family(folder, tree.token))
    assert other.close() and everything(target) == {}
    held.release()
    with_lock = locked(folder)
    assert with_lock is not None
    with_lock.release()


def test_a_run_that_somebody_deleted_is_made_again(folder: Path) -> None:
    target = Target(None, "paper", folder)
    before = logged(target, folder)
    client = target.connect()
    for run in client.search_runs([client.get_experiment_by_name("paper").experiment_id]):
        client.delete_run(run.info.run_id)
    assert logged(target, folder) == before
