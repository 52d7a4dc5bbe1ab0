"""A corpus by itself: clips and segments, here and elsewhere, and never a label."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from refusals import refused
from selfshot.benchmarks.corpus import gather_corpus
from selfshot.benchmarks.fingerprint import fingerprint
from selfshot.benchmarks.manifest import Benchmark, load_benchmark, read_corpus
from selfshot.benchmarks.self_shot import build_self_vis
from selfshot.benchmarks.sprites.build import FPS, _encode_h264
from selfshot.benchmarks.yt8m_segments import build_yt8m_segments
from selfshot.data.video import duration_s, sample_frames

CLIP = _encode_h264(np.zeros((7 * FPS, 32, 32, 3), np.uint8) + np.uint8(90))
"""Seven seconds."""


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two source videos of seven seconds, one in a folder."""
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    for name in ("one.mp4", "deep/two.mp4"):
        (tmp_path / "videos" / name).write_bytes(CLIP)
    return tmp_path / "videos"


def build(videos: Path | str, text: str | None = None, **more: Any) -> Benchmark:
    root = videos.parent if isinstance(videos, Path) else more.pop("root")
    path = None
    if text is not None:
        path = root / "segments.csv"
        path.write_text(text)
    settings = {"segments": path, "segment_s": 5.0, "seed": 0, "on_message": print, **more}
    return build_yt8m_segments(root / "out", corpus=str(videos), **settings)


def test_whole_clips(videos: Path) -> None:
    made = build(videos)
    rows = read_corpus(videos.parent / "out")
    assert [(row["clip_id"], row["uri"]) for row in rows] == [
        ("deep_two", "deep/two.mp4"),
        ("one", "one.mp4"),
    ]
    assert all(row["start_s"] is None and row["end_s"] is None for row in rows)
    assert rows[0]["sha256"] == hashlib.sha256(CLIP).hexdigest()
    assert load_benchmark(videos.parent / "out") == made
    assert made.corpus_root == str(videos.resolve()) and made.kind == "yt8m_segments"
    assert made.counts["corpus_clips"] == made.counts["corpus_files"] == 2
    content = (videos.parent / "out" / "corpus.parquet").read_bytes()
    assert made.files == {"corpus.parquet": hashlib.sha256(content).hexdigest()}


def test_segments(videos: Path) -> None:
    made = build(videos, "clip,start_s,end_s\none,0,\none.mp4,1.5,3\ndeep/two,4,\n")
    rows = {row["clip_id"]: row for row in read_corpus(videos.parent / "out")}
    times = {name: (row["start_s"], row["end_s"], row["source_id"]) for name, row in rows.items()}
    # A segment that names no end has five seconds, or what is left of its video.
    assert times == {
        "one-000000000": (0, 5, "one"),
        "one-000001500": (1.5, 3, "one"),
        "deep_two-000004000": (4, pytest.approx(7, abs=0.2), "deep/two"),
    }
    assert made.counts["corpus_clips"] == 3 and made.counts["corpus_sources"] == 2
    assert made.counts["corpus_bytes"] == 2 * len(CLIP), "a file counts once"
    assert set(made.inputs) == {"corpus", "segments"}
    row = rows["one-000001500"]
    frames = sample_frames(
        videos / row["uri"], num_frames=2, height=32, width=32,
        start_s=row["start_s"], end_s=row["end_s"],
    )  # fmt: skip
    assert frames.shape == (2, 32, 32, 3)


def test_a_label_changes_nothing(videos: Path) -> None:
    build(videos, "clip,start_s\none,0\ndeep/two,1\n")
    plain = (videos.parent / "out" / "corpus.parquet").read_bytes()
    made = build(
        videos, "label,clip,rough_label,start_s,class\ndog,one,dog,0,dog\ncat,deep/two,cat,1,\n"
    )
    assert (videos.parent / "out" / "corpus.parquet").read_bytes() == plain
    assert not (videos.parent / "out" / "corpus_labels.csv").exists()
    for word in ("dog", "cat"):
        assert word not in (videos.parent / "out" / "benchmark.json").read_text()
    assert "corpus_labels.csv" not in made.files


def test_a_source_that_is_named(videos: Path) -> None:
    build(videos, "uri,start_s,source\none.mp4,0,film\n")
    (row,) = read_corpus(videos.parent / "out")
    assert row["source_id"] == "film"


