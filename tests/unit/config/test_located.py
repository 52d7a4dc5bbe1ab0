"""Mistakes that are found late are told with the line of their setting too."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfshot.config.located import located, with_places
from selfshot.errors import UserError

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


@pytest.mark.parametrize(
    ("message", "overrides", "place"),
    [
        ("benchmark.frames: frames does not exist", [], "; {file}, line 5"),
        ("  benchmark.corpus: clips does not exist", [], "; {file}, line 6"),
        ("compute.use_gpu: true needs GPUs", [], "; {file}, line 10"),
        ("benchmark.frames: x is none", ["benchmark.frames=x"], "; --set benchmark.frames=x"),
        # Nobody wrote these, or the place is told already, or it is no setting.
        ("output: /x may not be written", [], ""),
        ("benchmark.frames: wrong; other.yaml, line 3", [], ""),
        ("benchmark.frames: wrong; --set benchmark.frames=y", [], ""),
        ("a: 2 paths are wrong", [], ""),
        ("it went wrong", [], ""),
    ],
)
def test_the_place_of_a_setting(
    file: Path, message: str, overrides: list[str], place: str
) -> None:
    assert with_places(message, file, overrides) == message + place.format(file=file)


def test_every_line_has_its_own(file: Path) -> None:
    message = "a: 2 paths are wrong\n  benchmark.frames: x\n  benchmark.corpus: y"
    lines = with_places(message, file).splitlines()
    assert [line.rpartition("line ")[2] for line in lines[1:]] == ["5", "6"]


def test_only_mistakes_are_changed(file: Path) -> None:
    with pytest.raises(UserError, match=r"line 5$"), located(file):
        raise UserError("benchmark.frames: x")
    with pytest.raises(KeyError), located(file):
        raise KeyError("benchmark.frames: x")
    file.write_text("name: [")
    assert with_places("benchmark.frames: x", file) == "benchmark.frames: x"
