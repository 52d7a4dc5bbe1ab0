"""COCO's images as videos of one frame, and the four folds of its classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refusals import refused
from selfshot.benchmarks.coco import build_coco_one_shot, fold_splits
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.split import UNSEEN
from selfshot.ops.masks import decode_rle

NUMBERS = [1, 2, 3, 5, 8, 13, 21, 34]
"""Ids with gaps, as COCO's have: 80 classes up to number 90."""

POLYGON = [[2, 2, 11, 2, 11, 8, 2, 8]]
CROWD = {"size": [10, 14], "counts": [20, 30, 90]}


def draw(path: Path, seed: int) -> None:
    """An image that no other seed has."""
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def instances(root: Path, images: list[list[int]]) -> dict[str, Any]:
    """Images given as the positions of their classes, from 1."""
    (root / "images").mkdir()
    document: dict[str, Any] = {
        "categories": [{"id": n, "name": f"class{i}"} for i, n in enumerate(NUMBERS, start=1)],
        "images": [],
        "annotations": [],
    }
    for number, positions in enumerate(images, start=100):
        name = f"{number:012d}.jpg"
        draw(root / "images" / name, number)
        document["images"].append({"id": number, "file_name": name, "width": 14, "height": 10})
        for position in positions:
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number,
                    "category_id": NUMBERS[position - 1],
                    "segmentation": POLYGON,
                    "bbox": [2, 2, 9, 6],
                    "area": 54.0,
                    "iscrowd": 0,
                }
            )
    (root / "clips").mkdir()
    (root / "clips" / "one.mp4").write_bytes(b"one")
    (root / "instances.json").write_text(json.dumps(document))
    return {
        "annotations": root / "instances.json",
        "frames": root / "images",
        "corpus": root / "clips",
        "corpus_labels": None,
        "fold": 2,
        "val_share": 0.5,
        "seed": 0,
        "height": 32,
        "width": 32,
        "num_frames": 1,
        "on_message": lambda message: None,
    }


def edit(settings: dict[str, Any], **changes: Any) -> None:
    document = json.loads(settings["annotations"].read_text())
    for section, change in changes.items():
        change(document[section])
    settings["annotations"].write_text(json.dumps(document))


