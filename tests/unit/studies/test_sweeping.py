"""A study's plan: what is shared, what is done, what it would cost. No Ray here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfshot.config.load import parse_experiment
from selfshot.config.sweep import Study, load_study
from selfshot.errors import UserError
from selfshot.studies.estimates import (
    duration,
    estimate_stages,
    estimate_study,
    work_of,
)
from selfshot.studies.resources import check_resources, refuse_without_capacity
from selfshot.studies.run import plan_experiment, run_experiment
from selfshot.studies.study import report_study, run_study
from selfshot.studies.sweeping import StudyPlan, plan_study, worker_config

TOY = Path(__file__).parents[2] / "integration" / "toy.yaml"


def study(output: Path, *overrides: str) -> Study:
    rows = "evaluation.supports=[random, seen_penalty]"
    return load_study(TOY, [f"output={output}", rows, *overrides])


def planned(output: Path, *overrides: str) -> StudyPlan:
    return plan_study(study(output, *overrides))


def shared(plan: StudyPlan) -> dict[str, int]:
    stages = [instance.stage for instance in plan.shared()]
    return {stage: stages.count(stage) for stage in stages}


TRAINED = {"benchmark": 1, "backbone": 1, "encoder": 1, "embeddings": 1, "index": 1, "seen": 1}


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        # The corpus study: one encoder, one transformer, one index for every subset.
        ("sweep.over={supports.shots: [[1], [2], [1, 2]]}", {**TRAINED, "vis": 1}),
        ("sweep.over={vis.num_instances: [2, 3]}", {**TRAINED, "supports": 1}),
        ("sweep.over={encoder.momentum: [0.9, 0.99]}", {"benchmark": 1, "backbone": 1, "vis": 1}),
        # Another seed is another benchmark: nothing is shared.
        ("sweep.repeat=3", {}),
        (
            "sweep.over={supports.shots: [[1], [2]], seed: [0, 1]}",
            {name: 2 * count for name, count in {**TRAINED, "vis": 1}.items()},
        ),
    ],
)
def test_what_trials_share(tmp_path: Path, sweep: str, expected: dict[str, int]) -> None:
    assert shared(planned(tmp_path, sweep)) == expected


def test_a_shared_stage_comes_after_what_it_needs(tmp_path: Path) -> None:
    plan = planned(tmp_path, "sweep.over={supports.shots: [[1], [2]], seed: [0, 1]}")
    before: set[str] = set()
    for instance in plan.instances.values():
        assert instance.needs <= before
        before.add(instance.id)


def test_a_trial_is_the_experiment_that_one_could_run_by_hand(tmp_path: Path) -> None:
    plan = planned(tmp_path, "sweep.over={vis.num_instances: [2, 3]}")
    by_hand = study(tmp_path, "vis.num_instances=3").experiment
    keys = {stage.stage: stage.key for stage in plan_experiment(by_hand, "evaluation")}
    assert list(plan.trials[1].instances) == [f"{stage}-{key}" for stage, key in keys.items()]


def test_the_last_stage_decides_how_far_a_trial_goes(tmp_path: Path) -> None:
    plan = planned(tmp_path, "sweep.over={supports.shots: [[1], [2]]}", "sweep.until=supports")
    assert {instance.stage for instance in plan.instances.values()} == {*TRAINED, "supports"}


def finish(plan: StudyPlan, number: int) -> None:
    trial = plan.trials[number]
    trial.path.parent.mkdir(parents=True, exist_ok=True)
    trial.path.write_text(json.dumps({"key": trial.key, "case": "old name", "timings": []}))


def test_finished_trials_are_not_planned_again(tmp_path: Path) -> None:
    sweep = "sweep.over={vis.num_instances: [2, 3, 4]}"
    finish(planned(tmp_path, sweep), 0)
    plan = planned(tmp_path, sweep)
    assert [trial.done for trial in plan.trials] == [True, False, False]
    assert [instance.trials for instance in plan.own() if instance.stage == "vis"] == [(1,), (2,)]
    # A wider sweep knows those of the narrower one; half a file is no result.
    wider = planned(tmp_path, "sweep.over={vis.num_instances: [5, 2, 3]}")
    assert [trial.done for trial in wider.trials] == [False, True, False]
    plan.trials[0].path.write_text('{"key":')
    assert len(planned(tmp_path, sweep).open_trials) == 3


def test_cases_with_the_same_settings_are_one_trial(tmp_path: Path) -> None:
    plan = planned(tmp_path, "sweep.cases={a: {}, b: {vis.num_instances: 3}, c: {}}")
    assert [len(plan.trials), len(plan.entries)] == [2, 3]
    finish(plan, 0)
    assert [result["case"] for result in plan.results()] == ["a", "c"]


def test_a_worker_is_told_all_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = planned(Path("runs"), "sweep.over={vis.num_instances: [2, 3]}")
    config = json.loads(json.dumps(worker_config(plan, plan.trials[1], "vis", "log")))
    told = parse_experiment(config["experiment"], "the trial")
    assert told.output == tmp_path / "runs" and told.vis.num_instances == 3
    assert config["trial"]["settings"] == {"vis.num_instances": 3}
    assert Path(config["log"]).is_absolute() and config["metric"] == ""


def test_files_are_walked_over_once_for_all_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfshot.studies import builders

    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.mp4").write_bytes(b"one")
    walks = []
    walk = builders._walked_digest
    monkeypatch.setattr(builders, "_walked_digest", lambda e: walks.append(1) or walk(e))
    plan = planned(
        tmp_path / "runs",
        f"benchmark={{kind: self_vis, annotations: {tmp_path / 'clips' / 'one.mp4'},"
        f" frames: {tmp_path / 'clips'}, corpus: {tmp_path / 'clips'}}}",
        "sweep.over={benchmark.val_share: [0.4, 0.5]}", "sweep.until=benchmark", "sweep.repeat=3",
    )  # fmt: skip
    assert len(plan.trials) == 6 and len(walks) == 2 and len(plan.digests) == 2


def test_a_report_needs_a_trial(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 2 trials is done"):
        report_study(study(tmp_path, "sweep.over={vis.num_instances: [2, 3]}"))


def stored(output: Path, plan: StudyPlan, stage: str, seconds: float, size: int) -> None:
    """A finished result in the store, as a manifest describes it."""
    instance = next(instance for instance in plan.instances.values() if instance.stage == stage)
    experiment: Any = plan.trials[0].trial.experiment
    section = getattr(experiment, stage).model_dump(mode="json")
    manifest = {
        "stage": stage, "key": instance.key, "settings": section, "inputs": {}, "seconds": seconds,
        "files": {"x": {"bytes": size}},
    }  # fmt: skip
    instance.path.mkdir(parents=True)
    (instance.path / "manifest.json").write_text(json.dumps(manifest))
    (instance.path / "x").write_bytes(b"." * size)


def test_an_estimate_needs_something_that_was_measured(tmp_path: Path) -> None:
    plan = planned(tmp_path, "sweep.over={vis.num_instances: [2, 3]}")
    (line,) = estimate_study(plan).lines()
    assert line.startswith("time: not known")


def test_an_estimate_scales_with_the_work(tmp_path: Path) -> None:
    first = planned(tmp_path, "sweep.over={vis.num_instances: [2, 3]}")
    stored(tmp_path, first, "vis", 40.0, 100)
    plan = planned(
        tmp_path, "sweep.over={vis.num_instances: [2, 3, 4]}", "vis.optimiser.steps=12",
    )  # fmt: skip
    estimate = estimate_study(plan)
    parts = [part for part in estimate.parts if part.stage == "vis"]
    assert [part.seconds for part in parts] == [pytest.approx(120.0)] * 3
    assert [part.bytes for part in parts] == [pytest.approx(300.0)] * 3
    assert estimate.measured == 1
    words = " ".join(estimate.lines())
    assert "what is not measured yet: backbone, benchmark" in words
    assert "GPU hours: none" in words
    gpu = planned(
        tmp_path, "sweep.over={vis.num_instances: [2]}", "compute.use_gpu=true",
        "compute.num_workers=2", "vis.optimiser.steps=360",
    )  # fmt: skip
    assert "GPU hours: 2.0" in " ".join(estimate_study(gpu).lines())


def test_what_is_done_costs_nothing(tmp_path: Path) -> None:
    experiment = study(tmp_path).experiment
    assert estimate_stages(experiment, [("vis", "done")]).lines() == [
        "everything is done; only the report is written"
    ]


def test_work_is_counted_in_what_takes_the_time() -> None:
    settings = study(Path("x")).experiment.model_dump(mode="json")
    assert work_of("embeddings", settings) == 24 * 3
    assert work_of("encoder", settings) == 4 * (4 * 2)
    assert work_of("vis", settings) == work_of("vis_no_fuser", settings) == 4 * 2 * 2 * 4
    settings["evaluation"]["rows"] = [{"shots": 0, "extra": 0}, {"shots": 5, "extra": 3}]
    assert work_of("evaluation", settings) == 1 + 9
    assert work_of("index", settings) == 24 and work_of("supports", settings) == 1


def test_resources_that_no_machine_has(tmp_path: Path) -> None:
    loaded = study(tmp_path, "compute.use_gpu=true", "compute.num_workers=2").experiment
    with pytest.raises(UserError, match=r"needs as many GPUs, and this machine has \d+; set comp"):
        check_resources(loaded)
    assert "cores, on which they fit" in check_resources(study(tmp_path).experiment)


def test_a_run_that_no_machine_can_train_is_refused_before_it_begins(tmp_path: Path) -> None:
    over = "sweep.over={vis.support_positions: [true, false]}"
    wanted = study(tmp_path, "compute.use_gpu=true", "compute.num_workers=2", over)
    with pytest.raises(UserError, match="needs as many GPUs"):
        run_study(wanted)
    with pytest.raises(UserError, match="needs as many GPUs"):
        run_experiment(wanted.experiment)
    assert not list(tmp_path.iterdir())
    # Where everything is trained, nobody needs a GPU any more.
    assert refuse_without_capacity(wanted.experiment, ["supports", "evaluation"]) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.4, "12 s"), (720, "12 min"), (5400, "1.5 h"), (99_000, "27.5 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
