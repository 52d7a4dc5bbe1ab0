"""The builders on real annotations: as YouTube-VIS JSON, and as a DAVIS-style folder of them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfshot.benchmarks.davis import build_davis
from selfshot.benchmarks.folder import build_folder
from selfshot.benchmarks.manifest import Benchmark
from selfshot.benchmarks.split import SPLITS
from selfshot.data.ytvis import Annotations, load_annotations
from selfshot.ops.masks import decode_rle

SOME = ("butterfly", "car", "dog", "fox", "person")
SEEDED = {"seed": 0, "height": 32, "width": 64, "num_frames": 4, "on_message": lambda message: None}


@pytest.fixture(scope="module")
def real(shared: Path) -> Path:
    folder = shared / "data" / "vis_real"
    if not folder.is_dir():
        pytest.skip(f"no real annotations at {folder}")
    return folder


def _settings(real: Path, frames: Path) -> dict:
    return SEEDED | {
        "frames": frames,
        "corpus": real.parent / "corpus_real" / "clips",
        "corpus_labels": real.parent / "corpus_real" / "labels.csv",
        "val_classes": ("butterfly",),
        "test_classes": ("car", "dog"),
    }


def _figures(made: Benchmark) -> dict[str, dict[str, int]]:
    return {
        split: Counter(name for _, name in made.queries[split])
        | {"videos": len(made.videos[split])}
        for split in SPLITS
    }


def test_the_table_counts_what_the_file_holds(real: Path, tmp_path: Path) -> None:
    made = build_folder(
        tmp_path / "out",
        annotations=real / "instances.json",
        **_settings(real, real / "frames"),
    )
    annotations = load_annotations(real / "instances.json")
    used = {video for videos in made.videos.values() for video in videos}
    tracks = [track for track in annotations.tracks if track.video_id in used]
    lengths = [annotations.videos[video].length for video in used]
    assert made.statistics["mean_length"] == pytest.approx(np.mean(lengths))
    assert made.statistics["mean_instances"] == pytest.approx(len(tracks) / len(used))
    kinds = {(track.video_id, track.category_id) for track in tracks}
    assert made.statistics["mean_classes"] == pytest.approx(len(kinds) / len(used))
    assert made.statistics["train_videos"] == len(made.videos["train"])
    assert made.statistics["val_test_videos"] + made.statistics["train_videos"] == len(used)
    # The corpus shows some of the same animals, filmed by others; none of its files is a query's.
    assert made.counts["corpus_clips"] == 385 - made.counts["corpus_clips_of_query_sources"]


def _as_davis(real: Path, annotations: Annotations, root: Path) -> None:
    """Sequences of the videos of some classes, with their objects numbered."""
    wanted = {number for number, name in annotations.categories.items() if name in SOME}
    rows = []
    for number, video in annotations.videos.items():
        tracks = annotations.tracks_of(number)
        if not tracks or any(track.category_id not in wanted for track in tracks):
            continue
        sequence = Path(video.file_names[0]).parent.name
        for kind in ("frames", "masks"):
            (root / kind / sequence).mkdir(parents=True)
        for frame, name in enumerate(video.file_names):
            target = root / "frames" / sequence / Path(name).name
            target.write_bytes((real / "frames" / name).read_bytes())
            pixels = np.zeros((video.height, video.width), np.uint8)
            for place, track in enumerate(tracks, start=1):
                rle = track.segmentations[frame]
                if rle is not None:
                    pixels[decode_rle(rle, video.height, video.width)] = place
            image = Image.fromarray(pixels)
            image.putpalette([level for index in range(256) for level in (index, 90, 255 - index)])
            image.save(root / "masks" / sequence / f"{Path(name).stem}.png")
        for place, track in enumerate(tracks, start=1):
            name = annotations.categories[track.category_id]
            rows.append([sequence, place, name, video.source_id])
    with (root / "classes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["sequence", "object", "class", "source"], *rows])


def test_a_davis_folder_of_the_same_videos_has_their_masks(real: Path, tmp_path: Path) -> None:
    annotations = load_annotations(real / "instances.json")
    _as_davis(real, annotations, tmp_path)
    made = build_davis(
        tmp_path / "out",
        masks=tmp_path / "masks",
        classes=tmp_path / "classes.csv",
        **_settings(real, tmp_path / "frames"),
    )
    written = load_annotations(tmp_path / "out" / "annotations.json")
    by_folder = {
        Path(video.file_names[0]).parent.name: number
        for number, video in annotations.videos.items()
    }
    assert len(written.videos) >= 10 and not made.counts["videos_quarantined"]
    for number, video in written.videos.items():
        original = by_folder[Path(video.file_names[0]).parent.name]
        tracks = annotations.tracks_of(original)
        again = written.tracks_of(number)
        assert len(again) == len(tracks)
        for track, other in zip(again, tracks, strict=True):
            name = written.categories[track.category_id]
            assert name == annotations.categories[other.category_id]
            if len(tracks) == 1:  # Others may hide a part of each other in one image.
                empty = [None if not rle or not area else rle for rle, area in
                         zip(other.segmentations, other.areas, strict=True)]  # fmt: skip
                assert list(track.segmentations) == empty
    figures = _figures(made)
    assert figures["val"]["butterfly"] == 1 and figures["test"]["dog"] >= 1
    sources = {written.videos[video].source_id for video in made.videos["test"]}
    assert not sources & {written.videos[video].source_id for video in made.videos["train"]}
