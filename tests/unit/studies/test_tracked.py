"""What MLflow has of an experiment and of a study, read from what they leave on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfshot.config.load import load_experiment, parse_experiment
from selfshot.config.schema import Experiment
from selfshot.config.sweep import load_study
from selfshot.distributed import tracking
from selfshot.distributed.mlflow_runs import Target
from selfshot.store.local import StageFolder, Store, stage_key
from selfshot.studies.context import Context
from selfshot.studies.reports.tables import Cell, Table
from selfshot.studies.run import (
    open_store,
    report_experiment,
    run_experiment,
    stage_keys,
    stage_settings,
    wanted_stages,
)
from selfshot.studies.scores import figure_name
from selfshot.studies.tracking import (
    FACTS,
    LONGEST_NOTE,
    log_left_over,
    results_of_experiment,
    results_of_study,
    tracked,
)

TOY = Path(__file__).parents[2] / "integration" / "toy.yaml"
SETTINGS = {"vis": {"steps": 4}, "evaluation": {"shots": [1]}}
KEYS = {name: stage_key(name, 1, settings, {}) for name, settings in SETTINGS.items()}
ROWS = [
    {"supports": "none", "shots": 0, "extra": 0},
    {"supports": "self_shot", "shots": 5, "extra": 3},
]
SCORES = {"AP50": 31.0, "AP": 20.0, "AP75": 10.0, "AR10": 5.0}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("database")
    Target(None, "selfshot", folder).connect()
    return folder / "mlflow.db"


@pytest.fixture
def experiment(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Experiment:
    """One whose output folder has a database in which no run is."""
    monkeypatch.setattr(tracking, "LIVE_S", 0.05)
    (tmp_path / "runs").mkdir()
    shutil.copyfile(empty_database, tmp_path / "runs" / "mlflow.db")
    return load_experiment(TOY, [f"output={tmp_path / 'runs'}"])


def ids_of(experiment: Experiment) -> Path:
    return experiment.output / experiment.name / "mlflow" / "hash"


def runs_of(experiment: Experiment) -> dict[str, Any]:
    client = Target(None, "selfshot", experiment.output).connect()
    found = client.get_experiment_by_name("selfshot")
    runs = client.search_runs([found.experiment_id]) if found else []
    assert len({run.info.run_name for run in runs}) == len(runs), "a run is there twice"
    return {run.info.run_name: run for run in runs}


def curve(experiment: Experiment, name: str, key: str) -> list[tuple[int, float]]:
    runs = runs_of(experiment)
    if name not in runs:
        return []
    client = Target(None, "selfshot", experiment.output).connect()
    history = client.get_metric_history(runs[name].info.run_id, key)
    return [(one.step, one.value) for one in history]


def learn(folder: StageFolder, steps: range) -> None:
    """What a worker leaves of these steps."""
    with (folder.path / "history.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "time": 1.0 + step, "loss": 9.0 - step}) + "\n")


def test_a_learning_curve_is_in_mlflow_while_the_network_trains(experiment: Experiment) -> None:
    store, ids = open_store(experiment), ids_of(experiment)
    began = time.time()
    with (
        pytest.raises(KeyboardInterrupt),
        tracked(experiment, ids, store, None, kind="experiment", stages=KEYS),
        store.stage("vis", 1, SETTINGS["vis"], {}) as folder,
    ):
        learn(folder, range(2))
        with (folder.path / "history.jsonl").open("a") as file:
            file.write('{"step": 2, "lo')  # as the worker is just writing it
        while curve(experiment, "vis", "loss") != [(0, 9.0), (1, 8.0)]:
            time.sleep(0.05)
        assert {run.info.status for run in runs_of(experiment).values()} == {"RUNNING"}
        raise KeyboardInterrupt
    assert {name: run.info.status for name, run in runs_of(experiment).items()} == {
        "toy": "KILLED", "vis": "KILLED"
    }  # fmt: skip

    with (
        tracked(experiment, ids, store, None, kind="experiment", stages=KEYS),
        store.stage("vis", 1, SETTINGS["vis"], {}) as folder,
    ):
        (folder.path / "history.jsonl").unlink()
        learn(folder, range(4))  # It goes on from a checkpoint, so some points are there again.
        folder.finish(metrics={"loss": 6.0, "step": 3, "best": {"AP50": 40.0}})
    runs = runs_of(experiment)
    assert {name: run.info.status for name, run in runs.items()} == {
        "toy": "FINISHED", "vis": "FINISHED"
    }  # fmt: skip
    assert curve(experiment, "vis", "loss") == [(step, 9.0 - step) for step in range(4)]
    assert curve(experiment, "vis", "best/AP50") == [(0, 40.0)]
    vis = runs["vis"]
    assert vis.data.params == {"steps": "4"} and vis.data.tags["selfshot.key"] == KEYS["vis"]
    assert vis.data.tags["mlflow.parentRunId"] == runs["toy"].info.run_id
    for run in runs.values():
        assert 1000 * began - 1 <= run.info.start_time < run.info.end_time <= 1000 * time.time()


def test_a_stage_that_was_there_has_the_times_of_its_making(experiment: Experiment) -> None:
    store = open_store(experiment)
    with store.stage("vis", 1, SETTINGS["vis"], {}) as folder:
        folder._seconds_before = 3600.0
        folder.finish()
    with tracked(experiment, ids_of(experiment), store, None, kind="experiment", stages=KEYS):
        pass
    info = runs_of(experiment)["vis"].info
    assert 3600e3 <= info.end_time - info.start_time < 3700e3


def evaluate(store: Store) -> None:
    with store.stage("evaluation", 1, SETTINGS["evaluation"], {}) as folder:
        (folder.path / "trials").mkdir()
        result = {"queries": 3, "fold": 0, "rows": [row | SCORES for row in ROWS]}
        (folder.path / "trials" / "fold_0.json").write_text(json.dumps(result))
        folder.finish(metrics={figure_name("AP50", row): 31.0 for row in ROWS})


def test_a_figure_has_one_name(experiment: Experiment) -> None:
    store, ids = open_store(experiment), ids_of(experiment)
    stages = {"evaluation": KEYS["evaluation"]}
    spread = {name: {"mean": 31.0, "std": 1.0} for name in SCORES}
    with tracked(experiment, ids, store, None, kind="experiment", stages=stages) as run:
        evaluate(store)
        (experiment.output / "toy" / "report").mkdir()
        run.write(**results_of_experiment([row | spread for row in ROWS]))
    runs = runs_of(experiment)
    assert set(runs) == {"toy", "evaluation", "evaluation.fold_0"}
    for found in runs.values():
        figures = {name for name in found.data.metrics if name.startswith("AP50")}
        assert figures == {"AP50/none/0_shot", "AP50/self_shot/5_shot_3_extra"}


CHILD = """
import sys, time
from pathlib import Path
from selfshot.config.load import load_experiment
from selfshot.studies.run import open_store
from selfshot.studies.tracking import tracked
experiment = load_experiment(sys.argv[1], [f"output={sys.argv[2]}"])
store, ids = open_store(experiment), Path(sys.argv[3])
stages = dict(zip(sys.argv[4::2], sys.argv[5::2]))
with (
    tracked(experiment, ids, store, None, kind="experiment", stages=stages),
    store.stage("vis", 1, {"steps": 4}, {}) as folder,
):
    (folder.path / "history.jsonl").write_text('{"step": 0, "time": 1.0, "loss": 9.0}\\n')
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_logged_by_track_sync(experiment: Experiment) -> None:
    ids, words = ids_of(experiment), [word for stage in KEYS.items() for word in stage]
    command = [sys.executable, "-c", CHILD, str(TOY), str(experiment.output), str(ids), *words]
    process = subprocess.Popen(command, env={**os.environ})
    while not curve(experiment, "vis", "loss"):
        assert process.poll() is None
        time.sleep(0.05)
    assert log_left_over(ids, open_store) == (0, []), "its process is alive and logs it"
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = open_store(experiment)
    assert {run.info.status for run in runs_of(experiment).values()} == {"RUNNING"}
    assert log_left_over(ids, open_store) == (1, [])
    runs = runs_of(experiment)
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    heartbeat = (store.root / "vis" / f"{KEYS['vis']}.partial" / "scratch" / "seconds").stat()
    facts = (ids / FACTS).read_text()
    assert runs["toy"].info.end_time / 1000 >= heartbeat.st_mtime - 1
    assert log_left_over(ids, open_store) == (0, []) and (ids / FACTS).read_text() == facts


