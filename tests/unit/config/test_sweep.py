"""Sweeps and bases: the trials that a file stands for, and one message for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refusals import refused
from selfshot.config.document import place_of
from selfshot.config.load import json_schema, load_experiment
from selfshot.config.sweep import Study, load_study, parse_study
from selfshot.errors import UserError

BASE = "name: s\nbenchmark: {kind: sprites, corpus_clips: 100}\n"


def study(sweep: str, *overrides: str, base: str = BASE) -> Study:
    return parse_study(base + "sweep:\n" + sweep, "s.yaml", overrides)


def points(made: Study) -> list[dict[str, Any]]:
    return [trial.settings for trial in made.trials]


def test_a_plain_experiment_has_no_trials() -> None:
    assert parse_study(BASE, "s.yaml").trials == ()


def test_the_grid_of_lists() -> None:
    made = study(
        "  over:\n"
        "    vis.num_instances: [2, 3]\n"
        "    vis.weights.l1: [1, 3, 5]\n"
        "    vis.dropout: [0.1, 0.2, 0.3]\n"
    )
    assert len(made.trials) == 18
    assert made.trials[0].settings == {
        "vis.num_instances": 2, "vis.weights.l1": 1, "vis.dropout": 0.1
    }  # fmt: skip
    last = made.trials[-1].experiment.vis
    assert (last.num_instances, last.weights.l1, last.dropout) == (3, 5.0, 0.3)
    assert all(not trial.experiment.sweep.is_study for trial in made.trials)


def test_sections_may_be_nested_as_in_the_experiment() -> None:
    dotted = study("  over: {vis.weights.l1: [1.0, 2.0], vis.dropout: [0.0, 0.1]}")
    nested = study("  over: {vis: {weights: {l1: [1.0, 2.0]}, dropout: [0.0, 0.1]}}")
    assert [t.experiment for t in nested.trials] == [t.experiment for t in dotted.trials]


def test_cases_repeats_and_labels() -> None:
    made = study(
        "  cases: {plain: {}, deep: {vis.encoder_layers: 3, vis: {fuser_layers: 2}}}\n"
        "  over: {supports.vectors: [global, windows]}\n"
        "  repeat: 2\n",
        "seed=5",
    )
    assert [trial.label for trial in made.trials][:3] == [
        "plain, vectors=global #1", "plain, vectors=global #2", "plain, vectors=windows #1"
    ]  # fmt: skip
    deep = made.trials[-1]
    assert (deep.experiment.vis.encoder_layers, deep.experiment.vis.fuser_layers) == (3, 2)
    assert (deep.experiment.seed, deep.repeat, deep.name) == (6, 1, "deep, vectors=windows")


def test_another_setting_may_count_up() -> None:
    made = study("  repeat: 3\n  repeat_setting: vis.num_instances\n")
    assert [trial.experiment.vis.num_instances for trial in made.trials] == [5, 6, 7]
    assert {trial.experiment.seed for trial in made.trials} == {0}


def test_draws_are_the_same_each_time_and_within_their_bounds() -> None:
    text = (
        "  samples: 20\n  over:\n"
        "    vis.optimiser.learning_rate: {loguniform: [1e-5, 1e-1]}\n"
        "    vis.num_instances: {randint: [2, 5]}\n"
        "    vis.dropout: {uniform: [0.1, 0.2]}\n"
        "    supports.vectors: {choice: [global, windows]}\n"
        "    vis.fuser_layers: [1, 2]\n"
    )
    made = study(text)
    assert len(made.trials) == 40, "so many of each point of the grid"
    assert points(made) == points(study(text)) and points(made) != points(study(text, "seed=1"))
    rates = [trial.experiment.vis.optimiser.learning_rate for trial in made.trials]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates) and min(rates) < 1e-4 < 1e-2 < max(rates)
    assert {trial.experiment.vis.num_instances for trial in made.trials} == {2, 3, 4}
    assert all(0.1 <= trial.experiment.vis.dropout <= 0.2 for trial in made.trials)
    assert {trial.experiment.supports.vectors for trial in made.trials} == {"global", "windows"}


@pytest.mark.parametrize(
    ("asha", "budgets"),
    [
        ("{grace_period: 60}", (60, 180, 200)),
        ("{grace_period: 100, reduction_factor: 2}", (100, 200)),
        ("{grace_period: 150, reduction_factor: 2}", (150, 200)),
    ],
)
def test_the_budgets_of_asha_end_with_the_trial_itself(asha: str, budgets: tuple[int, ...]) -> None:
    made = study(f"  repeat: 2\n  asha: {asha}\n", "encoder.optimiser.steps=200")
    assert made.budgets == budgets
    assert made.trials[0].experiment.encoder.optimiser.steps == 200
    assert study("  repeat: 2\n").budgets == ()


def test_a_swept_path_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/somewhere")
    base = BASE.replace(
        "{kind: sprites, corpus_clips: 100}",
        "{kind: self_vis, frames: f, corpus: c, annotations: a}",
    )
    made = study("  over: {benchmark.corpus: [$DATA/a, b$$]}\n  repeat: 2\n", base=base)
    corpora = [str(getattr(trial.experiment.benchmark, "corpus", "")) for trial in made.trials]
    assert corpora == ["/somewhere/a", "/somewhere/a", "b$", "b$"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("over: {vis.fusers: [1]}", "vis.fusers: unknown key, did you mean fuser_layers?"),
        ("over: {optimiser.steps: [60]}", "did you mean backbone.optimiser or encoder.optimiser"),
        ("over: {vis.fuser_layers: []}", "[] is not allowed (a list of values; one of uniform"),
        ("over: {vis.fuser_layers: 3}", "3 is not allowed (a list of values; one of uniform"),
        ("over: {vis.fuser_layers: [a]}", "vis.fuser_layers: 'a' is not allowed (should be a val"),
        ("over: {vis.fuser_layers: [1, 1]}", "names a value twice"),
        ("over: {vis.heads: [13]}", "vis.heads: 13 does not divide backbone.dim: 72"),
        ("over: {name: [a]}", "sweep.over.name: belongs to the whole study, and cannot be swept"),
        ("over: {sweep.repeat: [1]}", "belongs to the whole study"),
        *[
            (f"over: {{vis.dropout: {{{draw}}}}}", "sweep.over.vis.dropout: a section is not all")
            for draw in (
                "uniform: [0.5, 0.1]", "uniform: [0.5]", "uniform: 3", "uniform: [a, 1]",
                "loguniform: [0, 1]", "randint: [0.1, 0.5]", "choice: []",
                "uniform: [0, 1], step: 1", "choice: {a: 1}",
            )
        ],
        ("over: {vis.dropout: {uniform: [0, .inf]}}", "vis.dropout: inf is not allowed"),
        ("over: [1]", "sweep.over: [1] is not allowed (should be an object)"),
        ("cases: {a: {vis.fusers: 1}}", "vis.fusers: unknown key, did you mean fuser_layers?"),
        ("cases: {a b: {}}", "sweep.cases: 'a b' is not allowed (letters, digits"),
        ("cases: {a: {vis.heads: 5}}", "vis.heads: 5 does not divide backbone.dim: 72"),
        ("repeat: 0", "sweep.repeat: 0 is not allowed (should be greater than or equal to 1)"),
        ("repeat: 2\n  repeat_setting: vis.dropout", "(a setting that is a whole number)"),
        ("repeat: 2\n  repeat_setting: sed", "sweep.repeat_setting: 'sed' is not allowed"),
        ("repeat: 2\n  over: {seed: [1]}", "sweep.over.seed: is what sweep.repeat_setting count"),
        ("tabel: table01", "sweep.tabel: unknown key, did you mean table?"),
        ("table: table1", "sweep.table: 'table1' is not allowed"),
        ("until: supprts\n  repeat: 2", "did you mean 'supports'?"),
        ("repeat: 2\n  asha: {}", "sweep.asha.grace_period: missing"),
        ("repeat: 2\n  asha: {grace_period: 1}", "encoder.optimiser.warmup_steps: "),
        ("repeat: 2\n  asha: {grace_period: 60, setting: vis.dropout}", "(a setting that is a who"),
        ("over: {encoder.optimiser.steps: [60]}\n  asha: {grace_period: 9}", "take one of them"),
        ("samples: 10001\n  over: {vis.dropout: {uniform: [0, 1]}}",
         "combinations (allowed: at most 10000)"),
    ],
)  # fmt: skip
def test_mistakes(sweep: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        study(f"  {sweep}\n")
    text = str(caught.value)
    assert message in text and "\n" not in text
    if "combinations" not in message:
        assert "s.yaml, line " in text


def test_a_mistake_is_told_with_its_own_line() -> None:
    with refused():
        study("  over:\n    vis.dropout: [0.1]\n    vis.heads: [4, five]\n")
    with refused():
        study("  over:\n    vis.dropout:\n      - 0.1\n      - one\n")


def test_what_a_sweep_starts_from_must_be_valid_itself() -> None:
    with refused("vis.fuser_layers"):
        study("  over: {vis.fuser_layers: [1]}", "vis.fuser_layers=0")


def test_the_schema_knows_sweeps() -> None:
    rules = json_schema()
    assert {"sweep", "base"} <= set(rules["properties"])
    assert "over" in rules["$defs"]["SweepConfig"]["properties"]


def test_files_are_read_as_experiments_are(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(BASE + "sweep: {over: {vis.num_instances: [2]}}\n")
    assert len(load_study(tmp_path / "s.yaml").trials) == 1
    with refused():
        load_study(tmp_path / "t.yaml")


class TestBase:
    """An experiment that another one lies under."""

    def write(self, folder: Path, **files: str) -> None:
        for name, text in files.items():
            path = folder / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def test_sections_are_merged_through_every_base(self, tmp_path: Path) -> None:
        self.write(
            tmp_path,
            root="name: r\nseed: 3\nvis: {dropout: 0.1, weights: {l1: 2}}\nsweep: {repeat: 2}",
            below__middle="name: m\nbase: ../root.yaml\nvis: {weights: {giou: 3}}",
            top="name: t\nbase: below/middle.yaml\nvis: {dropout: 0.2}\nsupports: {shots: [1]}",
        )
        study = load_study(tmp_path / "top.yaml", ["vis.ffn_dim=9"])
        made = study.experiment
        assert (made.name, made.seed, made.base, study.trials) == ("t", 3, "", ())
        assert (made.vis.dropout, made.vis.ffn_dim) == (0.2, 9)
        assert (made.vis.weights.l1, made.vis.weights.giou) == (2, 3)
        assert str(place_of(study.data, ("vis", "weights", "l1"))).endswith("root.yaml, line 3")
        assert load_experiment(tmp_path / "top.yaml", ["base=root.yaml"]).vis.weights.giou == 2

    def test_another_kind_takes_the_place_of_a_section(self, tmp_path: Path) -> None:
        self.write(
            tmp_path,
            root="name: r\nbenchmark: {kind: sprites, corpus_clips: 99}",
            same="name: s\nbase: root.yaml\nbenchmark: {kind: sprites, height: 40}",
            other="name: o\nbase: root.yaml\n"
            "benchmark: {kind: self_vis, corpus: c, annotations: a, frames: f}",
        )
        same = load_experiment(tmp_path / "same.yaml").benchmark
        assert (getattr(same, "corpus_clips", 0), getattr(same, "height", 0)) == (99, 40)
        assert load_experiment(tmp_path / "other.yaml").benchmark.kind == "self_vis"

    def test_set_may_name_another_base(self, tmp_path: Path) -> None:
        self.write(
            tmp_path,
            small="name: s\nseed: 1",
            large="name: l\nseed: 2\nvis: {dropout: 0.3, heads: 6}",
            study="name: t\nbase: small.yaml\nvis: {heads: 12}\nsweep: {repeat: 2}",
        )
        assert load_experiment(tmp_path / "study.yaml").seed == 1
        made = load_experiment(tmp_path / "study.yaml", ["base=large.yaml", "name=t-large"])
        assert (made.name, made.seed, made.vis.dropout) == ("t-large", 2, 0.3)
        assert (made.vis.heads, made.sweep.repeat) == (12, 2)

    @pytest.mark.parametrize(
        "base",
        [
        "rot.yaml",
        "t.yaml",
        "circle.yaml",
        "3",
        "list.yaml",
        "broken.yaml",
    ],
    )
    def test_mistakes(self, tmp_path: Path, base: str) -> None:
        folder = tmp_path / "one"
        self.write(folder, root="name: r", circle="name: c\nbase: t.yaml", list="[1]", broken="[")
        self.write(folder, t=f"name: t\nbase: {base}")
        with refused("base") as caught:
            load_experiment(folder / "t.yaml")
        assert caught.value.setting == "base"

    def test_a_mistake_in_a_base_has_its_line(self, tmp_path: Path) -> None:
        self.write(tmp_path, root="name: r\nvis:\n  heads: x", t="name: t\nbase: root.yaml")
        with refused("vis.heads"):
            load_experiment(tmp_path / "t.yaml")
