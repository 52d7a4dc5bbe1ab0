"""Sprites: the same seed gives the same bytes, and what is annotated is what is seen."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refusals import refused
from selfshot.benchmarks.manifest import (
    CORPUS_SCHEMA,
    Benchmark,
    load_benchmark,
    read_corpus,
    read_corpus_labels,
)
from selfshot.benchmarks.sprites import build as sprites
from selfshot.benchmarks.sprites import classes as symbols
from selfshot.benchmarks.sprites import scenes
from selfshot.benchmarks.written import FPS, encode_h264
from selfshot.config.benchmarks import SpritesBenchmark
from selfshot.data.video import probe, sample_frames
from selfshot.data.ytvis import Annotations, load_annotations, resolve_frame
from selfshot.ops.masks import decode_rle

SETTINGS: dict[str, Any] = {
    "seed": 3,
    "height": 32,
    "width": 40,
    "num_frames": 3,
    "train_classes": 6,
    "val_classes": 1,
    "test_classes": 2,
    "train_queries": 1,
    "train_supports": 1,
    "eval_queries": 5,
    "eval_supports": 1,
    "corpus_clips": 13,
    "corpus_seen_classes": 2,
    "multi_shot_share": 0.5,
}


def _one_after_another(render: Callable[[Any], str], units: list[Any]) -> Iterable[str]:
    return map(render, units)


def _build(folder: Path, scratch: Path, **changes: Any) -> Benchmark:
    folder.mkdir(exist_ok=True)
    parallel_map = changes.pop("parallel_map", _one_after_another)
    settings = {**SETTINGS, **changes}
    seed = settings.pop("seed")
    section = SpritesBenchmark(**settings)
    return sprites.build_sprites(folder, scratch, parallel_map, section, seed=seed)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a benchmark folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sprites")
    _build(root / "built", root / "scratch")
    return root / "built"


@pytest.fixture(scope="module")
def benchmark(folder: Path) -> Benchmark:
    return load_benchmark(folder)


@pytest.fixture(scope="module")
def annotations(folder: Path) -> Annotations:
    return load_annotations(folder / "annotations.json")


class TestSameBytes:
    """A benchmark is a function of its settings, however it came about."""

    def test_units_of_another_size_in_another_order(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def backwards(render: Callable[[Any], str], units: list[Any]) -> Iterator[str]:
            assert len(units) > 5
            return map(render, reversed(units))

        monkeypatch.setattr(sprites, "CLIPS_PER_UNIT", 7)
        made = _build(tmp_path / "again", tmp_path / "scratch", parallel_map=backwards)
        assert _digests(tmp_path / "again") == _digests(folder)
        assert made == load_benchmark(folder)

    def test_after_a_kill_it_goes_on(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(render: Callable[[Any], str], units: list[Any]) -> Iterator[str]:
            for unit in units[:4]:
                yield render(unit)
            raise KeyboardInterrupt

        rendered: list[str] = []

        def noted(render: Callable[[Any], str], units: list[Any]) -> Iterator[str]:
            for unit in units:
                if not Path(unit["path"]).exists():
                    rendered.append(unit["path"])
                yield render(unit)

        monkeypatch.setattr(sprites, "CLIPS_PER_UNIT", 9)
        target, scratch = tmp_path / "killed", tmp_path / "scratch"
        with pytest.raises(KeyboardInterrupt):
            _build(target, scratch, parallel_map=killed)
        assert not (target / "benchmark.json").exists()
        done = sorted(scratch.glob("*.json"))
        assert len(done) == 4
        # A unit that died in the middle: no JSON but a part of it, and half a frame.
        done[1].rename(done[1].with_suffix(".tmp"))
        done[1].with_suffix(".tmp").write_text("[{")
        (frame,) = (target / "frames").glob("*_000012/00001.jpg")
        frame.write_bytes(frame.read_bytes()[:50])
        _build(target, scratch, parallel_map=noted)
        assert str(done[1]) in rendered and str(done[0]) not in rendered
        assert _digests(target) == _digests(folder)

    def test_another_seed_is_another_benchmark(self, folder: Path, tmp_path: Path) -> None:
        _build(tmp_path / "other", tmp_path / "scratch", seed=4)
        ours, theirs = _digests(folder), _digests(tmp_path / "other")
        shared = [name for name in ours if name.endswith((".jpg", ".mp4")) and name in theirs]
        assert len(shared) > 50
        assert not [name for name in shared if ours[name] == theirs[name]]


class TestManifest:
    """Who is seen, who is asked, and who may help."""

    def test_round_trip(self, folder: Path, benchmark: Benchmark, tmp_path: Path) -> None:
        benchmark.save(tmp_path)
        assert load_benchmark(tmp_path) == benchmark
        assert (tmp_path / "benchmark.json").read_bytes() == (
            folder / "benchmark.json"
        ).read_bytes()

    def test_no_class_has_two_sides(self, benchmark: Benchmark) -> None:
        dealt = [name for names in benchmark.classes.values() for name in names]
        assert [len(benchmark.classes[split]) for split in ("train", "val", "test")] == [6, 1, 2]
        assert len(set(dealt)) == len(dealt) and set(dealt) <= set(symbols.GLYPHS)

    def test_queries_and_supports(self, benchmark: Benchmark, annotations: Annotations) -> None:
        seen_ids: list[int] = []
        for split, names in benchmark.classes.items():
            asked = [name for _, name in benchmark.queries[split]]
            expected = SETTINGS["train_queries" if split == "train" else "eval_queries"]
            # What could not be seen in any frame is quarantined, never lost without a word.
            assert len(asked) + len(benchmark.quarantined) >= expected * len(names)
            assert set(asked) == set(names) == set(benchmark.supports[split])
            seen_ids += [video for video, _ in benchmark.queries[split]]
            seen_ids += [v for videos in benchmark.supports[split].values() for v in videos]
        assert len(seen_ids) == len(set(seen_ids)), "no video has two roles"
        assert len(seen_ids) + len(benchmark.quarantined) == len(annotations.videos)

    def test_pairs_hashes_and_table_6(
        self,
        folder: Path,
        benchmark: Benchmark,
        annotations: Annotations,
        check_promises: Callable[[Benchmark, Annotations], None],
    ) -> None:
        check_promises(benchmark, annotations)
        assert benchmark.pairs["test"] and benchmark.videos["test"]
        digests = _digests(folder)
        names = ("annotations.json", "corpus.parquet", "corpus_labels.csv")
        assert benchmark.files == {name: digests[name] for name in names}
        assert benchmark.inputs == {}, "it is made of nothing"
        used = {video for videos in benchmark.videos.values() for video in videos}
        lengths = [annotations.videos[video].length for video in used]
        assert benchmark.statistics["mean_length"] == sum(lengths) / len(lengths)
        assert benchmark.statistics["train_classes"] == 6
        assert benchmark.statistics["val_test_classes"] == 3

    def test_a_query_and_a_support_show_their_class(
        self, benchmark: Benchmark, annotations: Annotations
    ) -> None:
        pairs = [pair for pairs in benchmark.queries.values() for pair in pairs]
        for by_class in benchmark.supports.values():
            pairs += [(video, name) for name, videos in by_class.items() for video in videos]
        for video, name in pairs:
            mine = [
                track
                for track in annotations.tracks_of(video)
                if annotations.categories[track.category_id] == name
            ]
            assert 1 <= len(mine) <= 2
            assert any(rle is not None for track in mine for rle in track.segmentations)

    def test_training_videos_show_no_unseen_class(
        self, benchmark: Benchmark, annotations: Annotations
    ) -> None:
        videos = [video for video, _ in benchmark.queries["train"]]
        videos += [v for names in benchmark.supports["train"].values() for v in names]
        shown = {
            annotations.categories[track.category_id]
            for video in videos
            for track in annotations.tracks_of(video)
        }
        assert shown <= set(benchmark.classes["train"])

    def test_unseen_queries_share_only_their_class_with_the_corpus(
        self, folder: Path, benchmark: Benchmark, annotations: Annotations
    ) -> None:
        in_corpus = set(read_corpus_labels(folder).values())
        distractors = [
            annotations.categories[track.category_id]
            for split in ("val", "test")
            for video, name in benchmark.queries[split]
            for track in annotations.tracks_of(video)
            if annotations.categories[track.category_id] != name
        ]
        assert len(distractors) > 25
        assert sum(name in in_corpus for name in distractors) < 0.25 * len(distractors)

    def test_too_many_classes(self, tmp_path: Path) -> None:
        with refused("benchmark"):
            _build(tmp_path / "never", tmp_path / "scratch", train_classes=len(symbols.GLYPHS))
        everything = sprites.choose_classes(0, {"train": len(symbols.GLYPHS), "val": 0})
        assert set(everything["train"]) == set(symbols.GLYPHS) and everything["val"] == ()

    def test_every_seen_class_in_the_corpus(self, tmp_path: Path) -> None:
        made = _build(tmp_path / "all", tmp_path / "scratch", corpus_seen_classes=6)
        assert made.counts["corpus_classes"] == 9


class TestAnnotations:
    """Masks, boxes and areas of the file agree with each other and with the frames."""

    def test_every_frame_exists(self, folder: Path, annotations: Annotations) -> None:
        for video in annotations.videos.values():
            assert video.length == len(video.file_names) == SETTINGS["num_frames"]
            for name in video.file_names:
                with Image.open(resolve_frame(folder / "frames", name)) as image:
                    assert image.size == (video.width, video.height) == (40, 32)

    def test_boxes_and_areas_are_those_of_the_masks(self, annotations: Annotations) -> None:
        for track in annotations.tracks:
            for rle, box, area in zip(track.segmentations, track.boxes, track.areas, strict=True):
                if rle is None:
                    assert box is None and area is None
                    continue
                mask = decode_rle(rle, 32, 40)
                rows, columns = np.nonzero(mask)
                assert area == len(rows) > 0
                assert box == (
                    columns.min(),
                    rows.min(),
                    columns.max() + 1 - columns.min(),
                    rows.max() + 1 - rows.min(),
                )

    def test_a_pixel_has_one_owner(self, annotations: Annotations) -> None:
        for video in annotations.videos.values():
            owners = np.zeros((video.length, 32, 40), int)
            for track in annotations.tracks_of(video.id):
                for frame, rle in enumerate(track.segmentations):
                    if rle is not None:
                        owners[frame] += decode_rle(rle, 32, 40)
            assert owners.max() <= 1

    def test_ids_are_in_order(self, annotations: Annotations) -> None:
        assert [track.id for track in annotations.tracks] == list(
            range(1, len(annotations.tracks) + 1)
        )


class TestCorpus:
    """Unlabelled clips, as a stranger would find them."""

    def test_rows(self, folder: Path, benchmark: Benchmark) -> None:
        rows = read_corpus(folder)
        assert [set(row) for row in rows] == [set(CORPUS_SCHEMA.names)] * 13
        assert [row["clip_id"] for row in rows] == sorted(row["clip_id"] for row in rows)
        files = {path.name: path.read_bytes() for path in (folder / "corpus").iterdir()}
        assert {row["uri"] for row in rows} == set(files)
        for row in rows:
            assert row["bytes"] == len(files[row["uri"]])
            assert row["sha256"] == hashlib.sha256(files[row["uri"]]).hexdigest()
            assert row["start_s"] is None and row["end_s"] is None
        assert benchmark.counts["corpus_clips"] == 13

    def test_labels_are_nowhere_but_in_their_own_file(
        self, folder: Path, benchmark: Benchmark
    ) -> None:
        labels = read_corpus_labels(folder)
        rows = read_corpus(folder)
        assert set(labels) == {row["clip_id"] for row in rows}
        text = " ".join(str(value) for row in rows for value in row.values())
        assert not [name for name in symbols.GLYPHS if name in text]
        for path in ("benchmark.json", "annotations.json"):
            assert "clip_0" not in (folder / path).read_text()
        # The five classes of the corpus have as many clips each as 13 allow.
        counts = sorted(list(labels.values()).count(name) for name in set(labels.values()))
        assert counts == [2, 2, 3, 3, 3]
        seen = benchmark.classes["train"][:2]
        assert set(labels.values()) == {
            *seen,
            *benchmark.classes["val"],
            *benchmark.classes["test"],
        }

    def test_the_number_of_a_clip_is_no_label(self, folder: Path) -> None:
        labels = [name for _, name in sorted(read_corpus_labels(folder).items())]
        assert labels != labels[:5] * 2 + labels[:3], "no class recurs at a fixed distance"
        assert len(list(itertools.groupby(labels))) > 5, "and none comes in one block"

    def test_every_clip_decodes(self, folder: Path, benchmark: Benchmark) -> None:
        lengths = []
        for path in sorted((folder / "corpus").iterdir()):
            facts = probe(path)
            assert (facts.height, facts.width, facts.fps) == (32, 40, FPS)
            lengths.append(facts.num_frames)
            frames = sample_frames(path, num_frames=5, height=24, width=64)
            assert frames.shape == (5, 24, 64, 3) and frames.std() > 5
        assert set(lengths) <= {3, 8, 12, 16}
        assert sum(n > 3 for n in lengths) == benchmark.counts["corpus_multi_shot"] > 0

    def test_what_is_encoded_comes_back(self, tmp_path: Path) -> None:
        ramp = np.linspace(0, 1, 32 * 64).reshape(32, 64, 1)
        colours = np.array([[230, 40, 40], [40, 230, 40], [40, 40, 230], [220, 200, 30]])
        frames = (ramp * colours[:, None, None]).astype(np.uint8)
        path = tmp_path / "colours.mp4"
        path.write_bytes(encode_h264(frames))
        back = sample_frames(path, num_frames=4, height=32, width=64)
        assert np.abs(back.astype(int) - frames).mean() < 6

    def test_encoding_depends_on_nothing_but_the_frames(self) -> None:
        rng = np.random.default_rng(5)
        objects = [("cat", 0.4), ("sun", 0.3)]
        pieces = [scenes.shot(rng, objects, num_frames=4, height=64, width=64) for _ in range(3)]
        frames = np.concatenate([piece.frames for piece in pieces])
        encoded = set()
        for k in range(8):
            # What memory held before must not show.
            _ = [rng.integers(0, 255, (50 + k, 64, 64, 3), np.uint8) for _ in range(3)]
            encoded.add(encode_h264(frames))
        assert len(encoded) == 1


def test_annotations_json_is_plain(folder: Path) -> None:
    document = json.loads((folder / "annotations.json").read_text())
    assert set(document) == {"info", "categories", "videos", "annotations"}
    assert str(folder) not in json.dumps(document)
