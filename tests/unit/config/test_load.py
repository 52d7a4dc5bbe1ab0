"""Experiment files: what loads, and what is said about those that do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from refusals import refused
from selfshot.config.benchmarks import KINDS
from selfshot.config.document import write_yaml
from selfshot.config.fields import expand_path
from selfshot.config.load import (
    json_schema,
    load_builder,
    load_experiment,
    parse_experiment,
    resolved_yaml,
)
from selfshot.config.paths import check_inputs
from selfshot.config.schema import Experiment
from selfshot.errors import UserError

FOLDER = """\
name: real
benchmark:
  kind: folder
  annotations: {root}/a.json
  frames: {root}/frames
  corpus: {root}/clips
  val_classes: [cat]
  test_classes: [no, 1e3x]
"""


def parse(text: str, *overrides: str) -> Experiment:
    return parse_experiment(text, "my.yaml", overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(text, *overrides)
    return str(caught.value)


def test_a_name_is_enough() -> None:
    assert parse("name: a") == Experiment(name="a")


def test_values_override_defaults() -> None:
    experiment = parse("name: a\nvis:\n  dropout: 1e-1\nsupports: {shots: [1, 2]}\n")
    assert experiment.vis.dropout == 0.1
    assert experiment.supports.shots == (1, 2)


def test_a_section_changes_only_the_keys_it_names() -> None:
    experiment = parse("name: a\nencoder: {optimiser: {steps: 30}}")
    stage_default = Experiment(name="a").encoder.optimiser
    assert experiment.encoder.optimiser == stage_default.model_copy(update={"steps": 30})


def test_yes_and_no_are_words() -> None:
    assert parse(FOLDER.format(root="x")).benchmark.test_classes == ("no", "1e3x")  # type: ignore


def test_anchors_and_merges() -> None:
    experiment = parse(
        "name: a\nbackbone: {optimiser: &o {steps: 70, learning_rate: 1e-3}}\n"
        "vis: {optimiser: {<<: *o, steps: 90}}\n"
    )
    assert experiment.backbone.optimiser.steps == 70
    assert experiment.vis.optimiser.steps == 90
    assert experiment.vis.optimiser.learning_rate == 1e-3


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\n")
    assert load_experiment(path).name == "a"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("vis.optimiser.steps=100", lambda e: e.vis.optimiser.steps == 100),
        ("supports.shots=[3, 4]", lambda e: e.supports.shots == (3, 4)),
        ("vis.deformable=true", lambda e: e.vis.deformable is True),
        ("vis.dropout=1e-1", lambda e: e.vis.dropout == 0.1),
        ("compute.address=", lambda e: e.compute.address is None),
        ("compute.address=ray://head:10001", lambda e: e.compute.address == "ray://head:10001"),
        ("description=two words", lambda e: e.description == "two words"),
        ("description=note: a, b", lambda e: e.description == "note: a, b"),
        ("description='3'", lambda e: e.description == "3"),
        ("description=a=b", lambda e: e.description == "a=b"),
        ("description=- dash", lambda e: e.description == "- dash"),
        ("benchmark.corpus_clips=40", lambda e: e.benchmark.corpus_clips == 40),
        ("vis.optimiser={steps: 60}", lambda e: e.vis.optimiser.steps == 60),
        ("output=~/x", lambda e: e.output == Path.home() / "x"),
    ],
)
def test_overrides(override: str, read) -> None:
    assert read(parse("name: a", override))


def test_a_later_override_wins() -> None:
    assert parse("name: a", "seed=1", "seed=2").seed == 2


def test_an_override_mends_a_bad_value() -> None:
    assert parse("name: a\nseed: -1", "seed=3").seed == 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["my.yaml", "empty"]),
        ("3", ["my.yaml", "3"]),
        ("[a, b]", ["my.yaml", "keys and values"]),
        ("description: x", ["name: missing", "my.yaml"]),
        ("name: a b", ["name: 'a b'", "should match pattern", "line 1"]),
        ("name: a\nseed: -1", ["seed: -1 is not allowed (should be greater", "my.yaml, line 2"]),
        ("name: a\nseed: true", ["seed: true is not allowed", "a valid integer"]),
        ("name: a\nseed: '3'", ["seed: '3' is not allowed", "a valid integer"]),
        ("name: a\nseed: 3.0", ["seed: 3.0 is not allowed", "a valid integer"]),
        ("name: a\nvis:\n  dropout: .nan", ["vis.dropout: nan", "a finite number", "line 3"]),
        ("name: a\nvis:", ["vis: null is not allowed", "line 2"]),
        ("name: a\nvis:\n  optimizer: {}", ["vis.optimizer", "did you mean optimiser?", "line 3"]),
        ("name: a\nvis: {steps: 1}", ["vis.steps", "did you mean vis.optimiser.steps?"]),
        ("name: a\nfoo: 1", ["foo: unknown key", "known here: name, description"]),
        ("name: a\nbenchmark: {kind: spritez}", ["benchmark.kind: 'spritez'", "mean 'sprites'?"]),
        ("name: a\nbenchmark: {kind: [1]}", ["benchmark.kind: [1]", "one of"]),
        ("name: a\nbenchmark: {corpus_clips: 9}", ["benchmark.kind: missing", "sprites", "folder"]),
        ("name: a\nbenchmark: 3", ["benchmark: 3", "an object"]),
        ("name: a\nbenchmark: {kind: folder}", ["mistakes", "corpus"]),
        ("name: a\nsupports: {vectors: globl}", ["'globl'", "did you mean 'global'?"]),
        ("name: a\nsupports:\n  shots: [1,\n    0]", ["supports.shots[1]: 0", "line 4"]),
        ("name: a\nsupports: {shots: []}", ["supports.shots: []", "at least 1 item"]),
        ("name: a\nsupports: {shots: 5}", ["supports.shots: 5", "a valid array"]),
        ("name: a\nbackbone: {kind: resnet18}", ["backbone.kind: 'resnet18'", "timm/NAME"]),
        ("name: a\nbackbone: {weights: random}", ["weights: random is not for kind small"]),
        ("name: a\nbackbone: {dilation: 2}", ["dilation: 2 is not for kind small"]),
        ("name: a\nbackbone:\n  dim: 71", ["backbone.dim: 71", "multiple", "line 3"]),
        ("name: a\nvis: {optimiser: {steps: 9}}", ["vis.optimiser.warmup_steps: 50", "steps: 9"]),
        ("name: a\nname: b", ["name: given twice", "line 2"]),
        ("name: a\nvis: {heads: 4, heads: 4}", ["heads: given twice"]),
        ("name: a\n---\nname: b", ["another document", "line 2"]),
        ("name: a\n\tseed: 1", ["YAML", "line 2"]),
        ("name: [a", ["YAML", "line 1"]),
        ("name: a: b", ["YAML", "quotes", "line 1"]),
        ("name: *x", ["undefined alias", "line 1"]),
        ("name: !!python/name:os.system a", ["tag", "line 1"]),
        ("name: !x a", ["tag !x", "line 1"]),
        ("name: a\nseed: !!int x", ["'x'", "int", "line 2"]),
        ("? [a]\n: 1", ["key", "line 1"]),
        ("name: a\n<<: 3", ["<<", "line 2"]),
        ('name: "\\ud800"', ["cannot be read", "line 1"]),
        ("name: a\x00b", ["character", "line 1"]),
        ("[" * 5000, ["levels", "line 1"]),
        ("&a [*a]", ["large"]),
    ],
)
def test_refusals_name_place_and_mend(text: str, parts: list[str]) -> None:
    message = refusal(text)
    for part in parts:
        assert part in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed", ["--set seed", "no '='"]),
        ("=3", ["--set =3", "not a key"]),
        ("a..b=3", ["not a key"]),
        ("supports.shots[0]=3", ["not a key", "a list is set whole"]),
        ("seed=-1", ["seed: -1", "--set seed=-1"]),
        ("vis.optimizer.steps=3", ["vis.optimizer: unknown", "optimiser", "--set"]),
        ("name.first=3", ["name: a section is not allowed", "--set"]),
        ("description=[x", ["YAML", "--set description=[x"]),
        ("vis.optimiser={steps: 1, steps: 2}", ["given twice", "--set"]),
        ("vis.heads=!!python/none", ["tag", "--set"]),
    ],
)
def test_a_wrong_override_is_named(override: str, parts: list[str]) -> None:
    message = refusal("name: a", override)
    for part in parts:
        assert part in message
    assert "line" not in message


def test_all_mistakes_at_once_in_the_order_of_lines() -> None:
    message = refusal("name: a\nseed: -1\nvis:\n  heads: 0\n  x: 1\n", "report.gallery_queries=-1")
    lines = message.splitlines()
    assert lines[0] == "my.yaml: 4 mistakes"
    assert [line.rsplit("; ", 1)[1] for line in lines[1:]] == [
        "my.yaml, line 2",
        "my.yaml, line 4",
        "my.yaml, line 5",
        "--set report.gallery_queries=-1",
    ]


def test_at_most_ten_mistakes_are_listed() -> None:
    message = refusal("name: a\n" + "".join(f"x{i}: 1\n" for i in range(14)))
    assert len(message.splitlines()) == 12
    assert message.endswith("and 4 more")


@pytest.mark.timeout(60)
def test_an_alias_bomb_is_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    # Written out it would have 9¹⁰ entries, which no machine holds: a refusal is made before that.
    assert "large" in refusal(bomb)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("name: a")
    (tmp_path / "latin.yaml").write_bytes(b"name: a\ndescription: caf\xe9\n")
    (tmp_path / "big.yaml").write_text("name: a\n" + "#" * 300_000)
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name, parts in {
        "quickstrat.yaml": ["no such file", "did you mean", "quickstart.yaml"],
        "none/a.yaml": ["no such file"],
        "": ["a folder"],
        "latin.yaml": ["0xe9", "UTF-8", "line 2"],
        "big.yaml": ["at most"],
        "loop.yaml": ["loop.yaml"],
        "a\0b": ["not a path"],
        "n" * 5000: ["cannot be read"],
    }.items():
        with pytest.raises(UserError) as caught:
            load_experiment(tmp_path / name)
        for part in parts:
            assert part in str(caught.value)


def test_paths_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARED", "/data")
    monkeypatch.delenv("ABSENT", raising=False)
    assert expand_path("$SHARED/x") == "/data/x"
    assert expand_path("${SHARED}/x") == "/data/x"
    assert expand_path("${ABSENT:-../y}/x") == "../y/x"
    assert expand_path("a$$b") == "a$b"
    assert expand_path("~") == os.path.expanduser("~")
    experiment = parse("name: a\noutput: $SHARED/runs\ndescription: $SHARED")
    assert experiment.output == Path("/data/runs")
    assert experiment.description == "$SHARED"


@pytest.mark.parametrize("path", ["$ABSENT/x", "${ABSENT}", "a$", "$(x)", "''", '"a\\0b"'])
def test_paths_that_cannot_be_filled_in(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    message = refusal(f"name: a\noutput: {path}")
    assert message.startswith("output: ")
    assert message.endswith("my.yaml, line 2")


def test_inputs_are_looked_for(tmp_path: Path) -> None:
    experiment = parse(FOLDER.format(root=tmp_path))
    (tmp_path / "frame").mkdir()
    with pytest.raises(UserError) as caught:
        check_inputs(experiment)
    message = str(caught.value)
    assert "benchmark.annotations" in message and "benchmark.corpus" in message
    assert f"did you mean {tmp_path / 'frame'}?" in message
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "frames").mkdir()
    (tmp_path / "clips").mkdir()
    check_inputs(experiment)


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with refused("output"):
        check_inputs(parse(f"name: a\noutput: {tmp_path}/runs/deeper"))


def test_the_resolved_experiment_loads_as_itself() -> None:
    for text in (
        "name: '1e-3'\ndescription: 'yes'\noutput: a$$b\n",
        "name: '0x10'\ndescription: \"a: b\\n\\tc # ✓\"\noutput: ./~x\nvis: {dropout: 1.0e-5}\n",
        FOLDER.format(root="x"),
    ):
        experiment = parse(text)
        assert parse(resolved_yaml(experiment)) == experiment


def test_the_schema_for_editors_lets_a_section_name_some_keys() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    assert validator.is_valid({"name": "a", "vis": {"optimiser": {"steps": 60}}})
    assert not validator.is_valid({"name": "a", "vis": {"optimizer": {}}})
    assert not validator.is_valid({})


RUNNABLE = [
    path
    for path in sorted(Path(__file__).parents[3].glob("experiments/**/*.yaml"))
    if "NOT RUNNABLE YET" not in path.read_text()
]


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_every_experiment_of_the_repository_loads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFSHOT_SHARED", "/somewhere")
    monkeypatch.setenv("SELFSHOT_INITIAL", "/somewhere/vis.safetensors")
    assert load_experiment(path).name


_KEYS = ["name", "seed", "vis", "benchmark", "kind", "sprites", "optimiser", "steps", "output"]
_MARKS = [": ", ":\n  ", "\n", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<: ", "!!int ", "'"]
_YAMLISH = st.lists(
    st.sampled_from(_KEYS + _MARKS + ["1", "-1", "1e3", ".inf", "true", "null", "~", "$X", "?"])
).map("".join)
_quiet = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_quiet
@given(st.one_of(st.text(), _YAMLISH, _YAMLISH.map(lambda text: "name: a\n" + text)))
@example("name: a\nseed: " + "9" * 5000)
@example("name: a\nseed: " + "9" * 40)
@example("name: a\n1: 2\n")
@example("name: a\nnull: 2\n")
@example("name: a\nbenchmark: {kind: null}")
@example("name: a\nbenchmark: {kind: {a: b}}")
@example("name: a\nvis: {0: {a: b}}")
@example("name: a\noutput: ~nobody-of-that-name/x")
@example("!!set {a, b}")
@example("name: a\ndescription: !!binary x")
@example("name: a\nsupports: {shots: {0: 1}}")
def test_any_text_is_an_experiment_or_a_user_error(text: str) -> None:
    try:
        experiment = parse(text)
    except UserError as error:
        assert str(error)
    else:
        assert parse(resolved_yaml(experiment)) == experiment


@_quiet
@given(st.text(max_size=30), st.one_of(st.text(max_size=30), _YAMLISH))
def test_any_override_is_taken_or_refused(key: str, value: str) -> None:
    for override in (f"{key}={value}", f"vis.heads={value}", f"benchmark.kind={value}", value):
        try:
            parse("name: a", override)
        except UserError as error:
            assert str(error)


@_quiet
@given(st.binary(max_size=200))
def test_any_bytes_are_an_experiment_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.yaml"
    path.write_bytes(content)
    try:
        load_experiment(path)
    except UserError as error:
        assert str(error)


class TestBuilders:
    """The settings of one kind of benchmark, alone or within an experiment."""

    PLACES = {"frames": "f", "corpus": "c"}
    NAMED = {"val_classes": ["a"], "test_classes": ["b"]}
    NEEDED = {
        "sprites": {},
        "folder": {**PLACES, **NAMED, "annotations": "a.json"},
        "davis": {**PLACES, **NAMED, "masks": "m"},
        "self_vis": {**PLACES, "annotations": "a.json"},
        "self_ovis": {**PLACES, "annotations": "a.json"},
        "coco_one_shot": {**PLACES, "annotations": "a.json"},
        "pseudo_videos": {**NAMED, "sources": [{"annotations": "a.json", "images": "i"}]},
    }

    def _load(self, folder: Path, kind: str, content: object, *overrides: str) -> Experiment:
        (folder / "c.yaml").write_text(write_yaml(content))
        return load_builder(kind, folder / "c.yaml", overrides)

    def test_every_kind_is_listed(self) -> None:
        assert set(KINDS) == set(self.NEEDED)

    @pytest.mark.parametrize("kind", KINDS)
    def test_alone_and_within_an_experiment(self, tmp_path: Path, kind: str) -> None:
        section = {**self.NEEDED[kind], "kind": kind}
        whole = self._load(tmp_path, kind, {"name": "x", "seed": 7, "benchmark": section})
        for keys in (section, self.NEEDED[kind]):
            alone = self._load(tmp_path, kind, {**keys, "seed": 7, "output": "elsewhere"})
            assert alone.benchmark == whole.benchmark and alone.seed == whole.seed == 7
            assert (alone.name, str(alone.output)) == (kind, "elsewhere")
        again = parse(resolved_yaml(whole))
        assert again == whole

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sprites"])
    def test_what_is_missing_is_named(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(UserError) as caught:
            self._load(tmp_path, kind, {})
        for key in self.NEEDED[kind]:
            assert f"benchmark.{key}: missing" in str(caught.value)

    def test_variables_are_filled_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLIPS", "/other")
        needed = {**self.NEEDED["self_vis"], "corpus": "$CLIPS/clips"}
        made = self._load(tmp_path, "self_vis", needed)
        assert made.benchmark.corpus == Path("/other/clips")  # type: ignore[union-attr]

    def test_a_small_benchmark_needs_no_small_batches(self, tmp_path: Path) -> None:
        small = {"train_classes": 3, "corpus_seen_classes": 1, "corpus_clips": 4}
        made = self._load(tmp_path, "sprites", small, "benchmark.height=40")
        assert made.benchmark.height == 40  # type: ignore[union-attr]
        assert load_builder("sprites", None).benchmark == Experiment(name="a").benchmark

    @pytest.mark.parametrize(
        ("kind", "content", "parts"),
        [
            ("davis", {"name": "x"}, ["about a benchmark of kind sprites, not davis"]),
            ("self_vis", {"val_share": 1.0}, ["benchmark.val_share: 1.0 is not allowed"]),
            ("coco_one_shot", {"fold": 5}, ["benchmark.fold: 5 is not allowed", "equal to 4"]),
            ("coco_one_shot", {"num_frames": 2}, ["num_frames: 2 is not allowed (should be 1)"]),
            ("self_vis", ["a"], ["not keys and values"]),
        ],
    )
    def test_wrong_settings(
        self, tmp_path: Path, kind: str, content: object, parts: list[str]
    ) -> None:
        with pytest.raises(UserError) as caught:
            self._load(tmp_path, kind, content)
        for part in parts:
            assert part in str(caught.value)

    def test_files_that_are_missing(self, tmp_path: Path) -> None:
        made = self._load(tmp_path, "davis", {**self.NEEDED["davis"], "classes": "k.csv"})
        with pytest.raises(UserError) as caught:
            check_inputs(made)
        for name in ("frames: f", "masks: m", "classes: k.csv", "corpus: c"):
            assert f"benchmark.{name} does not exist" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        (["supports.shots=[1, 10]"], True),
        (["supports.shots=[5]", "supports.extra=[0, 5]"], True),
        (["supports.shots=[1, 11]"], False),
        (["supports.shots=[8]", "supports.extra=[3]"], False),
        (["supports.shots=[50]", "evaluation.supports=[random, self_shot]"], True),
    ],
)
def test_a_benchmark_fixes_ten_oracle_supports(overrides: list[str], allowed: bool) -> None:
    if allowed:
        assert parse("name: a", *overrides)
    else:
        assert "supports.shots: " in refusal("name: a", *overrides)
