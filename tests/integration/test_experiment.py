"""A whole experiment at toy size on the real engine: made once, logged to MLflow, then reused."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from selfshot.benchmarks.manifest import load_benchmark, query_key, read_corpus
from selfshot.config.load import load_experiment
from selfshot.config.schema import Experiment
from selfshot.distributed.mlflow_runs import Target
from selfshot.retrieval.clip_ids import ClipIds
from selfshot.studies.run import (
    StagePlan,
    plan_experiment,
    report_experiment,
    run_experiment,
    verify_experiment,
)
from selfshot.studies.scores import figure_name
from selfshot.studies.stages import STAGES

pytestmark = pytest.mark.usefixtures("ray_running")

TOY = Path(__file__).parent / "toy.yaml"
NAMES = [stage.name for stage in STAGES]
ROWS = [
    ("none", 0),
    ("no_fuser", 0),
    ("query_itself", 1),
    *[
        (kind, shots)
        for kind in ("random", "self_shot", "seen_penalty", "oracle")
        for shots in (1, 2)
    ],
]
REUSED_S = 15.0


@dataclasses.dataclass(frozen=True)
class Run:
    """What a call of `run_experiment` did."""

    experiment: Experiment
    report: Path
    said: str
    seconds: float

    @property
    def plans(self) -> dict[str, StagePlan]:
        return {plan.stage: plan for plan in plan_experiment(self.experiment)}

    @property
    def statuses(self) -> dict[str, str]:
        """Stage → started, going on or reused, as a person reads it."""
        return dict(re.findall(r"\[\d+/\d+\] (\w+): (started|going on|reused)", self.said))


def run(output: Path, *overrides: str) -> Run:
    experiment = load_experiment(TOY, [f"output={output}", *overrides])
    said, began = io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(said):
        report = run_experiment(experiment)
    assert report is not None
    return Run(experiment, report, said.getvalue(), time.monotonic() - began)


@pytest.fixture(scope="module")
def first(ray_running: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("runs"))


def results_of(made: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((made.report / "results.json").read_text())
    return rows


def test_every_stage_is_made(first: Run) -> None:
    assert first.statuses == dict.fromkeys(NAMES, "started")
    assert {name: plan.status for name, plan in first.plans.items()} == dict.fromkeys(NAMES, "done")
    assert verify_experiment(first.experiment) == []
    store = first.experiment.output / "store"
    assert not list(store.glob("*/*.partial")) and not list(store.glob("*/*.damaged-*"))
    assert first.report == first.experiment.output / "toy" / "report"
    assert load_experiment(first.report.parent / "experiment.yaml") == first.experiment
    for name, steps in (("backbone", 6), ("encoder", 4), ("vis", 4), ("vis_no_fuser", 4)):
        folder = first.plans[name].path
        points = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert [point["step"] for point in points] == list(range(2, steps + 1, 2))
        assert list((folder / "export").glob("*.safetensors"))


def test_the_corpus_is_embedded_whole(first: Run) -> None:
    summary = json.loads((first.plans["embeddings"].path / "summary.json").read_text())
    clips = read_corpus(first.plans["benchmark"].path)
    assert summary["embedded"] == len(clips) == 24 and summary["quarantined"] == 0
    indexed = list(ClipIds.load(first.plans["index"].path))
    assert indexed == [row["clip_id"] for row in clips]


def test_supports_of_every_query(first: Run) -> None:
    folder = first.plans["benchmark"].path
    benchmark = load_benchmark(folder)
    corpus = {row["clip_id"] for row in read_corpus(folder)}
    chosen = json.loads((first.plans["supports"].path / "supports.json").read_text())
    assert set(chosen) == {query_key(*pair) for pair in benchmark.queries["test"]}
    for video, name in benchmark.queries["test"]:
        supports = chosen[query_key(video, name)]
        for kind in ("self_shot", "seen_penalty", "random"):
            assert len(set(supports[kind])) == 2 and set(supports[kind]) <= corpus
        assert len(set(supports["oracle"])) == 2
        assert tuple(supports["oracle"]) == benchmark.pairs["test"][query_key(video, name)][:2]
        assert set(supports["oracle"]) <= set(benchmark.supports["test"][name])
        assert video not in supports["oracle"]
        assert supports["self_shot_scores"] and max(supports["self_shot_scores"]) <= 1.0
    retrieval = json.loads((first.plans["supports"].path / "retrieval.json").read_text())
    # Four classes (val 1, test 2, seen 1) share the 24 clips.
    assert retrieval["test"]["chance"] == pytest.approx(0.25)
    assert set(retrieval["test"]["precision_at"]) == {"1", "5"}


def test_results_have_the_form_that_others_read(first: Run) -> None:
    rows = results_of(first)
    assert [(row["supports"], row["shots"]) for row in rows] == ROWS
    for row in rows:
        assert row["extra"] == 0
        for score in ("AP50", "AP", "AP75", "AR10"):
            figures = row[score]
            assert {"mean", "std", "per_fold"} <= set(figures)
            assert len(figures["per_fold"]) == 2 and figures["std"] >= 0
            assert all(0 <= figure <= 100 for figure in figures["per_fold"])
            assert figures["mean"] == pytest.approx(sum(figures["per_fold"]) / 2)


def test_animations_and_attention(first: Run) -> None:
    """Figures 3 and 5 as files, which MLflow has with the rest of the report."""
    drawn = run(
        first.experiment.output,
        "name=animations",
        "report.animations=1",
        "tracking.experiment=animations",
    )
    assert drawn.statuses == dict.fromkeys(NAMES, "reused")
    for figure in ("animations", "attention"):
        files = [path.suffix for path in (drawn.report / figure).iterdir()]
        assert sorted(set(files) - {".html"}) == [".gif", ".png"]
    page = (drawn.report / "report.html").read_text()
    assert page.count('<figure class="attention">') == 1
    assert '<figure class="attention">' not in (first.report / "report.html").read_text()


def test_the_report_is_one_page_that_needs_nothing_else(first: Run) -> None:
    assert {path.name for path in first.report.iterdir()} == {
        "results.json",
        "report.md",
        "report.html",
        "corpus.png",
        "details.json",
        "gallery.png",
    }
    page = (first.report / "report.html").read_text()
    fetched = re.findall(r"""(?:src|href|poster)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", page)
    for address in ("".join(found).strip("'\"") for found in fetched):
        assert address.startswith(("data:", "#")), address[:80]
    assert "@import" not in page and "<iframe" not in page
    assert page.count("data:image/") >= 2
    words = (first.report / "report.md").read_text()
    for plan in first.plans.values():
        assert plan.key in page and plan.key in words
    for text in (page, words):
        assert "mlflow ui --backend-store-uri" in text