def table(rows: int) -> Table:
    cells = (Cell(31.0, 2.0, (29.0, 33.0), "folds"),)
    return Table("Scores", "", ("five",), tuple((f"row {n}", cells) for n in range(rows)))


def test_the_table_is_on_the_face_of_the_run() -> None:
    facts = results_of_study([table(2), table(1)], "What it is", 2, 1)
    note = facts["note"]
    assert note.startswith("What it is\n\n**Scores**") and "| row 1 | 31.0 ± 2.0 |" in note
    assert set(facts["tables"]) == {"table", "table_2"}
    note = results_of_study([table(900)], "What it is", 2, 1)["note"]
    assert len(note) < LONGEST_NOTE and note.endswith("report/table.md.")


def trial_result(key: str, label: str, window: int) -> dict[str, Any]:
    return {
        "key": key, "label": label, "case": "", "settings": {"supports.window_size": window},
        "seed": 0, "stages": {"vis": KEYS["vis"]},
        "timings": [{"stage": "vis", "seconds": 5.0, "status": "made"}],
        "rows": [row | {s: {"mean": v, "std": 1.0} for s, v in SCORES.items()} for row in ROWS],
        "retrieval": {"test": {"precision_at": {"5": 0.5}}},
    }  # fmt: skip


def test_a_study_is_one_run_with_its_trials_below(experiment: Experiment) -> None:
    over = "sweep.over={supports.window_size: [2, 3]}"
    study = load_study(TOY, [f"output={experiment.output}", over])
    labels = [trial.label for trial in study.trials]
    store, ids = open_store(experiment), experiment.output / "toy" / "mlflow" / "study"
    # Both need the same vis; one of them makes an evaluation of its own.
    evaluation = {"evaluation": KEYS["evaluation"]}
    trials = {
        "aa": {"label": labels[0], "stages": {"vis": KEYS["vis"]}},
        "bb": {"label": labels[1], "stages": {"vis": KEYS["vis"], **evaluation}},
    }
    (experiment.output / "toy" / "trials").mkdir(parents=True)
    with store.stage("vis", 1, SETTINGS["vis"], {}) as folder:
        learn(folder, range(2))
        folder.finish()

    def finish(key: str, number: int) -> None:
        result = trial_result(key, labels[number], number + 2)
        (experiment.output / "toy" / "trials" / f"{key}.json").write_text(json.dumps(result))

    def run(done: int, outcome: str) -> dict[str, Any]:
        with tracked(study.experiment, ids, store, None, kind="study", trials=trials) as one:
            one.outcome = outcome
            one.write(**results_of_study([table(1)], "", done, 2 - done))
        return runs_of(experiment)

    finish("aa", 0)
    (store.root / "evaluation" / f"{KEYS['evaluation']}.partial").mkdir(parents=True)
    first = run(1, "FAILED")
    assert {name: one.info.status for name, one in first.items()} == {
        "toy": "FAILED", labels[0]: "FINISHED", labels[1]: "FAILED"
    }  # fmt: skip
    assert curve(experiment, "toy", f"vis-{KEYS['vis'][:6]}/loss") == [(0, 9.0), (1, 8.0)]
    finish("bb", 1)
    second = run(2, "FINISHED")
    assert {one.info.status for one in second.values()} == {"FINISHED"}
    assert curve(experiment, "toy", "trials_done") == [(1, 1.0), (2, 2.0)]
    assert curve(experiment, "toy", "trials_left") == [(1, 1.0), (2, 0.0)]
    trial = second[labels[1]]
    assert trial.data.params == {"supports.window_size": "3", "seed": "0"}
    assert trial.data.metrics["AP50/self_shot/5_shot_3_extra"] == 31.0
    assert trial.data.metrics["test/precision_at/5"] == 0.5
    assert curve(experiment, labels[1], "vis/loss") == [(0, 9.0), (1, 8.0)]
    client = Target(None, "selfshot", experiment.output).connect()
    text = Path(client.download_artifacts(trial.info.run_id, "experiment.yaml")).read_text()
    assert parse_experiment(text, "the artifact") == study.trials[1].experiment


def test_a_report_is_drawn_once_for_the_same_settings_and_results(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = wanted_stages(experiment)
    settings = stage_settings(stages, experiment)
    keys, store = stage_keys(stages, settings), open_store(experiment)
    for one in stages:
        inputs = {name: keys[name] for name in one.inputs}
        with store.stage(one.name, one.version, settings[one.name], inputs) as folder:
            folder.finish(metrics={})
    drawn = []

    def make_page(context: Context, folder: Path) -> None:
        drawn.append(context.experiment.description)
        for name in ("results.json", "report.md", "report.html"):
            (folder / name).write_text("[]")

    monkeypatch.setattr("selfshot.studies.reports.page.make_page", make_page)
    other = experiment.model_copy(update={"description": "other"})
    mine = experiment.description
    for _ in range(2):
        report = run_experiment(experiment)
    assert drawn == [mine] and report is not None
    run_experiment(other)
    run_experiment(experiment)
    assert drawn == [mine, "other", mine]
    (report / "report.html").unlink()
    run_experiment(experiment)
    report_experiment(experiment)
    assert drawn[3:] == [mine, mine]