def test_folds_are_every_fourth_class_in_the_order_of_the_ids() -> None:
    categories = {1 + i + i // 9: f"class{i:02d}" for i in reversed(range(80))}
    unseen = []
    for fold in (1, 2, 3, 4):
        splits = fold_splits(categories, fold)
        mine = [name for name, split in splits.items() if split == UNSEEN]
        assert mine == [f"class{i:02d}" for i in range(fold - 1, 80, 4)]
        assert sum(split == "train" for split in splits.values()) == 60
        unseen += mine
    assert sorted(unseen) == sorted(categories.values())


def test_images_become_videos_of_one_frame(tmp_path: Path, check_promises, written) -> None:
    images = [[i] for i in range(1, 9) for _ in range(4)] + [[1, 2], [2, 6], [1, 3]]
    settings = instances(tmp_path, images)
    made = build_coco_one_shot(tmp_path / "out", **settings)
    annotations = written(tmp_path / "out")
    check_promises(made, annotations)
    assert made.classes["test"] == made.classes["val"] == ("class2", "class6")
    assert made.name == "COCO one-shot, fold 2"
    assert made.statistics["train_classes"] == 6 and made.statistics["val_test_classes"] == 2
    assert made.statistics["mean_length"] == 1
    # An image of seen and unseen classes never trains; one of two unseen classes asks for both.
    assert made.counts["videos_of_seen_and_unseen"] == 1
    asked = [*made.queries["val"], *made.queries["test"]]
    assert (132, "class2") in asked
    assert {(133, "class2"), (133, "class6")} <= set(asked)
    assert 134 in {video for video, _ in made.queries["train"]}
    assert len(asked) == 4 + 4 + 1 + 2
    video, (track,) = annotations.videos[100], annotations.tracks_of(100)
    assert (video.length, video.file_names) == (1, ("000000000100.jpg",))
    mask = decode_rle(track.segmentations[0], 10, 14)
    expected = np.zeros((10, 14), bool)
    expected[2:8, 2:11] = True
    assert (mask == expected).all()
    assert track.boxes == ((2, 2, 9, 6),) and track.areas == (54.0,)
    assert made.reader(tmp_path / "out").frames(100).shape == (1, 32, 32, 3)


def test_crowds_are_no_targets(tmp_path: Path) -> None:
    settings = instances(tmp_path, [[i] for i in range(1, 9) for _ in range(4)])

    def crowd(entries: list[dict[str, Any]]) -> None:
        entries[0].update(iscrowd=1, segmentation=CROWD)

    edit(settings, annotations=crowd)
    made = build_coco_one_shot(tmp_path / "out", **settings)
    (reason,) = [why for what, why in made.quarantined if what.startswith("video 100")]
    assert reason == "no train class is visible in the 1 frames of its clip"


def test_broken_entries_are_quarantined_by_cocos_names(tmp_path: Path) -> None:
    settings = instances(tmp_path, [[i] for i in range(1, 9) for _ in range(4)])

    def no_name(entries: list[dict[str, Any]]) -> None:
        del entries[1]["file_name"]

    def two_points(entries: list[dict[str, Any]]) -> None:
        entries[2]["segmentation"] = [[1, 2, 3, 4]]

    edit(settings, images=no_name, annotations=two_points)
    made: Benchmark = build_coco_one_shot(tmp_path / "out", **settings)
    reasons = dict(made.quarantined)
    assert "file_name: None is not allowed" in reasons["images[1] (id 101)"]
    (reason,) = [why for what, why in made.quarantined if what.startswith("video 102")]
    assert "one of its instances cannot be read (annotations[2] (id 3)" in reason
    assert made.counts["videos"] == 32 and made.counts["videos_quarantined"] == 2


def test_another_json_is_refused(tmp_path: Path) -> None:
    settings = instances(tmp_path, [[1]])
    settings["annotations"].write_text('{"videos": [], "categories": [], "annotations": []}')
    with refused("benchmark.annotations"):
        build_coco_one_shot(tmp_path / "out", **settings)
    settings["annotations"].write_text("[]")
    with refused("benchmark.annotations"):
        build_coco_one_shot(tmp_path / "out", **settings)


def two_files(root: Path) -> dict[str, Any]:
    """Eight training images of each class and four others of each, in folders of their own."""
    settings = instances(root, [[i] for i in range(1, 9) for _ in range(3)] + [[1, 2]])
    (root / "val").mkdir()
    other = instances(root / "val", [[i] for i in range(1, 9) for _ in range(4)] + [[6, 7]])
    for path in (root / "val" / "images").iterdir():
        draw(path, 1000 + int(path.stem))
    return settings | {
        "eval_annotations": other["annotations"],
        "eval_frames": other["frames"],
    }


def test_scored_images_may_be_of_a_file_of_their_own(
    tmp_path: Path, check_promises, written
) -> None:
    made = build_coco_one_shot(tmp_path / "out", **two_files(tmp_path))
    annotations = written(tmp_path / "out")
    check_promises(made, annotations)
    names = {video: entry.file_names[0] for video, entry in annotations.videos.items()}
    assert {names[video].split("/")[0] for video in made.videos["train"]} == {"images"}
    scored = {*made.videos["val"], *made.videos["test"]}
    assert {names[video].split("/")[0] for video in scored} == {"val"}
    assert len(scored) == 4 + 4 + 1, "the classes 2 and 6, and the image of 6 and 7"
    assert made.counts["videos"] == 25 + 33 and len(made.videos["train"]) == 6 * 3
    reasons = [reason for _, reason in made.quarantined]
    assert sum("which only trains" in reason for reason in reasons) == 3 + 3 + 1
    assert sum("which never trains" in reason for reason in reasons) == 6 * 4
    # Both files name the same ids, so that the second's are others here.
    assert len(names) == 58 and made.reader(tmp_path / "out").frames(max(names)).shape[0] == 1
    assert set(made.inputs) >= {"annotations", "eval_annotations", "frames"}


def test_an_image_of_both_files_is_used_once(tmp_path: Path) -> None:
    settings = two_files(tmp_path)
    same = sorted(settings["frames"].iterdir())[0]
    (settings["eval_frames"] / "000000000104.jpg").write_bytes(same.read_bytes())
    said: list[str] = []
    settings["on_message"] = said.append
    made = build_coco_one_shot(tmp_path / "out", **settings)
    assert any("1 pairs of videos are the same files" in message for message in said)
    reasons = [reason for what, reason in made.quarantined if what.startswith("video 100 ")]
    assert any("is in the" in reason for reason in reasons), reasons
    assert 100 not in made.videos["train"]


@pytest.mark.parametrize("key", ["name", "id"])
def test_files_of_two_datasets_are_refused(tmp_path: Path, key: str) -> None:
    settings = two_files(tmp_path)
    document = json.loads(settings["eval_annotations"].read_text())
    document["categories"][-1][key] = 35 if key == "id" else "other"
    document["annotations"] = [a for a in document["annotations"] if a["category_id"] != 34]
    settings["eval_annotations"].write_text(json.dumps(document))
    with refused("benchmark.eval_annotations"):
        build_coco_one_shot(tmp_path / "out", **settings)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("images", lambda e: {"id": str(e["id"])}),
        ("images", lambda e: {"file_name": None}),
        ("annotations", lambda e: {"image_id": float(e["image_id"])}),
        ("annotations", lambda e: {"segmentation": "x"}),
        ("annotations", lambda e: {"bbox": []}),
    ],
)
def test_messages_name_cocos_own_keys(
    tmp_path: Path, section: str, change: Any
) -> None:
    settings = instances(tmp_path, [[1], [2]])
    document = json.loads(settings["annotations"].read_text())
    for entry in document[section]:
        entry.update(change(entry))
    settings["annotations"].write_text(json.dumps(document))
    with refused():
        build_coco_one_shot(tmp_path / "out", **settings)