def test_dead_links_are_counted(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = build(videos, "clip,start_s\none,0\ngone,0\n")
    assert made.set_aside == (("segment of line 3", "no file gone"),)
    said = capsys.readouterr().out
    assert "1 segments name a file that is not there, and 1 files have no" in said


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
        "clip,start_s\none,9\n",
        "clip,start_s,end_s\none,3,12\n",
        "clip,start_s\none,1\none.mp4,1\n",
        "clip,start_s\n,1\n",
        "clip,start_s\ngone,1\n",
    ],
)
def test_wrong_segments(videos: Path, text: str) -> None:
    with refused():
        build(videos, text)


def test_a_video_that_cannot_be_opened_is_not_checked(videos: Path) -> None:
    (videos / "broken.mp4").write_bytes(b"no video")
    assert duration_s(videos / "broken.mp4") is None
    assert duration_s(videos / "one.mp4") == pytest.approx(7, abs=0.2)
    assert build(videos, "clip,start_s\nbroken,100\n").counts["corpus_clips"] == 1


def test_no_folder_and_no_clip(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("benchmark.corpus"):
        build(tmp_path / "none")
    with refused("benchmark.corpus"):
        build(tmp_path / "empty")


class TestElsewhere:
    """Clips behind an address: listed and hashed alike, but not decoded from there."""

    ADDRESS = "memory://selfshot-test/clips"

    @pytest.fixture(autouse=True)
    def _bucket(self) -> Any:
        filesystem = fsspec.filesystem("memory")
        for name in ("one.mp4", "deep/two.MP4", "notes.txt"):
            filesystem.pipe(f"/selfshot-test/clips/{name}", CLIP)
        yield
        filesystem.rm("/selfshot-test", recursive=True)

    def test_a_bucket(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        made = build(self.ADDRESS, "clip,start_s\none,100\n", root=tmp_path)
        (row,) = read_corpus(tmp_path / "out")
        assert (row["uri"], row["bytes"]) == ("one.mp4", len(CLIP))
        assert row["sha256"] == hashlib.sha256(CLIP).hexdigest()
        assert made.corpus_root == self.ADDRESS and made.counts["corpus_files"] == 2
        assert "the lengths of 1 videos elsewhere are not checked" in capsys.readouterr().out
        with refused("benchmark.corpus"):
            gather_corpus(tmp_path / "out", None, [], print)

    def test_its_digest_follows_it(self) -> None:
        before = fingerprint({}, [self.ADDRESS])
        assert fingerprint({}, [self.ADDRESS]) == before
        fsspec.filesystem("memory").pipe("/selfshot-test/clips/three.mp4", b"more")
        assert fingerprint({}, [self.ADDRESS]) != before

    def test_addresses_that_lead_nowhere(self, tmp_path: Path) -> None:
        with refused("benchmark.corpus"):
            build("odd://clips", root=tmp_path)
        with refused("benchmark.corpus"):
            build("memory://selfshot-none/clips", root=tmp_path)

    def test_a_folder_by_its_address(self, videos: Path) -> None:
        made = build(f"file://{videos}", root=videos.parent)
        assert made.corpus_root == str(videos.resolve())


class TestAsACorpus:
    """An annotated benchmark takes the manifest where it takes a folder of clips."""

    def test_rows_and_root_are_those_of_the_manifest(
        self, videos: Path, world, tmp_path: Path
    ) -> None:
        build(videos, "clip,start_s,source\none,0,dog_0\none,2,\ndeep/two,1,\n")
        labels = tmp_path / "labels.csv"
        labels.write_text("clip,rough_label\none,cat\n")
        folders = [([name], f"{name}_{i}") for name in ("cat", "dog") for i in range(4)]
        settings = world(["cat", "dog"], folders)
        made = build_self_vis(
            tmp_path / "vis",
            extra_annotations=None,
            val_share=0.5,
            **settings | {"corpus": tmp_path / "out", "corpus_labels": labels},
        )
        rows = read_corpus(tmp_path / "vis")
        # The segment of a query's source is left out.
        assert [row["clip_id"] for row in rows] == ["deep_two-000001000", "one-000002000"]
        assert made.corpus_root == str(videos.resolve())
        assert [row["start_s"] for row in rows] == [1, 2]
        assert made.counts["corpus_classes"] == 1 and "corpus_labels" in made.inputs

    def test_clips_that_have_gone(self, videos: Path) -> None:
        build(videos)
        videos.rename(videos.with_name("moved"))
        with refused("benchmark.corpus"):
            gather_corpus(videos.parent / "out", None, [], print)
