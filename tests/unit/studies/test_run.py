"""An experiment's plan: which settings change which stages, and what a run needs. No Ray here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from refusals import refused
from selfshot.config.load import load_experiment
from selfshot.config.paths import check_inputs
from selfshot.studies.run import (
    plan_experiment,
    publish,
    report_experiment,
    verify_experiment,
)
from selfshot.studies.stages import STAGES, table_rows

TOY = Path(__file__).parents[2] / "integration" / "toy.yaml"
ALL = {stage.name for stage in STAGES}
EVALUATED = {"evaluation"}
RETRIEVED = {"embeddings", "index", "supports", *EVALUATED}
VIS = {"vis", "vis_no_fuser", *EVALUATED}


def keys(output: Path, *overrides: str, until: str | None = None) -> dict[str, str]:
    experiment = load_experiment(TOY, [f"output={output}", *overrides])
    return {plan.stage: plan.key for plan in plan_experiment(experiment, until)}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("seed=1", ALL),
        ("benchmark.corpus_clips=25", ALL),
        ("backbone.width=16", ALL - {"benchmark"}),
        ("backbone.optimiser.steps=7", ALL - {"benchmark"}),
        ("encoder.momentum=0.9", {"encoder", "seen", *RETRIEVED}),
        ("embedding.num_frames=2", RETRIEVED),
        ("embedding.dtype=float16", RETRIEVED),
        ("supports.shots=[1, 3]", {"supports", *EVALUATED}),
        ("supports.window_size=2", {"supports", *EVALUATED}),
        ("supports.seen_penalty=0.25", {"supports", *EVALUATED}),
        ("supports.extra=[0, 1]", {"supports", *EVALUATED}),
        ("supports.corpus_share=0.5", {"supports", *EVALUATED}),
        # Settings of rows that the table does not have, and of an index that it is not.
        ("supports.semi_shot=[[2, 3]]", set()),
        ("supports.corpus_seed=1", set()),
        ("index.memory_gb=2.0", set()),
        ("index.nprobe=7", set()),
        ("index.kind=auto", {"index", "supports", *EVALUATED}),
        ("vis.num_instances=3", VIS),
        ("vis.weights.dice=1.0", VIS),
        ("vis.optimiser.learning_rate=2.0e-3", VIS),
        # Folds and their size decide which queries there are supports for.
        ("evaluation.folds=3", {"supports", *EVALUATED}),
        ("evaluation.max_queries_per_fold=2", {"supports", *EVALUATED}),
        ("evaluation.supports=[no_fuser, seen_penalty, oracle]", EVALUATED),
        ("report.gallery_queries=1", set()),
        ("description=other words", set()),
        ("name=other", set()),
        ("compute.num_workers=2", ALL - {"benchmark"}),
        ("compute.zero_stage=2", ALL - {"benchmark"}),
        # Nothing of these changes a result: where, how fast, how often it is told and saved.
        ("compute.parallel_trials=1", set()),
        ("compute.max_failures=0", set()),
        ("compute.threads_per_worker=1", set()),
        ("tracking.experiment=other", set()),
        ("embedding.clips_per_shard=4", set()),
        ("embedding.concurrency=3", set()),
        ("embedding.decode_timeout_s=5.0", set()),
        ("compute.log_every=1", set()),
        ("compute.checkpoint_every=1", set()),
        ("compute.activation_checkpointing=true", set()),
        ("vis.support_frames=1", VIS),
    ],
)
def test_a_setting_changes_its_stage_and_those_after_it(
    tmp_path: Path, override: str, changed: set[str]
) -> None:
    before, after = keys(tmp_path), keys(tmp_path, override)
    assert set(before) == set(after) == ALL
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_weights_that_a_training_goes_on_from_are_in_its_key(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a", "b", "c"))
    for path, content in ((first, b"1"), (copy, b"1"), (other, b"2")):
        path.write_bytes(content)
    plain, one, same, another = (
        keys(tmp_path, *([] if path is None else [f"vis.initial={path}"]))
        for path in (None, first, copy, other)
    )
    assert one == same
    assert {name for name in plain if plain[name] != one[name]} == VIS
    assert {name for name in plain if another[name] != one[name]} == VIS
    with refused("vis.initial"):
        check_inputs(load_experiment(TOY, [f"vis.initial={tmp_path / 'none'}"]))


def test_a_baselines_weights_are_in_the_key_of_the_evaluation_with_its_row(
    tmp_path: Path,
) -> None:
    folders = {name: tmp_path / name for name in ("a", "b", "c")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "sam2_video"}')
        (folder / "model.safetensors").write_text("1" if name == "c" else "2")
    for row, setting in (("prompted", "prompted"), ("proposals_similarity", "proposals")):
        table = f"evaluation.supports=[no_fuser, seen_penalty, oracle, {row}]"
        one, same, other = (
            keys(tmp_path, table, f"evaluation.{setting}={folder}") for folder in folders.values()
        )
        assert one == same
        assert {name for name in one if one[name] != other[name]} == EVALUATED
        assert one["supports"] == keys(tmp_path)["supports"], "it reads what others read"
        # Without the row the model is not looked at.
        assert keys(tmp_path, f"evaluation.{setting}={folders['a']}") == keys(tmp_path)
        (folders["b"] / "config.json").write_text('{"model_type": "vit"}')
        with refused(f"evaluation.{setting}"):
            keys(tmp_path, table, f"evaluation.{setting}={folders['b']}")
        with refused(f"evaluation.{setting}"):
            check_inputs(load_experiment(TOY, [f"evaluation.{setting}={tmp_path / 'none'}"]))
        (folders["b"] / "config.json").write_text('{"model_type": "sam2_video"}')


def test_proposals_are_those_of_the_network_without_the_fuser_or_of_another(tmp_path: Path) -> None:
    table = "evaluation.supports=[self_shot, proposals_similarity]"
    own = keys(tmp_path, table)
    assert own["vis_no_fuser"] == keys(tmp_path)["vis_no_fuser"]
    (tmp_path / "config.json").write_text('{"model_type": "sam2_video"}')
    other = f"evaluation.proposals={tmp_path}"
    assert set(keys(tmp_path, table, other)) == set(own) - {"vis_no_fuser"}
    with refused("vis.method"):
        load_experiment(TOY, [table, "vis.method=few_shot_transformer"])
    load_experiment(TOY, [table, "vis.method=few_shot_transformer", other])


def test_a_row_without_its_model() -> None:
    with refused("evaluation.prompted"):
        load_experiment(TOY, ["evaluation.supports=[prompted]"])
    with refused("supports.shots"):
        load_experiment(
            TOY, ["evaluation.supports=[prompted]", "supports.shots=[11]", "evaluation.prompted=x"]
        )


def test_without_its_row_the_seen_classes_are_not_read(tmp_path: Path) -> None:
    without = "evaluation.supports=[no_fuser, self_shot]"
    plan = keys(tmp_path, without)
    assert set(plan) == ALL - {"seen"}
    assert keys(tmp_path, without, "supports.seen_penalty=1") == plan
    alone = keys(tmp_path, without, "supports.vectors=global")
    assert {name for name in plan if plan[name] != alone[name]} == {"supports", *EVALUATED}
    with refused("supports.vectors"):
        load_experiment(TOY, ["supports.vectors=global"])


def test_a_row_brings_its_settings(tmp_path: Path) -> None:
    crops = "evaluation.supports=[no_fuser, temporal_crops]"
    semi = "evaluation.supports=[no_fuser, semi_shot]"
    before, after = keys(tmp_path, semi), keys(tmp_path, semi, "supports.semi_shot=[[2, 3]]")
    assert {name for name in before if before[name] != after[name]} == {"supports", *EVALUATED}
    assert keys(tmp_path, crops)["supports"] != keys(tmp_path)["supports"]
    rows = table_rows(load_experiment(TOY, [semi, "supports.semi_shot=[[1, 4], [3, 2]]"]))
    assert [(row["supports"], row["shots"], row["extra"]) for row in rows] == [
        ("no_fuser", 0, 0),
        ("semi_shot", 1, 4),
        ("semi_shot", 3, 2),
    ]
    with refused("supports.semi_shot"):
        load_experiment(TOY, [semi, "supports.semi_shot=[[11, 1]]"])


def test_keys_do_not_depend_on_where_the_output_is(tmp_path: Path) -> None:
    assert keys(tmp_path / "a") == keys(tmp_path / "b")


def test_the_two_vis_models_have_keys_of_their_own(tmp_path: Path) -> None:
    plan = keys(tmp_path)
    assert len(set(plan.values())) == len(plan)


def test_without_the_row_there_is_no_model_without_fuser(tmp_path: Path) -> None:
    plan = keys(tmp_path, "evaluation.supports=[random, oracle]")
    assert set(plan) == ALL - {"vis_no_fuser", "seen"}
    assert plan["vis"] == keys(tmp_path)["vis"]


@pytest.mark.parametrize(
    ("until", "stages"),
    [
        ("benchmark", ["benchmark"]),
        ("backbone", ["benchmark", "backbone"]),
        ("vis", ["benchmark", "backbone", "vis"]),
        ("index", ["benchmark", "backbone", "encoder", "embeddings", "index"]),
        ("supports", [stage.name for stage in STAGES[:7]]),
        ("evaluation", [stage.name for stage in STAGES]),
    ],
)
def test_until_takes_what_the_stage_needs(tmp_path: Path, until: str, stages: list[str]) -> None:
    some = keys(tmp_path, until=until)
    assert list(some) == stages
    whole = keys(tmp_path)
    assert some == {name: whole[name] for name in stages}


def test_until_a_stage_that_is_not_there(tmp_path: Path) -> None:
    with refused():
        keys(tmp_path, until="tables")
    with refused():
        keys(tmp_path, "evaluation.supports=[oracle]", until="vis_no_fuser")


def test_a_plan_writes_nothing_and_says_what_is_there(tmp_path: Path) -> None:
    experiment = load_experiment(TOY, [f"output={tmp_path / 'runs'}"])
    plans = plan_experiment(experiment)
    assert {plan.status for plan in plans} == {"to do"} and not list(tmp_path.iterdir())
    first = plans[0]
    assert first.path == tmp_path / "runs" / "store" / "benchmark" / first.key
    first.path.with_name(f"{first.key}.partial").mkdir(parents=True)
    assert plan_experiment(experiment)[0].status == "partial"
    # A folder without a manifest is no result; it will be quarantined and made again.
    first.path.mkdir()
    assert plan_experiment(experiment)[0].status == "partial"
    (first.path / "manifest.json").write_text('{"files": {}}')
    assert [plan.status for plan in plan_experiment(experiment)] == ["done", *["to do"] * 9]


def test_the_report_of_an_unfinished_run(tmp_path: Path) -> None:
    experiment = load_experiment(TOY, [f"output={tmp_path / 'runs'}"])
    with refused():
        report_experiment(experiment)
    assert not (tmp_path / "runs").exists()
    problems = verify_experiment(experiment)
    assert len(problems) == len(ALL) and problems[0].endswith(": to do")


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    def write(folder: Path, text: str, full: bool = False) -> str:
        (folder / "animations").mkdir()
        (folder / "animations" / "one.gif").write_text(text)
        if full:
            raise OSError("disk full")
        (folder / "report.html").write_text(text)
        return text

    target = tmp_path / "report"
    assert publish(target, lambda folder: write(folder, "first")) == "first"
    with pytest.raises(OSError, match="disk full"):
        publish(target, lambda folder: write(folder, "second", full=True))
    files = ("animations/one.gif", "report.html")
    assert {(target / name).read_text() for name in files} == {"first"}
    # What the failed one left is in nobody's way.
    assert publish(target, lambda folder: write(folder, "third")) == "third"
    assert {(target / name).read_text() for name in files} == {"third"}
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "name", ["store", "mlartifacts", "corpora", "../elsewhere", "a/b", ".hidden", ""]
)
def test_names_that_would_lie_elsewhere(tmp_path: Path, name: str) -> None:
    with refused("name"):
        load_experiment(TOY, [f"output={tmp_path}", f"name={name}"])


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    experiment = load_experiment(TOY, [f"output={tmp_path / 'runs'}"])
    with refused("output"):
        check_inputs(experiment)


def test_a_plan_does_not_start_the_engine(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys\n"
        "from selfshot.config.load import load_experiment\n"
        "from selfshot.studies.run import plan_experiment\n"
        f"plan_experiment(load_experiment({str(TOY)!r}, ['output=' + {str(tmp_path)!r}]))\n"
        "print([name for name in ('ray', 'torch', 'mlflow', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_rows_of_the_table(tmp_path: Path) -> None:
    overrides = [f"output={tmp_path}", "supports.shots=[1, 5]", "supports.extra=[0, 5]"]
    rows = table_rows(load_experiment(TOY, overrides))
    assert [(row["supports"], row["shots"], row["extra"]) for row in rows] == [
        ("none", 0, 0),
        ("no_fuser", 0, 0),
        ("query_itself", 1, 0),
        *[(kind, *n) for kind in ("random", "self_shot", "seen_penalty", "oracle") for n in THREE],
    ]


THREE = [(1, 0), (5, 0), (5, 5)]
"""Supports are added at inference to the most shots only, as in Table 1."""
