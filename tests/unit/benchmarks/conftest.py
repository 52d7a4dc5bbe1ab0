"""Small made-up worlds: annotated videos of any dataset's form, and clips."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfshot.benchmarks.manifest import Benchmark
from selfshot.data.ytvis import Annotations, load_annotations
from selfshot.ops.masks import encode_rle

HEIGHT, WIDTH = 10, 14
SPLITS = ("train", "val", "test")

Videos = Sequence[tuple[Sequence[str], str]]
World = Callable[..., dict[str, Any]]


def rectangle() -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:7, 3:11] = True
    return encode_rle(mask)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Writes videos of one frame, given as (classes, folder of the frames); a clip beside them.

    Gives back the settings that builders of such videos share.
    """

    def make(
        categories: Sequence[str], videos: Videos, *, file_name: str = "train.json", **more: Any
    ) -> dict[str, Any]:
        ids = {name: number for number, name in enumerate(categories, start=1)}
        entries: dict[str, Any] = {
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
            "videos": [],
            "annotations": [],
        }
        for number, (names, folder) in enumerate(videos, start=1):
            path = tmp_path / "frames" / folder / "00000.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.new("RGB", (WIDTH, HEIGHT), (7 * number % 256, 90, 200)).save(
                    path, comment=str(path)
                )
            entries["videos"].append(
                {
                    "id": number,
                    "width": WIDTH,
                    "height": HEIGHT,
                    "length": 1,
                    "file_names": [f"{folder}/00000.jpg"],
                }
            )
            for name in names:
                entries["annotations"].append(
                    {
                        "id": len(entries["annotations"]) + 1,
                        "video_id": number,
                        "category_id": ids[name],
                        "iscrowd": 0,
                        "segmentations": [rectangle()],
                    }
                )
        (tmp_path / file_name).write_text(json.dumps(entries))
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / "one.mp4").write_bytes(b"one")
        (tmp_path / "clips" / "two.mp4").write_bytes(b"two")
        return {
            "annotations": tmp_path / file_name,
            "frames": tmp_path / "frames",
            "corpus": tmp_path / "clips",
            "corpus_labels": None,
            "seed": 3,
            "height": 32,
            "width": 40,
            "num_frames": 1,
            "on_message": lambda message: None,
        } | more

    return make


def used(made: Benchmark, split: str) -> set[int]:
    helpers = {video for videos in made.supports[split].values() for video in videos}
    return helpers | {video for video, _ in made.queries[split]}


@pytest.fixture(scope="session")
def check_promises() -> Callable[[Benchmark, Annotations], None]:
    """What holds of every benchmark, written out apart from the program's own check."""

    def check(made: Benchmark, annotations: Annotations) -> None:
        def source(video: int) -> str:
            return annotations.videos[video].source_id or f"#{video}"

        splits = {split: used(made, split) for split in SPLITS}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not splits[one] & splits[other]
            assert not {source(v) for v in splits[one]} & {source(v) for v in splits[other]}
        unseen = {*made.classes["val"], *made.classes["test"]}
        assert not unseen & set(made.classes["train"])
        for video in splits["train"]:
            shown = {annotations.categories[t.category_id] for t in annotations.tracks_of(video)}
            assert shown and not shown & unseen
        if made.videos:
            assert made.videos == {split: tuple(sorted(splits[split])) for split in SPLITS}
        assert set(made.pairs) == {"val", "test"}
        for split, pairs in made.pairs.items():
            assert set(pairs) == {f"{video}:{name}" for video, name in made.queries[split]}
            for key, supports in pairs.items():
                number, _, name = key.partition(":")
                assert len(supports) == 10
                pool = {v for v in made.supports[split][name] if source(v) != source(int(number))}
                assert set(supports) <= pool
                assert len(set(supports)) == min(10, len(pool))
                assert list(supports) == [supports[i % len(pool)] for i in range(10)]

    return check


@pytest.fixture(scope="session")
def written() -> Callable[[Path], Annotations]:
    return lambda folder: load_annotations(folder / "annotations.json")