def test_mlflow_knows_the_run_its_stages_and_trials(first: Run) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(Target(None, "selfshot", first.experiment.output).address)
    found = client.get_experiment_by_name("selfshot")
    runs = client.search_runs([found.experiment_id], max_results=100)
    assert {one.info.status for one in runs} == {"FINISHED"}
    below: dict[str, list[Any]] = {}
    for one in runs:
        below.setdefault(one.data.tags.get("mlflow.parentRunId", ""), []).append(one)
    (parent,) = below[""]
    assert parent.info.run_name == "toy"
    assert parent.data.params["backbone.dim"] == "12" and parent.data.params["seed"] == "0"
    for row in results_of(first):
        assert parent.data.metrics[figure_name("AP50", row)] == pytest.approx(row["AP50"]["mean"])
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id, "report")}
    files = ("results.json", "details.json", "report.md", "report.html")
    names = (*files, "gallery.png", "corpus.png")
    assert artifacts == {f"report/{name}" for name in names}
    assert "results.json" in {item.path for item in client.list_artifacts(parent.info.run_id)}

    stages = {one.info.run_name: one for one in below[parent.info.run_id]}
    assert set(stages) == set(NAMES)
    for name, stage in stages.items():
        key = first.plans[name].key
        assert stage.data.tags["selfshot.key"] == key == parent.data.tags[f"stage.{name}"]
        assert stage.data.metrics["seconds"] >= 0
        assert stage.info.end_time >= stage.info.start_time + 900 * stage.data.metrics["seconds"]
        for before in next(s for s in STAGES if s.name == name).inputs:
            assert stage.data.tags[f"input.{before}"] == first.plans[before].key
    losses = client.get_metric_history(stages["vis"].info.run_id, "loss")
    assert [point.step for point in losses] == [2, 4]
    assert stages["vis"].data.params["optimiser.steps"] == "4"

    trials = {one.info.run_name: one for one in below[stages["evaluation"].info.run_id]}
    assert set(trials) == {"evaluation.fold_0", "evaluation.fold_1"}
    for row in results_of(first):
        for number, figure in enumerate(row["AP50"]["per_fold"]):
            metrics = trials[f"evaluation.fold_{number}"].data.metrics
            assert metrics[figure_name("AP50", row)] == pytest.approx(figure)
    assert len(runs) == 1 + len(NAMES) + 2


