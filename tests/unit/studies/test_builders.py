"""What a benchmark is made of: a digest that changes when a file of it does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from selfshot.config.load import parse_experiment
from selfshot.config.schema import Experiment
from selfshot.studies.builders import inputs_digest, known_digests
from selfshot.studies.run import stage_keys, stage_settings, wanted_stages

TEXT = """\
name: photos
benchmark:
  kind: pseudo_videos
  sources:
    - {{annotations: {root}/one.json, images: {root}/one}}
    - {{annotations: {root}/two.json, images: {root}/two}}
  val_classes: [cat]
  test_classes: [dog]
"""


@pytest.fixture
def photos(tmp_path: Path) -> Experiment:
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / f"{name}.json").write_text(f'{{"name": "{name}"}}')
        (tmp_path / name / "deep" / "0.jpg").write_bytes(name.encode())
    return parse_experiment(TEXT.format(root=tmp_path), "photos.yaml", [f"output={tmp_path}"])


def _keys(experiment: Experiment) -> dict[str, str]:
    stages = wanted_stages(experiment)
    return stage_keys(stages, stage_settings(stages, experiment))


def _later(path: Path) -> None:
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a photo's bytes": lambda root: (root / "two" / "deep" / "0.jpg").write_bytes(b"other"),
    "a photo's time": lambda root: _later(root / "one" / "deep" / "0.jpg"),
    "one photo more": lambda root: (root / "two" / "1.jpg").write_bytes(b"more"),
    "one photo less": lambda root: (root / "one" / "deep" / "0.jpg").unlink(),
    "a photo's name": lambda root: (root / "one" / "deep" / "0.jpg").rename(root / "one" / "0.jpg"),
    "an annotation": lambda root: (root / "two.json").write_text('{"name": "twp"}'),
    "the other file's annotation": lambda root: (root / "one.json").write_text('{"name": "onf"}'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_follows_every_file_of_every_source(
    tmp_path: Path, photos: Experiment, change: str
) -> None:
    digest, keys = inputs_digest(photos), _keys(photos)
    assert inputs_digest(photos) == digest and _keys(photos) == keys
    CHANGES[change](tmp_path)
    assert inputs_digest(photos) != digest
    other = _keys(photos)
    assert other.keys() == keys.keys()
    assert all(other[stage] != keys[stage] for stage in ("benchmark", "backbone", "vis"))


def test_what_is_beside_the_sources_does_not_matter(tmp_path: Path, photos: Experiment) -> None:
    digest = inputs_digest(photos)
    (tmp_path / "notes.txt").write_text("x")
    _later(tmp_path / "one.json")
    assert inputs_digest(photos) == digest, "of texts the bytes count"


def test_sources_are_not_taken_for_one_another(tmp_path: Path, photos: Experiment) -> None:
    swapped = TEXT.replace("one", "\0").replace("two", "one").replace("\0", "two")
    other = parse_experiment(swapped.format(root=tmp_path), "photos.yaml", [])
    assert inputs_digest(other) != inputs_digest(photos)


def test_files_are_walked_over_once(tmp_path: Path, photos: Experiment) -> None:
    with known_digests() as digests:
        first = inputs_digest(photos)
        assert list(digests.values()) == [first]
        (tmp_path / "two" / "1.jpg").write_bytes(b"more")
        assert inputs_digest(photos) == first
    assert inputs_digest(photos) != first
