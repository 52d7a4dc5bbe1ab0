"""The corpus of an annotated benchmark, as `selfshot corpus build` lists it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusals import refused
from selfshot.benchmarks.corpus import Corpus, gather_corpus
from selfshot.benchmarks.corpus_build import Cutting, build_manifest
from selfshot.benchmarks.corpus_items import Item, of_segments, of_videos
from selfshot.benchmarks.manifest import read_corpus
from selfshot.benchmarks.self_shot import build_self_vis
from selfshot.benchmarks.written import FPS, encode_h264
from selfshot.data.video import duration_s, sample_frames

CLIP = encode_h264(np.zeros((7 * FPS, 32, 32, 3), np.uint8) + np.uint8(90))
"""Seven seconds."""


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two source videos of seven seconds, one in a folder."""
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    for name in ("one.mp4", "deep/two.mp4"):
        (tmp_path / "videos" / name).write_bytes(CLIP)
    return tmp_path / "videos"


def listed(videos: Path, text: str, quarantined: list[tuple[str, str]] | None = None) -> list[Item]:
    path = videos.parent / "segments.csv"
    path.write_text(text)
    return list(of_segments(path, 5.0, videos, [] if quarantined is None else quarantined))


def build(videos: Path, items: Any, **more: Any) -> Path:
    out = videos.parent / "built"
    root = more.pop("root", str(videos))
    build_manifest(items, root, str(out), made_from="a test", on_message=print, **more)
    return out


def gather(corpus: Path, **more: Any) -> Corpus:
    given: dict[str, Any] = {"corpus_labels": None, "sources": (), "files": (), "quarantined": [],
                             "on_message": print}  # fmt: skip
    (corpus.parent / "out").mkdir(exist_ok=True)
    return gather_corpus(corpus, corpus.parent / "out", **{**given, **more})


def test_a_folder_and_its_manifest_are_one_corpus(videos: Path) -> None:
    of_folder = gather(videos)
    rows = read_corpus(videos.parent / "out")
    assert sorted(row["uri"] for row in rows) == ["deep/two.mp4", "one.mp4"]
    assert [path.name for path in (videos.parent / "out").iterdir()] == ["corpus.parquet"]
    assert of_folder.root == str(videos.resolve()) and of_folder.clips == 2
    manifest = build(videos, of_videos(str(videos), []))
    assert gather(manifest) == of_folder
    assert read_corpus(videos.parent / "out") == rows


def test_segments(videos: Path) -> None:
    quarantined: list[tuple[str, str]] = []
    items = listed(
        videos,
        "label,uri,start_s,end_s,source\ndog,one.mp4,0,,\ncat,one.mp4,1.5,3,film\n,gone.mp4,2,,\n",
        quarantined,
    )
    assert quarantined == [("segment of line 4", "no file gone.mp4")]
    assert gather(build(videos, items)).clips == 2
    rows = {row["start_s"]: row for row in read_corpus(videos.parent / "out")}
    assert [(row["end_s"], row["source_id"]) for row in rows.values()] == [(5, "one"), (3, "film")]
    assert "dog" not in str(rows)
    frames = sample_frames(
        videos / rows[1.5]["uri"], num_frames=2, height=32, width=32, start_s=1.5, end_s=3
    )
    assert frames.shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    "text",
    [
        "clip,end_s\none,3\n",
        "start_s\n3\n",
        "clip,start_s\n",
        "clip,start_s\none,-1\n",
        "clip,start_s\none,soon\n",
        "clip,start_s\none,nan\n",
        "clip,start_s\none,\n",
        "clip,start_s,end_s\none,3,-2\n",
        "clip,start_s,end_s\none,3,3\n",
        "clip,start_s\n,1\n",
    ],
)
def test_wrong_segments(videos: Path, text: str) -> None:
    with refused("--segments"):
        listed(videos, text)


def test_lengths(videos: Path) -> None:
    (videos / "broken.mp4").write_bytes(b"no video")
    assert duration_s(videos / "broken.mp4") is None
    assert duration_s(videos / "one.mp4") == pytest.approx(7, abs=0.2)


def test_clips_of_queries_are_left_out(videos: Path, world: Any, tmp_path: Path) -> None:
    text = "clip,start_s,source\none.mp4,0,dog_0\none.mp4,2,\ndeep/two.mp4,1,\n"
    manifest = build(videos, listed(videos, text))
    labels = tmp_path / "labels.csv"
    labels.write_text("clip,rough_label\none,cat\n")
    folders = [([name], f"{name}_{i}") for name in ("cat", "dog") for i in range(4)]
    made = build_self_vis(
        tmp_path / "vis",
        extra_annotations=None,
        val_share=0.5,
        **world(["cat", "dog"], folders) | {"corpus": manifest, "corpus_labels": labels},
    )
    rows = read_corpus(tmp_path / "vis")
    assert sorted((row["uri"], row["start_s"]) for row in rows) == [
        ("deep/two.mp4", 1),
        ("one.mp4", 2),
    ]
    assert made.corpus_root == str(videos.resolve())
    assert made.counts["corpus_clips_of_query_sources"] == 1
    assert made.counts["corpus_classes"] == 1 and "corpus_labels" in made.inputs


def test_what_training_cannot_read(videos: Path) -> None:
    for item, root in (
        (Item("one.mp4", "one", "one", 5, offset=3), str(videos)),
        (Item("s3://bucket/one.mp4", "one", "one", start_s=1.0, end_s=2.0), str(videos)),
        (Item("one.mp4", "one", "one"), "memory://clips"),
    ):
        manifest = build(videos, [item], root=root, cutting=Cutting(hashed=False))
        with refused("benchmark.corpus"):
            gather(manifest)


def test_clips_that_have_gone(videos: Path) -> None:
    manifest = build(videos, of_videos(str(videos), []))
    videos.rename(videos.with_name("moved"))
    with refused("benchmark.corpus"):
        gather(manifest)
