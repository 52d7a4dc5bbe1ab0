"""A whole sweep at toy size: what is shared is made once, nothing that is done is made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfshot.config.sweep import Study, load_study
from selfshot.studies.study import StudyRun, report_study, run_study
from selfshot.studies.sweeping import plan_study

pytestmark = [
    pytest.mark.usefixtures("ray_running"), pytest.mark.slow, pytest.mark.timeout(900)
]  # fmt: skip

TOY = Path(__file__).parent / "toy.yaml"
SWEEP = [
    "name=toystudy",
    "evaluation.supports=[random,seen_penalty]",
    "sweep.over={supports.shots: [[1], [1, 2]], vis.query_positions: [true, false]}",
]


def loaded(output: Path, *more: str) -> Study:
    return load_study(TOY, [f"output={output}", *SWEEP, *more])


@pytest.fixture(scope="module")
def output(ray_running: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(output: Path) -> StudyRun:
    return run_study(loaded(output))


def manifests(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("store/*/*/manifest.json")}


def test_every_trial_is_done_and_shared_stages_are_made_once(output: Path, first: StudyRun) -> None:
    assert first.failures == {} and len(first.results) == 4
    made = [path.parts[-3] for path in manifests(output)]
    # Predicted rows are kept by their supports, and trials that chose the same share them.
    made = [stage for stage in made if stage != "evaluated_rows"]
    assert {stage: made.count(stage) for stage in made} == {
        "benchmark": 1, "backbone": 1, "encoder": 1, "embeddings": 1, "index": 1, "seen": 1,
        "supports": 2, "vis": 2, "evaluation": 4,
    }  # fmt: skip
    assert all(trial.done for trial in plan_study(loaded(output)).trials)
    for result in first.results:
        statuses = {entry["stage"]: entry["status"] for entry in result["timings"]}
        assert statuses.pop("evaluation") == "made" and set(statuses.values()) == {"reused"}
        assert {row["supports"] for row in result["rows"]} == {"random", "seen_penalty"}


def test_the_report(output: Path, first: StudyRun) -> None:
    names = {path.name for path in first.report.iterdir()}
    assert names == {
        "report.md", "report.html", "table.md", "table.csv", "table.tex", "results.json"
    }  # fmt: skip
    summary: dict[str, Any] = json.loads((first.report / "results.json").read_text())
    assert len(summary["trials"]) == 4 and summary["unfinished"] == []
    page = (first.report / "report.html").read_text()
    for result in first.results:
        assert result["label"] in (first.report / "table.md").read_text()
        assert result["key"] in page
    assert report_study(loaded(output)) == first.report


def test_a_second_run_makes_nothing(output: Path, first: StudyRun) -> None:
    before = manifests(output)
    trials = {path: path.stat().st_mtime_ns for path in output.glob("toystudy/trials/*.json")}
    again = run_study(loaded(output))
    assert manifests(output) == before and again.results == first.results
    assert {p: p.stat().st_mtime_ns for p in output.glob("toystudy/trials/*.json")} == trials


def test_a_failed_trial_stops_no_other_one(
    output: Path, first: StudyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (
        "sweep.over={supports.shots: [[1], [1, 2]], vis.query_positions: [true], "
        "vis.optimiser.learning_rate: [1.0e-3, 1.0e+30]}"
    )
    made = run_study(loaded(output, "name=broken", wrong, "compute.max_failures=0"))
    assert len(made.results) == 2 and len(made.failures) == 2
    assert all("not finite" in reason or "vis" in reason for reason in made.failures.values())
    text = (made.report / "report.md").read_text()
    assert "Trials that are not there" in text
    assert "2 of 4 trials failed" in capsys.readouterr().out
