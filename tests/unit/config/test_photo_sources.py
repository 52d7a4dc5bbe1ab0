"""The settings of pseudo-videos: what is said of wrong ones, and of files that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refusals import refused
from selfshot.config.benchmarks import PseudoVideosBenchmark, SceneConfig
from selfshot.config.load import parse_experiment, resolved_yaml
from selfshot.config.paths import check_inputs
from selfshot.errors import UserError

TEXT = """\
name: photos
benchmark:
  kind: pseudo_videos
  sources:
    - annotations: one.json
      images: one
    - annotations: two.json
      images: two
  val_classes: [cat]
  test_classes: [dog]
"""


def parse(text: str, *overrides: str) -> Any:
    return parse_experiment(text, "my.yaml", overrides)


def test_sources_and_defaults() -> None:
    section = parse(TEXT).benchmark
    assert isinstance(section, PseudoVideosBenchmark)
    assert [(str(one.annotations), str(one.images)) for one in section.sources] == [
        ("one.json", "one"),
        ("two.json", "two"),
    ]
    assert section.scene == SceneConfig() and section.aliases == {}


def test_what_is_resolved_says_the_same() -> None:
    experiment = parse(TEXT, "benchmark.aliases={hound: dog}", "benchmark.scene.zoom=[0.5, 0.7]")
    assert parse_experiment(resolved_yaml(experiment), "again", ()) == experiment
    assert experiment.benchmark.scene.zoom == (0.5, 0.7)


@pytest.mark.parametrize(
    ("old", "new", "setting"),
    [
        ("      images: one\n", "", "benchmark.sources[0].images"),
        ("      images: two\n", "", "benchmark.sources[1].images"),
        ("      images: one\n", "      images: one\n      frames: x\n",
         "benchmark.sources[0].frames"),
        ("    - annotations: one.json\n", "    - annotations: 7\n",
         "benchmark.sources[0].annotations"),
        ("  val_classes: [cat]\n", "", "benchmark.val_classes"),
        ("[dog]", "[]", "benchmark.test_classes"),
        ("[dog]", "[dog, cat]", "benchmark.val_classes"),
    ],
    ids=["no images", "no images of the second", "unknown key", "no path", "no val classes",
         "empty test classes", "a class of two splits"],
)  # fmt: skip
def test_a_section_that_is_wrong(old: str, new: str, setting: str) -> None:
    assert TEXT.count(old) == 1
    with refused(setting) as caught:
        parse(TEXT.replace(old, new))
    assert setting in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "sources=[]",
        "sources={}",
        "scene.zoom=[0.9, 0.5]",
        "scene.close_up=[2, 1.5]",
        "scene.object_side=[0.8, 0.35]",
        "scene.distractors=[3, 1]",
        "scene.zoom=[0, 1]",
        "scene.object_side=[0.01, 0.2]",
        "scene.zoom=0.5",
        "scene.zoom=[0.5, 0.6, 0.7]",
        "scene.distractors=[0.5, 2]",
        "scene.distractors=[-1, 2]",
        "scene.travel=1.5",
        "scene.light=-0.1",
        "scene.enlarged=0",
        "scene.noise=-1",
        "scene.turns=3",
        "min_object=0",
        "bystanders=1.1",
        "num_frames=1",
        "corpus_unseen=2",
        "aliases=[hound, dog]",
    ],
)
def test_values_that_are_wrong(override: str) -> None:
    name, value = override.split("=")
    # Of a pair it is said which of the two has a wrong type or size.
    place = "[0]" if value in ("[0.5, 2]", "[-1, 2]") else ""
    with refused(f"benchmark.{name}{place}"):
        parse(TEXT, f"benchmark.{override}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scene.zoom", (0.05, 0.05)),
        ("scene.distractors", (0, 0)),
        ("scene.turn", 0),
        ("scene.noise", 0),
        ("scene.pasted_target", 1),
        ("bystanders", 0),
        ("corpus_unseen", 1),
    ],
)
def test_values_at_the_edge_are_taken(name: str, value: object) -> None:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    found = parse(TEXT, f"benchmark.{name}={text}").benchmark
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value


def test_a_corpus_must_fill_a_batch_of_the_encoder() -> None:
    batch = "encoder={videos_per_batch: 9, queue_length: 0}"
    assert parse(TEXT, "benchmark.corpus_clips=9", batch).benchmark.corpus_clips == 9
    with refused():
        parse(TEXT, "benchmark.corpus_clips=8", batch)


class TestFiles:
    """What `check_inputs` says of each source's file and folder."""

    def _experiment(self, root: Path) -> Any:
        text = TEXT.replace("one", f"{root}/one").replace("two", f"{root}/two")
        return parse(text, f"output={root}")

    def _source(self, root: Path, name: str) -> None:
        (root / f"{name}.json").write_text("{}")
        (root / name).mkdir()

    def test_nothing_where_all_are_there(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            self._source(tmp_path, name)
        check_inputs(self._experiment(tmp_path))

    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize("field", ["annotations", "images"])
    def test_each_that_is_missing(self, tmp_path: Path, index: int, field: str) -> None:
        for name in ("one", "two"):
            self._source(tmp_path, name)
        gone = tmp_path / ("one", "two")[index]
        gone.with_suffix(".json").unlink() if field == "annotations" else gone.rmdir()
        with refused(f"benchmark.sources[{index}].{field}") as caught:
            check_inputs(self._experiment(tmp_path))
        assert "does not exist" in str(caught.value)

    def test_all_at_once_and_a_folder_in_place_of_a_file(self, tmp_path: Path) -> None:
        self._source(tmp_path, "one")
        (tmp_path / "two.json").mkdir()
        with pytest.raises(UserError) as caught:
            check_inputs(self._experiment(tmp_path))
        said = str(caught.value)
        assert f"benchmark.sources[1].annotations: {tmp_path}/two.json is a folder" in said
        assert f"benchmark.sources[1].images: {tmp_path}/two does not exist" in said
        assert "sources[0]" not in said

    def test_the_line_of_a_source_is_named(self, tmp_path: Path, monkeypatch: Any) -> None:
        from selfshot.config.sweep import load_study

        monkeypatch.chdir(tmp_path)
        self._source(tmp_path, "one")
        (tmp_path / "two").mkdir()
        (tmp_path / "my.yaml").write_text(TEXT)
        study = load_study(tmp_path / "my.yaml", [])
        with pytest.raises(UserError) as caught:
            check_inputs(*study.experiments, data=study.data)
        assert str(caught.value).endswith("my.yaml, line 7")