def test_the_second_run_reuses_everything(first: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in stored_files(first)}
    runs = number_of_runs(first)
    again = run(first.experiment.output)
    assert again.statuses == dict.fromkeys(NAMES, "reused")
    assert " made in " not in again.said and again.seconds < REUSED_S
    assert {path: path.stat().st_mtime_ns for path in stored_files(first)} == before
    assert results_of(again) == results_of(first) and number_of_runs(first) == runs


def stored_files(made: Run) -> list[Path]:
    return [path for path in (made.experiment.output / "store").rglob("*") if path.is_file()]


def number_of_runs(made: Run) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(Target(None, "selfshot", made.experiment.output).address)
    found = client.get_experiment_by_name("selfshot")
    return len(client.search_runs([found.experiment_id], max_results=1000))


def test_a_stage_that_lost_a_file_is_made_again(first: Run) -> None:
    folder = first.plans["index"].path
    bytes_before = (folder / "index.faiss").read_bytes()
    (folder / "index.faiss").unlink()
    assert verify_experiment(first.experiment)[0].startswith("index/")
    again = run(first.experiment.output)
    assert again.statuses == dict.fromkeys(NAMES, "reused") | {"index": "started"}
    assert "index.faiss is missing; quarantined as" in again.said and again.seconds < REUSED_S
    assert (folder / "index.faiss").read_bytes() == bytes_before
    assert folder.with_name(f"{folder.name}.damaged-1").is_dir()
    assert verify_experiment(first.experiment) == []


def test_the_report_is_written_anew(first: Run) -> None:
    """It holds times, addresses and templates, which are in no key."""
    (first.report / "report.html").write_text("an old page")
    assert report_experiment(first.experiment) == first.report
    assert "an old page" not in (first.report / "report.html").read_text()
    assert f"{len(NAMES)} stages reused" in (first.report / "report.md").read_text()


def test_another_report_makes_no_stage(first: Run) -> None:
    runs = number_of_runs(first)
    again = run(first.experiment.output, "report.gallery_queries=0", "description=Another one.")
    assert again.statuses == dict.fromkeys(NAMES, "reused")
    assert again.seconds < REUSED_S and results_of(again) == results_of(first)
    words = (again.report / "report.md").read_text()
    assert "Another one." in words and f"{len(NAMES)} stages reused" in words
    # Other settings are another run: MLflow's parameters cannot change, and its figures should not.
    assert number_of_runs(first) == 2 * runs
    assert report_experiment(first.experiment) == first.report
    assert "Another one." not in (first.report / "report.md").read_text()
