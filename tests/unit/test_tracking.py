"""MLflow that is there, that is not, that comes back, and runs that are killed meanwhile."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfshot.distributed import tracking
from selfshot.distributed.mlflow_sender import TOKEN_TAG, Sender
from selfshot.distributed.spool import FOLDER, Spool, note_sent, records
from selfshot.distributed.tracking import Tracker, send_left_over


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("database")
    tracker = Tracker(None, "paper", folder)
    tracker.start("first", id_file=folder / "id")
    assert tracker.close()
    from mlflow import MlflowClient

    client = MlflowClient(tracker.uri)
    client.delete_run((folder / "id").read_text().strip())
    return folder / "mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    """An output folder with a database in which no run is."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def spooled(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted((folder / FOLDER).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def all_runs(tracker: Tracker) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracker.uri)
    found = client.get_experiment_by_name(tracker.experiment)
    runs: list[Any] = client.search_runs([found.experiment_id])
    return runs


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes requests and answers none."""
    held = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held.wait(20)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    held.set()
    server.shutdown()


def test_a_dead_server_stops_nothing_and_nothing_is_lost(tmp_path: Path) -> None:
    tracker = Tracker("http://127.0.0.1:9", "paper", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the thread's own warning
        run = tracker.start("run", id_file=tmp_path / "id", params={"a": 1})
        run.log_metrics({"AP50": 60.0})
        run.end()
        assert not tracker.close(patience=30)
    assert run.run_id is None
    assert [one["what"] for one in spooled(tmp_path)] == [
        "head", "start", "params", "history", "end"
    ]  # fmt: skip


def test_a_silent_server_does_not_slow_a_run(silent_server: str, tmp_path: Path) -> None:
    tracker = Tracker(silent_server, "paper", tmp_path)
    began = time.monotonic()
    run = tracker.start("run", id_file=tmp_path / "id")
    for step in range(200):
        run.log_metrics({"loss": 1.0}, step)
    told = time.monotonic() - began
    with pytest.warns(UserWarning, match="selfshot track sync"):
        assert not tracker.close(patience=0.2)
    assert len(spooled(tmp_path)) == 202
    # 201 messages are written, whatever the server does: it would take 20 s for the first.
    assert told < 10


def test_what_was_kept_is_sent_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"number": 0}
    send = Sender.send

    def flaky(self: Sender, record: Any) -> None:
        calls["number"] += 1
        if calls["number"] > 3:
            raise ConnectionError("gone")
        send(self, record)

    monkeypatch.setattr(Sender, "send", flaky)
    tracker = Tracker(None, "paper", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = tracker.start("run", id_file=folder / "id", params={"a": 1})
        child = run.child("part", id_file=folder / "part.id")
        child.log_history([{"step": step, "loss": float(step)} for step in range(5)])
        run.end()
        assert not tracker.close(patience=60)
    monkeypatch.setattr(Sender, "send", send)
    assert send_left_over(folder) == 3
    assert not list((folder / FOLDER).glob("*.jsonl")) and send_left_over(folder) == 0
    runs = {one.info.run_name: one for one in all_runs(tracker)}
    assert set(runs) == {"run", "part"} and runs["run"].info.status == "FINISHED"
    assert runs["part"].data.tags["mlflow.parentRunId"] == runs["run"].info.run_id
    assert runs["part"].data.metrics["loss"] == 4.0


def test_the_next_run_sends_what_the_last_one_left(folder: Path) -> None:
    head = {"what": "head", "uri": f"sqlite:///{folder / 'mlflow.db'}", "experiment": "paper",
            "local": True, "time": 1.0}  # fmt: skip
    dead = Spool(folder, head)
    dead.put({"what": "start", "run": "t", "name": "old", "parent": None, "tags": {},
              "id_file": str(folder / "old.id"), "time": 1.0})  # fmt: skip
    dead.put({"what": "end", "run": "t", "status": "KILLED", "time": 2.0})
    with dead.path.open("ab") as file:
        file.write(b'{"what": "tags", "run": "t", "ta')  # killed in the middle of a line
    dead._file.close()
    tracker = Tracker(None, "paper", folder)
    tracker.start("new", id_file=folder / "new.id").end()
    assert tracker.close()
    assert {(run.info.run_name, run.info.status) for run in all_runs(tracker)} == {
        ("old", "KILLED"), ("new", "FINISHED")
    }  # fmt: skip
    assert not list((folder / FOLDER).glob("*.jsonl"))


def test_a_run_that_had_ended_stays_ended(folder: Path) -> None:
    """What is sent later for one run of a dead process opens none of its others again."""
    first = Tracker(None, "paper", folder)
    trial = first.start("trial", id_file=folder / "trial.id")
    other = first.start("other", id_file=folder / "other.id")
    assert first.close()
    head = {"what": "head", "uri": first.uri, "experiment": "paper", "local": True, "time": 1.0}
    dead = Spool(folder, head)
    for run in (trial, other):
        start = {"name": run.name, "id_file": str(run.id_file), "parent": None, "tags": {}}
        dead.put({"what": "start", "run": run.token, "time": 1.0, **start})
    end = {"what": "end", "run": trial.token, "status": "FINISHED", "time": 2.0}
    sent = dead.put(end)
    dead.put({"what": "tags", "run": other.token, "tags": {"late": "yes"}, "time": 3.0})
    dead._file.close()
    sender = Sender(first.uri, "paper", None)
    for record, _ in records(dead.path, 0):
        if record["what"] != "tags":
            sender.send(record)
    note_sent(dead.path, sent)
    assert send_left_over(folder) == 1
    runs = {run.info.run_name: run for run in all_runs(first)}
    assert len(runs) == 2 and runs["other"].data.tags["late"] == "yes"
    assert runs["trial"].info.status == "FINISHED"


def test_a_kill_between_a_run_and_its_id_leaves_no_second_run(folder: Path) -> None:
    ids = []
    for _ in range(2):
        tracker = Tracker(None, "paper", folder)
        run = tracker.start("run", id_file=folder / "id")
        run.end()
        assert tracker.close()
        ids.append(run.run_id)
        (folder / "id").unlink()  # as if it had not been written
    assert ids[0] == ids[1] and len(all_runs(tracker)) == 1
    assert all_runs(tracker)[0].data.tags[TOKEN_TAG] == run.token


def test_points_tables_and_datasets_are_there_once(folder: Path) -> None:
    for _ in range(2):
        tracker = Tracker(None, "paper", folder)
        run = tracker.start("run", id_file=folder / "id", params={"m": {"d": 7}, "l": "x" * 900})
        run.log_history([{"step": step, "loss": 1 / (step + 1)} for step in range(1201)])
        run.log_history([{"step": 0, "bad": float("nan"), "good": 1.0}])
        run.log_table([{"supports": "oracle", "AP50": 75.0}, {"supports": "random"}], "rows")
        run.log_dataset("sprites", "ab" * 32, folder, {"clips": 3}, "test")
        run.log_text("name: x\n", "experiment.yaml")
        run.end()
        assert tracker.close()
    from mlflow import MlflowClient

    client = MlflowClient(tracker.uri)
    found = client.get_run(run.run_id)
    assert len(found.data.params["l"]) == 500 and found.data.params["m.d"] == "7"
    assert len(client.get_metric_history(run.run_id, "loss")) == 1201
    assert "bad" not in found.data.metrics and found.data.metrics["good"] == 1.0
    (dataset,) = found.inputs.dataset_inputs
    assert dataset.dataset.digest == ("ab" * 32)[:36]
    assert {item.path for item in client.list_artifacts(run.run_id)} == {
        "rows.json", "experiment.yaml"
    }  # fmt: skip


def test_a_message_that_is_refused_holds_up_no_other(folder: Path) -> None:
    tracker = Tracker(None, "paper", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = tracker.start("run", id_file=folder / "id")
        run.log_metrics({"no/such\nname": 1.0})
        run.log_metrics({"AP50": 2.0})
        run.end()
        assert tracker.close()
    (kept,) = (folder / FOLDER / tracking.REFUSED).read_text().splitlines()
    assert json.loads(kept)["message"]["what"] == "history"
    assert all_runs(tracker)[0].data.metrics == {"AP50": 2.0}
