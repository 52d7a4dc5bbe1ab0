"""COCO's images as videos of one frame, with the class folds of Siamese Mask R-CNN.

A fold leaves out every fourth of the 80 classes, in the order of their ids. It is for image →
image (Table 12): an image that shows an unseen class asks once for each of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfshot.benchmarks.annotated import read_annotated
from selfshot.benchmarks.assembly import assemble
from selfshot.benchmarks.folder_corpus import OnMessage
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.split import UNSEEN
from selfshot.config.errors import UserError

FOLDS = 4
CLASSES = 80


def build_coco_one_shot(
    folder: Path, *, annotations: Path, fold: int, on_message: OnMessage, **shared: Any
) -> Benchmark:
    """Write the manifest of one fold of COCO's classes into `folder`.

    Args:
        folder: where the manifest and the images as YouTube-VIS JSON are written.
        annotations: COCO's instances JSON.
        fold: from 1: which of every four classes is unseen.
        on_message: is told what was found.
        **shared: frames (the images' folder), corpus, corpus_labels, seed, height, width,
            num_frames and val_share, as `assemble` takes them.

    Raises:
        UserError: the file is no instances JSON, or as `assemble` says.
    """
    found = read_annotated(annotations, convert=as_videos)
    found.set_aside = [
        (what.replace("videos[", "images["), reason) for what, reason in found.set_aside
    ]
    categories = found.annotations.categories
    if len(categories) != CLASSES:
        on_message(
            f"{found.name}: {len(categories)} classes, and COCO has {CLASSES}; every fourth of "
            "those that are there is unseen"
        )
    side_of = fold_sides(categories, fold)
    return assemble(
        folder,
        found,
        name=f"COCO one-shot, fold {fold}",
        kind="coco_one_shot",
        side_of=side_of,
        on_message=on_message,
        **shared,
    )


def fold_sides(categories: dict[int, str], fold: int) -> dict[str, str]:
    """`UNSEEN` for every fourth class in the order of the ids, from `fold` on; others train."""
    return {
        categories[number]: UNSEEN if position % FOLDS == fold - 1 else "train"
        for position, number in enumerate(sorted(categories))
    }


def as_videos(content: Any, path: Path) -> dict[str, Any]:
    """The YouTube-VIS form of COCO's instances; entries stay in their order.

    Raises:
        UserError: there are no images, categories or annotations.
    """
    for key in ("images", "categories", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f'benchmark.annotations: {path}: no list "{key}" in it; give an instances JSON of '
                "COCO (YouTube-VIS JSON is read by the kind 'folder')"
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
