"""Sweeps and scales: the trials that a file stands for, and one message for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfshot.config.load import json_schema, load_experiment, parse_experiment, resolved_yaml
from selfshot.config.sweep import Study, load_study, parse_study
from selfshot.errors import UserError

BASE = "name: s\nbenchmark: {kind: sprites, corpus_clips: 100}\n"


def study(sweep: str, *overrides: str, base: str = BASE) -> Study:
    return parse_study(base + "sweep:\n" + sweep, "s.yaml", overrides)


def points(made: Study) -> list[dict[str, Any]]:
    return [trial.settings for trial in made.trials]


def test_a_plain_experiment_has_no_trials() -> None:
    assert parse_study(BASE, "s.yaml").trials == ()


def test_the_grid_of_lists_and_ranges() -> None:
    made = study(
        "  over:\n"
        "    vis.num_instances: [2, 3]\n"
        "    vis.weights.l1: {from: 1, to: 5, step: 2}\n"
        "    vis.dropout: {from: 0.1, to: 0.3, count: 3}\n"
    )
    assert len(made.trials) == 18
    assert made.trials[0].settings == {
        "vis.num_instances": 2, "vis.weights.l1": 1, "vis.dropout": 0.1
    }  # fmt: skip
    last = made.trials[-1].experiment.vis
    assert (last.num_instances, last.weights.l1, last.dropout) == (3, 5.0, 0.3)
    assert all(not trial.experiment.sweep.is_study for trial in made.trials)


def test_a_logarithmic_range() -> None:
    made = study(
        "  over: {vis.optimiser.learning_rate: {from: 1e-4, to: 1e-2, count: 3, scale: log}}"
    )
    rates = [trial.experiment.vis.optimiser.learning_rate for trial in made.trials]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2])


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


def test_random_points_are_the_same_each_time_and_within_their_ranges() -> None:
    text = (
        "  method: random\n  samples: 20\n  over:\n"
        "    vis.optimiser.learning_rate: {from: 1e-5, to: 1e-1, scale: log}\n"
        "    vis.num_instances: {from: 2, to: 4}\n"
        "    supports.vectors: [global, windows]\n"
    )
    made = study(text)
    assert points(made) == points(study(text)) and points(made) != points(study(text, "seed=1"))
    rates = [trial.experiment.vis.optimiser.learning_rate for trial in made.trials]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates) and min(rates) < 1e-4 < 1e-2 < max(rates)
    assert {trial.experiment.vis.num_instances for trial in made.trials} == {2, 3, 4}
    assert {trial.experiment.supports.vectors for trial in made.trials} == {"global", "windows"}


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
        ("over: {vis.fusers: [1]}",
         "sweep.over.vis.fusers: no setting of an experiment, did you mean vis.fuser_layers?"),
        ("over: {optimiser.steps: [60]}", "did you mean backbone.optimiser.steps or encoder.optim"),
        ("over: {vis.fuser_layers: []}", "an empty list is not allowed (at least one value)"),
        ("over: {vis.fuser_layers: 3}", "3 is not allowed (a list of values, or a range such as"),
        ("over: {vis.fuser_layers: [a]}", "vis.fuser_layers: 'a' is not allowed (should be an in"),
        ("over: {vis.fuser_layers: [1, 1]}", "names a value twice"),
        ("over: {vis.dim: [13]}", "vis.dim: 13 must be a multiple of heads"),
        ("over: {name: [a]}", "sweep.over.name: belongs to the whole study, and cannot be swept"),
        ("over: {sweep.repeat: [1]}", "belongs to the whole study"),
        ("over: {vis.dropout: {from: 0, to: 1, stp: 1}}", "stp: unknown key, did you mean step?"),
        ("over: {vis.dropout: {from: 0, to: 1}}", "a range needs either step or count"),
        ("over: {vis.dropout: {from: 0.5, to: 0.1, step: 1}}", "from: 0.5 is not below to: 0.1"),
        ("over: {vis.dropout: {from: 0, to: 1, count: 2, scale: log}}", "(a number > 0)"),
        ("over: {vis.dropout: {from: 0, to: 1, count: 2, scale: lg}}", "(should be 'linear' or"),
        ("over: {vis.dropout: {from: zero, to: 1, step: 1}}", "'zero' is not allowed (should be"),
        ("over: {vis.dropout: {from: 0, to: 1, count: 1}}", "1 is not allowed (should be ≥ 2)"),
        ("over: {vis.dropout: {from: 0, to: .inf, step: 1}}", "to: inf is not allowed"),
        ("over: [1]", "sweep.over: [1] is not allowed (should be keys and values)"),
        ("cases: {a: {vis.fusers: 1}}", "sweep.cases.a.vis.fusers: no setting of an experiment"),
        ("cases: {a b: {}}", "sweep.cases: 'a b' is not allowed (letters, digits"),
        ("cases: {a: {vis.heads: 5}}", "vis.dim: 72 must be a multiple of heads: 5"),
        ("repeat: 0", "sweep.repeat: 0 is not allowed (should be ≥ 1)"),
        ("repeat: 2\n  repeat_setting: vis.dropout", "(a setting that is a whole number)"),
        ("repeat: 2\n  repeat_setting: sed", "sweep.repeat_setting: 'sed': no setting of an exp"),
        ("repeat: 2\n  over: {seed: [1]}", "sweep.over.seed: is what sweep.repeat counts up"),
        ("method: grit\n  repeat: 2",
         "method: 'grit' is not allowed (should be 'grid' or 'random'), did you mean 'grid'?"),
        ("tabel: table01", "sweep.tabel: unknown key, did you mean table?"),
        ("table: table1", "sweep.table: 'table1' is not allowed"),
        ("until: supprts\n  repeat: 2", "did you mean 'supports'?"),
        ("repeat: 2\n  stopping: {budgets: [30, 10]}", "is not at least two rising numbers"),
        ("over: {seed: {from: 0, to: 100000, step: 1}}", "combinations (allowed: at most 10000)"),
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
    with pytest.raises(UserError, match=r"vis.heads.* s.yaml, line 6$"):
        study("  over:\n    vis.dropout: [0.1]\n    vis.heads: [4, five]\n")
    with pytest.raises(UserError, match=r"line 7$"):
        study("  over:\n    vis.dropout:\n      - 0.1\n      - one\n")


def test_what_a_sweep_starts_from_must_be_valid_itself() -> None:
    with pytest.raises(UserError, match=r"vis.fuser_layers: 0 is not allowed"):
        study("  over: {vis.fuser_layers: [1]}", "vis.fuser_layers=0")


def test_the_schema_knows_sweeps() -> None:
    rules = json_schema()
    assert {"sweep", "base", "scale", "scales"} <= set(rules["properties"])
    assert "over" in rules["$defs"]["SweepConfig"]["properties"]


SCALED = (
    BASE + "scale: small\nvis: {fuser_layers: 2, dropout: 0.1}\n"
    "sweep: {over: {vis.num_instances: [2]}}\n"
    "scales:\n  small: {}\n  paper:\n    name: s-paper\n    vis: {fuser_layers: 3}\n"
    "    benchmark: {kind: self_vis, frames: f, corpus: c, annotations: a}\n"
    "    sweep: {over: {vis.num_instances: [10, 11]}}\n"
)


def test_a_scale_is_laid_over_the_file() -> None:
    small, paper = parse_study(SCALED, "s.yaml"), parse_study(SCALED, "s.yaml", ["scale=paper"])
    assert [len(small.trials), len(paper.trials)] == [1, 2]
    assert (small.experiment.name, paper.experiment.name) == ("s", "s-paper")
    assert paper.experiment.vis.fuser_layers == 3 and paper.experiment.vis.dropout == 0.1
    assert paper.experiment.benchmark.kind == "self_vis"
    again = parse_experiment(resolved_yaml(paper.experiment), "again")
    assert again == paper.experiment and again.scale == ""


def test_set_wins_over_a_scale() -> None:
    made = parse_study(SCALED, "s.yaml", ["vis.fuser_layers=5", "scale=paper"])
    assert made.experiment.vis.fuser_layers == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scale=papr", "scale: 'papr' is not allowed (one of small, paper), did you mean 'paper'?"),
        ("scale=3", "scale: 3 is not allowed"),
    ],
)
def test_a_scale_that_is_not_there(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_study(SCALED, "s.yaml", [override])
    assert message in str(caught.value)


def test_a_mistake_in_a_scale_has_the_line_of_the_scale() -> None:
    text = SCALED.replace("vis: {fuser_layers: 3}", "vis: {fuser_layers: none}")
    with pytest.raises(UserError, match=r"vis.fuser_layers: 'none' .*s.yaml, line 10$"):
        parse_study(text, "s.yaml", ["scale=paper"])
    with pytest.raises(UserError, match=r"scales"):
        parse_study(BASE + "scales: {small: 3}\n", "s.yaml")


def test_files_are_read_as_experiments_are(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCALED)
    assert len(load_study(tmp_path / "s.yaml").trials) == 1
    assert load_experiment(tmp_path / "s.yaml", ["scale=paper"]).name == "s-paper"
    with pytest.raises(UserError, match=r"no such file"):
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
        assert study.document.place_of(("vis", "weights", "l1")).source.endswith("root.yaml")
        assert load_experiment(tmp_path / "top.yaml", ["base=root.yaml"]).vis.weights.giou == 2

    def test_another_kind_takes_the_place_of_a_section(self, tmp_path: Path) -> None:
        self.write(
            tmp_path,
            root="name: r\nbenchmark: {kind: sprites, corpus_clips: 99}",
            same="name: s\nbase: root.yaml\nbenchmark: {kind: sprites, height: 40}",
            other="name: o\nbase: root.yaml\nbenchmark: {kind: yt8m_segments, corpus: c}",
        )
        same = load_experiment(tmp_path / "same.yaml").benchmark
        assert (getattr(same, "corpus_clips", 0), getattr(same, "height", 0)) == (99, 40)
        assert load_experiment(tmp_path / "other.yaml").benchmark.kind == "yt8m_segments"

    def test_a_scale_may_have_another_base(self, tmp_path: Path) -> None:
        self.write(
            tmp_path,
            small="name: s\nseed: 1",
            large="name: l\nseed: 2\nvis: {dropout: 0.3}",
            study="name: t\nbase: small.yaml\nscales: {large: {base: large.yaml, name: t-large}}",
        )
        assert load_experiment(tmp_path / "study.yaml").seed == 1
        made = load_experiment(tmp_path / "study.yaml", ["scale=large"])
        assert (made.name, made.seed, made.vis.dropout) == ("t-large", 2, 0.3)

    @pytest.mark.parametrize(
        ("base", "message"),
        [
            ("rot.yaml", r"base: .*rot.yaml: no such file, did you mean .*root.yaml\?"),
            ("t.yaml", r"base: 't.yaml' leads in a circle \(t.yaml → t.yaml\)"),
            ("circle.yaml", r"base: 't.yaml' leads in a circle \(t.yaml → circle.yaml → t.yaml\)"),
            ("../../x.yaml", r"base: '../../x.yaml' is not allowed \(a file beside .*t.yaml"),
            ("/etc/passwd", r"base: '/etc/passwd' is not allowed"),
            ("3", r"base: 3 is not allowed \(an experiment's file\)"),
            ("list.yaml", r"base: .*list.yaml holds no experiment"),
            ("broken.yaml", r"base: not valid YAML.*broken.yaml, line 1"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, base: str, message: str) -> None:
        folder = tmp_path / "one"
        self.write(folder, root="name: r", circle="name: c\nbase: t.yaml", list="[1]", broken="[")
        self.write(folder, t=f"name: t\nbase: {base}")
        with pytest.raises(UserError, match=message + r".*yaml, line 2$") as caught:
            load_experiment(folder / "t.yaml")
        assert caught.value.setting == "base"

    def test_a_mistake_in_a_base_has_its_line(self, tmp_path: Path) -> None:
        self.write(tmp_path, root="name: r\nvis:\n  dim: x", t="name: t\nbase: root.yaml")
        with pytest.raises(UserError, match=r"vis.dim: 'x' .*root.yaml, line 3$"):
            load_experiment(tmp_path / "t.yaml")
