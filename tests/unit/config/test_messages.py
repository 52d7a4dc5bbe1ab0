"""Mistakes that are found late are told with the line of their setting too."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from selfshot.config.messages import ConfigError, located
from selfshot.config.paths import check_inputs
from selfshot.config.sweep import Study, load_study
from selfshot.errors import StorageError, UserError

TEXT = """\
name: a
benchmark:
  kind: folder
  annotations: none.json
  frames: frames
  corpus: clips
  val_classes: [cat]
  test_classes: [dog]
compute: {num_workers: 2,
  use_gpu: true}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "late.yaml"
    path.write_text(TEXT)
    return path


def told(study: Study, error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught, located(study.data):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("setting", "overrides", "place"),
    [
        ("benchmark.frames", [], "; {file}, line 5"),
        ("compute.use_gpu", [], "; {file}, line 10"),
        ("benchmark.frames", ["benchmark.frames=x"], "; --set benchmark.frames=x"),
        # Nobody wrote these, or it is no setting.
        ("output", [], ""),
        ("--root", [], ""),
        (None, [], ""),
    ],
)
def test_the_place_of_a_setting(
    file: Path, setting: str | None, overrides: list[str], place: str
) -> None:
    study = load_study(file, overrides)
    for kind in (UserError, StorageError):
        made = told(study, kind("it is wrong", setting=setting))
        assert str(made) == "it is wrong" + place.format(file=file)
        assert getattr(made, "setting", None) == setting


def test_only_mistakes_are_changed_and_only_once(file: Path) -> None:
    study = load_study(file)
    once = told(study, UserError("it is wrong", setting="benchmark.frames"))
    assert str(told(study, once)) == str(once)
    assert str(told(study, KeyError("benchmark.frames"))) == "'benchmark.frames'"


def test_a_mistake_crosses_processes_with_its_setting() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("it is wrong", setting="vis.heads")))
    assert (str(error), error.setting) == ("it is wrong", "vis.heads")


def test_every_missing_input_has_its_own_line(file: Path) -> None:
    study = load_study(file, ["vis.initial=y"])
    with pytest.raises(ConfigError) as caught:
        check_inputs(*study.experiments, *study.experiments, data=study.data)
    lines = str(caught.value).splitlines()
    assert lines[0] == "a: 4 paths are wrong"
    assert [line.rpartition("; ")[2].removeprefix(f"{file}, ") for line in lines[1:]] == [
        "line 4", "line 5", "line 6", "--set vis.initial=y"
    ]  # fmt: skip


def test_every_trial_has_its_inputs_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nsweep:\n  over: {vis.initial: [one, two], seed: [1, 2]}\n")
    study = load_study(path)
    with pytest.raises(ConfigError) as caught:
        check_inputs(*study.experiments, data=study.data)
    lines = str(caught.value).splitlines()
    assert lines[0] == "a: 2 paths are wrong" and "one does not" in lines[1] and "two" in lines[2]
