"""COCO's images as videos of one frame, with the class folds of Siamese Mask R-CNN.

A fold leaves out every fourth of the 80 classes, in the order of their ids. It is for image →
image (Table 12): an image is a query once for each unseen class that it shows.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from selfshot.benchmarks.annotated import Form, Found, OnMessage, read_annotated
from selfshot.benchmarks.assembly import Shared, assemble
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.split import UNSEEN
from selfshot.data.ytvis import Annotations, Track
from selfshot.errors import UserError

FOLDS = 4
CLASSES = 80


def build_coco_one_shot(
    folder: Path,
    *,
    annotations: Path,
    frames: Path,
    fold: int,
    on_message: OnMessage,
    eval_annotations: Path | None = None,
    eval_frames: Path | None = None,
    **shared: Any,
) -> Benchmark:
    """Write the manifest of one fold of COCO's classes into `folder`.

    Args:
        folder: where the manifest and the images as YouTube-VIS JSON are written.
        annotations: COCO's instances JSON.
        frames: the images' folder.
        fold: from 1: which of every four classes is unseen.
        on_message: receives what was found.
        eval_annotations: another instances JSON, of the query and support images of val and test.
            Those of the first then only train.
        eval_frames: their folder; none: the same one.
        **shared: corpus, corpus_labels, seed, height, width,
            num_frames and val_share, as `Shared` has them.

    Raises:
        UserError: the file is no instances JSON, or as `assemble` says.
    """
    found = read_annotated(annotations, "annotations", COCO)
    if eval_annotations is not None:
        other = read_annotated(eval_annotations, "eval_annotations", COCO)
        found, frames = _with_eval(found, other, frames, eval_frames or frames, fold)
    categories = found.annotations.categories
    if len(categories) != CLASSES:
        on_message(
            f"{found.name}: {len(categories)} classes, and COCO has {CLASSES}; every fourth of "
            "those that are there is unseen"
        )
    split_of = fold_splits(categories, fold)
    return assemble(
        folder,
        found,
        Shared(frames=frames, **shared),
        name=f"COCO one-shot, fold {fold}",
        kind="coco_one_shot",
        split_of=split_of,
        # COCO holds a few images twice.
        one_source_of_same_files=True,
        on_message=on_message,
    )


def _with_eval(
    train: Found, other: Found, frames: Path, eval_frames: Path, fold: int
) -> tuple[Found, Path]:
    """The images of two files as one, and the folder that both lie in.

    Images of the first that show an unseen class, and those of the second that show none, have no
    place.

    Raises:
        UserError: the classes of the two files differ.
    """
    if train.annotations.categories != other.annotations.categories:
        one, two = (set(f.annotations.categories.items()) for f in (train, other))
        raise UserError(
            f"benchmark.eval_annotations: {other.name} has other categories than {train.name} "
            f"({len(one ^ two)} ids or names differ); give two files of one dataset",
            setting="benchmark.eval_annotations",
        )
    split_of = fold_splits(train.annotations.categories, fold)
    root = Path(os.path.commonpath([frames.resolve(), eval_frames.resolve()]))
    merged = Found(
        f"{train.name} and {other.name}",
        Annotations({}, train.annotations.categories, ()),
        quarantined=[
            (f"{found.name}: {what}", reason)
            for found in (train, other)
            for what, reason in found.quarantined
        ],
        unread=train.unread + other.unread,
        inputs={**train.inputs, **other.inputs},
    )
    tracks: list[Track] = []
    for found, folder, is_train in ((train, frames, True), (other, eval_frames, False)):
        videos = merged.annotations.videos
        # COCO's ids are of all its images; those of other datasets may begin anew.
        taken = not videos.keys().isdisjoint(found.annotations.videos)
        ahead = max(videos) + 1 - min(found.annotations.videos) if taken else 0
        inside = folder.resolve().relative_to(root)
        for number, video in found.annotations.videos.items():
            videos[number + ahead] = dataclasses.replace(
                video,
                id=number + ahead,
                file_names=tuple(str(inside / name) for name in video.file_names),
            )
            mine = found.annotations.tracks_of(number)
            for track in mine:
                tracks.append(
                    dataclasses.replace(track, id=len(tracks) + 1, video_id=number + ahead)
                )
            shown = {found.annotations.categories[track.category_id] for track in mine}
            unseen = sorted(name for name in shown if split_of[name] == UNSEEN)
            if number in found.faults:
                merged.faults[number + ahead] = found.faults[number]
            elif is_train and unseen:
                merged.faults[number + ahead] = (
                    f"it shows {', '.join(unseen)}, which is {UNSEEN}, and is of {found.name}, "
                    "which only trains"
                )
            elif shown and not is_train and not unseen:
                merged.faults[number + ahead] = (
                    f"it shows only seen classes, and is of {found.name}, which never trains"
                )
    merged.annotations = dataclasses.replace(merged.annotations, tracks=tuple(tracks))
    return merged, root


def fold_splits(categories: dict[int, str], fold: int) -> dict[str, str]:
    """`UNSEEN` for every fourth class in the order of the ids, from `fold` on; others train."""
    return {
        categories[number]: UNSEEN if position % FOLDS == fold - 1 else "train"
        for position, number in enumerate(sorted(categories))
    }


def as_videos(content: Any, path: Path, setting: str) -> dict[str, Any]:
    """The YouTube-VIS form of COCO's instances; entries stay in their order.

    Raises:
        UserError: there are no images, categories or annotations.
    """
    for key in ("images", "categories", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f'{setting}: {path}: no list "{key}" in it; give an instances JSON of '
                "COCO (YouTube-VIS JSON is read by the kind 'folder')",
                setting=setting,
            )
    return {
        "videos": [
            {**entry, "file_names": [entry.get("file_name")], "length": 1}
            if isinstance(entry, dict)
            else entry
            for entry in content["images"]
        ],
        "categories": content["categories"],
        "annotations": [
            {
                **entry,
                "video_id": entry.get("image_id"),
                "segmentations": [entry.get("segmentation")],
                "bboxes": [entry.get("bbox")],
                "areas": [entry.get("area")],
            }
            if isinstance(entry, dict)
            else entry
            for entry in content["annotations"]
        ],
    }


COCO = Form(
    as_videos,
    {
        "videos[": "images[",
        "video_id:": "image_id:",
        "file_names[0]:": "file_name:",
        "segmentations, frame 0: segmentation:": "segmentation:",
        "segmentations, frame 0:": "segmentation,",
        "bboxes[0]:": "bbox:",
        "areas[0]:": "area:",
    },
)
"""COCO's instances JSON."""
