"""Clips that are composed of photos: their masks are exact, and what may not be in them is not."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from drawn_photos import Shape, colour, nearest_colours, pixels_like, write_photos
from selfshot.benchmarks.annotated import read_annotated
from selfshot.benchmarks.coco import COCO
from selfshot.config.benchmarks import SceneConfig
from selfshot.data.clips import ClipReader
from selfshot.data.scenes import MIN_VISIBLE, Scene, SceneComposer, SceneReader

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
COLOURS = {name: colour(place / len(CLASSES)) for place, name in enumerate(CLASSES)}
HEIGHT, WIDTH, FRAMES = 61, 97, 5
PLAIN: dict[str, Any] = {"light": 0.0, "blur": 0.0, "noise": 0.0}
"""What leaves colours as they are."""

ALONE: dict[str, Any] = {**PLAIN, "pasted_target": 0.0, "distractors": (0, 0)}

Photos = Mapping[str, tuple[int, int, Sequence[Shape]]]


def shape(name: str, *box: int, **more: Any) -> Shape:
    left, top, across, down = box
    return Shape(name, (left, top, across, down), COLOURS[name], **more)


DOZEN: Photos = {
    "a1.jpg": (101, 149, [shape("ant", 50, 30, 43, 37)]),
    "a2.jpg": (103, 137, [shape("ant", 40, 25, 37, 51, form="box")]),
    "b1.jpg": (97, 151, [shape("bee", 60, 20, 47, 53)]),
    "b2.jpg": (113, 127, [shape("bee", 30, 40, 53, 29, form="box")]),
    "c1.jpg": (89, 139, [shape("cat", 45, 25, 41, 31)]),
    "c2.jpg": (107, 131, [shape("cat", 50, 35, 29, 43)]),
    "d1.jpg": (101, 157, [shape("dog", 60, 30, 31, 47)]),
    "d2.jpg": (109, 149, [shape("dog", 70, 45, 59, 23, form="box")]),
    # An elk behind a fox, a fox of which the photo's border cuts a part, and two ants.
    "e1.jpg": (101, 149, [shape("elk", 30, 20, 67, 53), shape("fox", 70, 50, 37, 29)]),
    "e2.jpg": (103, 151, [shape("elk", 20, 30, 53, 47), shape("ant", 95, 20, 31, 31)]),
    "f1.jpg": (101, 149, [shape("fox", 0, 40, 41, 37)]),
    "f2.jpg": (107, 139, [shape("ant", 15, 20, 37, 41), shape("ant", 75, 50, 43, 31)]),
}


def reader_of(root: Path, photos: Photos, **sizes: int) -> ClipReader:
    path = write_photos(root, photos, CLASSES)
    annotations = read_annotated(path, "annotations", COCO).annotations
    sizes = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES} | sizes
    return ClipReader(annotations, root / "images", **sizes)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ClipReader:
    return reader_of(tmp_path_factory.mktemp("photos") / "dozen", DOZEN)


def composer_of(reader: ClipReader, **changes: Any) -> SceneComposer:
    others = changes.pop("others", sorted(reader.annotations.videos))
    min_object = changes.pop("min_object", 0.015)
    return SceneComposer(reader, SceneConfig(**changes), others=others, min_object=min_object)


def video_of(reader: ClipReader, file_name: str) -> int:
    (number,) = (n for n, v in reader.annotations.videos.items() if v.file_names == (file_name,))
    return number


def category(reader: ClipReader, name: str) -> int:
    return {known: i for i, known in reader.annotations.categories.items()}[name]


def draw(
    composer: SceneComposer,
    how: str,
    file_name: str,
    name: str,
    seed: int,
    num_frames: int = FRAMES,
) -> Scene:
    reader = composer.reader
    rng = np.random.default_rng([3, seed])
    made: Scene = getattr(composer, how)(
        rng, video_of(reader, file_name), category(reader, name), num_frames
    )
    return made


def names_of(reader: ClipReader, scene: Scene) -> list[str]:
    return [reader.annotations.categories[number] for number in scene.classes]


def check_labels(reader: ClipReader, scene: Scene) -> dict[str, int]:
    """Each class's labels lie on its colour and nowhere else; returns pixels of each class.

    What is next to an edge is of two colours, and may look like a third one.
    """
    names = np.array(["", *names_of(reader, scene)])
    shown = dict.fromkeys(names[1:].tolist(), 0)
    for frame, labels in zip(scene.frames, scene.labels, strict=True):
        nearest = nearest_colours(frame, list(COLOURS.values()))
        edges = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
        assert edges.mean() < 0.5
        for name in shown:
            own = np.isin(labels, np.flatnonzero(names == name))
            coloured = nearest == 1 + CLASSES.index(name)
            shown[name] += int(own.sum())
            assert np.array_equal(own[~edges], coloured[~edges]), name
            if own.sum() > 400:
                assert coloured.sum() == pytest.approx(own.sum(), rel=0.08), name
    return shown


class TestMasks:
    """Colours say of every pixel what it shows."""

    @pytest.mark.parametrize("how", ["query", "support"])
    @pytest.mark.parametrize("file_name", ["a1.jpg", "a2.jpg"])
    def test_they_follow_the_object_through_every_frame(
        self, reader: ClipReader, how: str, file_name: str
    ) -> None:
        composer = composer_of(reader, **ALONE)
        for seed in range(11):
            scene = draw(composer, how, file_name, "ant", seed)
            assert scene.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
            assert scene.labels.shape == (FRAMES, HEIGHT, WIDTH)
            assert scene.frames.dtype == scene.labels.dtype == np.uint8
            shown = check_labels(reader, scene)
            assert shown["ant"] > 0.02 * scene.labels.size

    def test_they_follow_an_object_that_is_pasted(self, reader: ClipReader) -> None:
        composer = composer_of(reader, **ALONE | {"pasted_target": 1.0})
        elsewhere = 0
        for seed in range(17):
            scene = draw(composer, "query", "a1.jpg", "ant", seed)
            names = names_of(reader, scene)
            elsewhere += len(names) > 1
            assert names.count("ant") == 1
            assert check_labels(reader, scene)["ant"] > 0
        assert elsewhere > 5, "most photos show something else as well"

    def test_what_is_pasted_hides_what_is_below(self, reader: ClipReader) -> None:
        composer = composer_of(
            reader, **PLAIN, pasted_target=0.0, distractors=(3, 3), object_side=(0.6, 0.9)
        )
        alone = composer_of(reader, **ALONE)
        hidden = 0
        for seed in range(13):
            scene = draw(composer, "query", "a1.jpg", "ant", seed)
            assert len(scene.classes) == 4
            shown = check_labels(reader, scene)["ant"]
            # Light, noise and the objects are drawn after the camera's path.
            before = draw(alone, "query", "a1.jpg", "ant", seed)
            hidden += shown < 0.9 * (before.labels == 1).sum()
        assert hidden > 3, "distractors cover the object in some clips"

    def test_objects_that_overlap_in_the_photo(self, reader: ClipReader) -> None:
        composer = composer_of(reader, **ALONE)
        for seed in range(7):
            scene = draw(composer, "query", "e1.jpg", "elk", seed)
            assert sorted(names_of(reader, scene)) == ["elk", "fox"]
            shown = check_labels(reader, scene)
            assert shown["elk"] > 0 and shown["fox"] > 0

    def test_they_follow_an_object_that_the_border_cuts(self, reader: ClipReader) -> None:
        composer = composer_of(reader, **ALONE)
        for seed in range(17):
            scene = draw(composer, "query", "f1.jpg", "fox", seed)
            assert check_labels(reader, scene)["fox"] > 0

    def test_light_blur_and_noise_change_no_mask(self, reader: ClipReader) -> None:
        drawn = {
            name: draw(composer_of(reader, **PLAIN | changes), "query", "e2.jpg", "elk", 4)
            for name, changes in {
                "plain": {},
                "light": {"light": 0.3},
                "blur": {"blur": 1.0},
                "noise": {"noise": 9.0},
            }.items()
        }
        plain = drawn.pop("plain")
        assert plain.labels.any()
        for scene in drawn.values():
            assert np.array_equal(scene.labels, plain.labels)
            assert not np.array_equal(scene.frames, plain.frames)
        noise = drawn["noise"].frames.astype(int) - plain.frames
        inside = (plain.frames > 50) & (plain.frames < 205)
        assert abs(noise[inside].mean()) < 1 and noise[inside].std() < 10

    def test_light_is_one_rising_curve_a_frame_and_channel(self, reader: ClipReader) -> None:
        plain, lit = (
            draw(composer_of(reader, **PLAIN | {"light": light}), "query", "e2.jpg", "elk", 4)
            for light in (0.0, 0.4)
        )
        for t in range(FRAMES):
            for channel in range(3):
                before, after = plain.frames[t, ..., channel], lit.frames[t, ..., channel]
                levels = [set(after[before == value].tolist()) for value in np.unique(before)]
                assert all(len(level) == 1 for level in levels)
                assert (np.diff([level.pop() for level in levels]) >= 0).all()


class TestDraws:
    """What a clip depends on, and what it shows."""

    @staticmethod
    def _digest(scene: Scene) -> str:
        parts = scene.frames.tobytes(), scene.labels.tobytes(), repr(scene.classes).encode()
        return hashlib.sha256(b"|".join(parts)).hexdigest()

    @pytest.mark.parametrize("how", ["query", "support"])
    def test_the_seed_alone_decides(self, reader: ClipReader, how: str) -> None:
        clips = [
            self._digest(draw(composer_of(reader), how, "e2.jpg", "elk", seed))
            for seed in (0, 1, 2, 0, 1, 2)
        ]
        assert clips[:3] == clips[3:] and len(set(clips)) == 3

    def test_frames_differ_and_no_clip_is_still(self, reader: ClipReader) -> None:
        for seed in range(5):
            frames = draw(composer_of(reader, **ALONE), "query", "a1.jpg", "ant", seed).frames
            for before, after in itertools.pairwise(frames):
                assert not np.array_equal(before, after)

    def test_clips_are_mirrored_as_often_as_not(self, tmp_path: Path) -> None:
        """A photo whose left half is of another colour than its right one."""
        photos: Photos = {
            "a.jpg": (71, 103, [shape("ant", 10, 20, 37, 31), shape("cat", 57, 20, 37, 31)])
        }
        reader = reader_of(tmp_path / "one", photos)
        still = {"turn": 0.0, "tilt": 0.0, "zoom": (1.0, 1.0), "travel": 0.0}
        composer = composer_of(reader, **ALONE | still)
        ant_is_left = []
        for seed in range(40):
            scene = draw(composer, "query", "a.jpg", "ant", seed)
            columns = [np.nonzero(scene.labels[0] == number)[1].mean() for number in (1, 2)]
            ant_is_left.append(
                columns[names_of(reader, scene).index("ant")]
                < columns[names_of(reader, scene).index("cat")]
            )
        assert 8 <= sum(ant_is_left) <= 32

    @pytest.mark.parametrize("file_name", ["a1.jpg", "f2.jpg"])
    def test_a_query_shows_its_class_in_half_of_its_frames(
        self, reader: ClipReader, file_name: str
    ) -> None:
        composer = composer_of(reader)
        number = category(reader, "ant")
        for seed in range(60):
            scene = draw(composer, "query", file_name, "ant", seed)
            masks, _ = scene.masks_of(number)
            shown = masks.any(0).sum((1, 2)) >= MIN_VISIBLE * HEIGHT * WIDTH
            assert shown.sum() >= FRAMES / 2

    def test_a_query_that_is_hidden_by_whatever_is_pasted_shows_its_class_at_last(
        self, tmp_path: Path
    ) -> None:
        """Where distractors always cover everything, the last try has none."""
        corner = shape("ant", 10, 10, 29, 23)
        photos: Photos = {"a.jpg": (151, 307, [corner]), "b.jpg": DOZEN["b1.jpg"]}
        reader = reader_of(tmp_path / "x", photos)
        composer = composer_of(
            reader, zoom=(0.4, 0.4), distractors=(7, 7), object_side=(5.0, 5.0), enlarged=50.0,
            object_travel=0.0, pasted_target=0.0,
        )  # fmt: skip
        number, without = category(reader, "ant"), 0
        for seed in range(7):
            scene = draw(composer, "query", "a.jpg", "ant", seed)
            without += len(scene.classes) == 1
            masks, _ = scene.masks_of(number)
            shown = masks.any(0).sum((1, 2)) >= MIN_VISIBLE * HEIGHT * WIDTH
            assert shown.sum() >= FRAMES / 2
        assert without > 0, "a clip needed its last try"

    def test_a_support_shows_its_object_in_every_frame(self, reader: ClipReader) -> None:
        composer = composer_of(reader)
        for seed in range(20):
            scene = draw(composer, "support", "e2.jpg", "ant", seed)
            number = names_of(reader, scene).index("ant") + 1
            shares = (scene.labels == number).mean((1, 2))
            assert (shares > 0.05).all(), "it is looked at from near"

    def test_supports_hold_nothing_that_is_pasted(self, reader: ClipReader) -> None:
        composer = composer_of(reader, **PLAIN, distractors=(3, 3), pasted_target=1.0)
        for seed in range(12):
            scene = draw(composer, "support", "a1.jpg", "ant", seed)
            assert names_of(reader, scene) == ["ant"]
            for name in set(CLASSES) - {"ant"}:
                assert not pixels_like(scene.frames, COLOURS[name], 60).any()

    def test_distractors_are_of_other_classes_each_as_often(self, reader: ClipReader) -> None:
        composer = composer_of(reader, distractors=(2, 2), pasted_target=0.0, **PLAIN)
        pasted: list[str] = []
        for seed in range(110):
            names = names_of(reader, draw(composer, "query", "a1.jpg", "ant", seed, 1))
            if len(names) > 1:
                assert names[0] == "ant" and len(names) == 3
                pasted += names[1:]
        counts = {name: pasted.count(name) for name in CLASSES}
        assert counts.pop("ant") == 0
        # Four photos show ants and one a fox, and each class comes as often as another.
        expected = len(pasted) / len(counts)
        assert all(0.55 * expected < count < 1.6 * expected for count in counts.values()), counts

    def test_no_second_object_of_the_target_s_class_where_it_is_pasted(
        self, reader: ClipReader
    ) -> None:
        composer = composer_of(reader, distractors=(2, 3), pasted_target=1.0, **PLAIN)
        away = 0
        for seed in range(60):
            names = names_of(reader, draw(composer, "query", "a1.jpg", "ant", seed, 2))
            assert names.count("ant") == 1
            away += names[0] != "ant"
        assert away > 40, "it was pasted into other photos"

    def test_the_number_of_distractors(self, reader: ClipReader) -> None:
        composer = composer_of(reader, distractors=(1, 3), pasted_target=0.0, **PLAIN)
        numbers = [
            len(draw(composer, "query", "a1.jpg", "ant", seed, 2).classes) - 1 for seed in range(60)
        ]
        assert {1, 2, 3} <= set(numbers) <= {0, 1, 2, 3}
        assert numbers.count(0) <= 3, "none is pasted at the last try only"


class TestPool:
    """What may be pasted."""

    def _pasted(self, composer: SceneComposer) -> dict[str, list[str]]:
        annotations = composer.reader.annotations
        return {
            annotations.categories[number]: [
                annotations.videos[video].file_names[0] for video, _ in objects
            ]
            for number, objects in composer.pool.items()
        }

    def test_it_holds_every_whole_object_of_the_others(self, reader: ClipReader) -> None:
        assert self._pasted(composer_of(reader)) == {
            "ant": ["a1.jpg", "a2.jpg", "e2.jpg", "f2.jpg", "f2.jpg"],
            "bee": ["b1.jpg", "b2.jpg"],
            "cat": ["c1.jpg", "c2.jpg"],
            "dog": ["d1.jpg", "d2.jpg"],
            "elk": ["e1.jpg", "e2.jpg"],
            "fox": ["e1.jpg"],
        }

    def test_nothing_of_another_photo_than_the_given_ones(self, reader: ClipReader) -> None:
        mine = [video_of(reader, name) for name in ("a1.jpg", "b1.jpg", "c1.jpg")]
        composer = composer_of(reader, **PLAIN, others=mine, pasted_target=0.5)
        assert set(self._pasted(composer)) == {"ant", "bee", "cat"}
        for seed in range(30):
            scene = draw(composer, "query", "d1.jpg", "dog", seed, 2)
            assert set(names_of(reader, scene)) <= {"ant", "bee", "cat", "dog"}
            for name in ("elk", "fox"):
                assert not pixels_like(scene.frames, COLOURS[name], 60).any()

    def test_without_others_a_clip_is_of_its_photo_alone(self, reader: ClipReader) -> None:
        composer = composer_of(reader, others=[], pasted_target=1.0)
        assert composer.pool == {}
        assert names_of(reader, draw(composer, "query", "d1.jpg", "dog", 0)) == ["dog"]

    @pytest.mark.parametrize("border", ["left", "top", "right", "bottom"])
    @pytest.mark.parametrize(("gap", "is_whole"), [(0, False), (1, False), (2, True), (7, True)])
    def test_what_the_border_cuts_is_never_pasted(
        self, tmp_path: Path, border: str, gap: int, is_whole: bool
    ) -> None:
        height, width, across, down = 71, 103, 31, 23
        left = {"left": gap, "right": width - across - gap}.get(border, 40)
        top = {"top": gap, "bottom": height - down - gap}.get(border, 24)
        box = shape("ant", left, top, across, down, form="box")
        reader = reader_of(
            tmp_path / "x", {"a.jpg": (height, width, [box]), "b.jpg": DOZEN["b1.jpg"]}
        )
        composer = composer_of(reader, **PLAIN, pasted_target=1.0)
        assert ("ant" in self._pasted(composer)) == is_whole
        firsts = {
            names_of(reader, draw(composer, "query", "a.jpg", "ant", seed, 2))[0]
            for seed in range(9)
        }
        assert ("bee" in firsts) == is_whole, "the photo that it is pasted into"

    def test_small_objects_are_neither_targets_nor_pasted(self, tmp_path: Path) -> None:
        small, large = shape("ant", 10, 10, 5, 7, form="box"), shape("ant", 40, 30, 31, 23)
        photos: Photos = {
            "a.jpg": (71, 103, [small, large]),
            "b.jpg": (71, 103, [shape("bee", 60, 40, 5, 7, form="box")]),
        }
        reader = reader_of(tmp_path / "x", photos)
        ant, bee = category(reader, "ant"), category(reader, "bee")
        share = 35 / (71 * 103)
        strict, lenient = (composer_of(reader, min_object=share * by) for by in (1.01, 0.99))
        assert (len(strict.pool[ant]), len(lenient.pool[ant])) == (1, 2)
        assert bee not in strict.pool and len(lenient.pool[bee]) == 1
        # The large one is looked at, in every clip.
        for seed in range(8):
            scene = draw(strict, "support", "a.jpg", "ant", seed, 2)
            assert (scene.labels == 2).mean() > 0.05


class TestOddPhotos:
    """Sizes and numbers that photos have."""

    @pytest.mark.parametrize(
        "size", [(211, 37), (37, 211), (5, 7), (2, 3), (1, 1), (1, 61), (307, 409)]
    )
    def test_of_any_size(self, tmp_path: Path, size: tuple[int, int]) -> None:
        height, width = size
        whole = shape("ant", 0, 0, width, height, form="box")
        photos: Photos = {"a.jpg": (height, width, [whole]), "b.jpg": DOZEN["b1.jpg"]}
        reader = reader_of(tmp_path / "x", photos)
        composer = composer_of(reader)
        for seed in range(3):
            for how in ("query", "support"):
                scene = draw(composer, how, "a.jpg", "ant", seed)
                assert scene.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
                assert (scene.labels == 1).mean() > 0.05
            rng = np.random.default_rng(seed)
            assert composer.picture(rng, video_of(reader, "a.jpg")).labels.any()

    def test_a_tall_photo_is_seen_in_its_proportions(self, tmp_path: Path) -> None:
        """A disc stays as broad as it is high, in a photo of any shape."""
        photos: Photos = {
            "a.jpg": (307, 101, [shape("ant", 30, 120, 41, 41)]),
            "b.jpg": (101, 307, [shape("ant", 120, 30, 41, 41)]),
        }
        reader = reader_of(tmp_path / "x", photos)
        composer = composer_of(reader, **ALONE, turn=0.0, tilt=0.0)
        whole = 0
        for file_name in photos:
            scene = draw(composer, "support", file_name, "ant", 0)
            for labels in scene.labels:
                rows, columns = np.nonzero(labels)
                whole += (
                    rows.min() > 0
                    and columns.min() > 0
                    and rows.max() < HEIGHT - 1
                    and columns.max() < WIDTH - 1
                )
                assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)
        assert whole == 2 * FRAMES

    def test_with_three_hundred_objects(self, tmp_path: Path) -> None:
        dots = [
            shape("bee", 9 * (i % 20) + 4, 9 * (i // 20) + 4, 5 + (i > 7), 5, form="box")
            for i in range(300)
        ]
        photos: Photos = {"a.jpg": (151, 199, dots), "b.jpg": DOZEN["a1.jpg"]}
        reader = reader_of(tmp_path / "x", photos)
        composer = composer_of(reader, **PLAIN, min_object=0.0005, pasted_target=0.0)
        for seed in range(3):
            scene = draw(composer, "query", "a.jpg", "bee", seed, 2)
            assert scene.labels.any()
            # Of more objects than a mask has numbers for, the smallest are background.
            bee = 1 + CLASSES.index("bee")
            for frame, labels in zip(scene.frames, scene.labels, strict=True):
                numbers = np.array([0, *scene.classes])[labels]
                nearest = nearest_colours(frame, list(COLOURS.values()))
                labelled = numbers == category(reader, "bee")
                assert (labelled & (nearest == bee)).sum() > 0.75 * labelled.sum() > 0

    def test_without_an_object(self, tmp_path: Path) -> None:
        photos: Photos = {"a.jpg": (71, 103, []), "b.jpg": DOZEN["b1.jpg"]}
        reader = reader_of(tmp_path / "x", photos)
        composer = composer_of(reader, **PLAIN, distractors=(1, 1))
        empty = video_of(reader, "a.jpg")
        scene = composer.picture(np.random.default_rng(0), empty)
        assert names_of(reader, scene) == ["bee"]
        assert scene.tracks(8).masks.shape[1:] == (1, -(-HEIGHT // 8), -(-WIDTH // 8))
        # It is a ground for the objects of others.
        pasted = [
            names_of(reader, draw(composer_of(reader, **ALONE | {"pasted_target": 1.0}), "query",
                                  "b.jpg", "bee", seed, 2))
            for seed in range(5)
        ]  # fmt: skip
        assert pasted == [["bee"]] * 5

    def test_of_crowds_nothing_is_a_target_or_pasted(self, tmp_path: Path) -> None:
        crowd = shape("ant", 10, 10, 41, 37, crowd=True)
        photos: Photos = {
            "a.jpg": (71, 103, [crowd, shape("bee", 60, 30, 29, 23)]),
            "b.jpg": DOZEN["b1.jpg"],
            "c.jpg": (71, 103, [shape("ant", 50, 20, 31, 29)]),
        }
        reader = reader_of(tmp_path / "x", photos)
        composer = composer_of(reader, **PLAIN, distractors=(2, 2), pasted_target=1.0)
        ant, first = category(reader, "ant"), video_of(reader, "a.jpg")
        assert pasted_from(composer, ant) == {video_of(reader, "c.jpg")}
        scene = composer.support(np.random.default_rng(0), first, category(reader, "bee"), 3)
        assert names_of(reader, scene) == ["bee"]
        # An ant is not pasted where ants are, marked one by one or not.
        for seed in range(12):
            scene = draw(composer, "query", "c.jpg", "ant", seed, 2)
            ants = pixels_like(scene.frames, COLOURS["ant"], 60)
            own = np.isin(scene.labels, np.flatnonzero(np.array([0, *scene.classes]) == ant))
            assert (ants & ~own).sum() <= 0.1 * max(own.sum(), 50)


def pasted_from(composer: SceneComposer, number: int) -> set[int]:
    return {video for video, _ in composer.pool.get(number, [])}


class TestScene:
    """Masks and boxes of the labels."""

    LABELS = np.zeros((3, 11, 13), np.uint8)
    LABELS[0, 2:5, 1:8] = 1
    LABELS[1, 4:9, 6:13] = 1
    LABELS[1, 0:3, 0:2] = 3
    LABELS[2, 5:7, 3:4] = 2
    SCENE = Scene(np.zeros((3, 11, 13, 3), np.uint8), LABELS, (17, 5, 17, 2))

    @pytest.mark.parametrize("stride", [1, 4, 5])
    @pytest.mark.parametrize("number", [None, 17, 5, 2, 99])
    def test_tracks(self, stride: int, number: int | None) -> None:
        found = self.SCENE.tracks(stride, number)
        places = [
            place for place, of in ((1, 17), (2, 5), (3, 17)) if number is None or of == number
        ]
        assert found.classes.tolist() == [{1: 17, 2: 5, 3: 17}[place] for place in places]
        rows, columns = -(-11 // stride), -(-13 // stride)
        edges = [
            np.linspace(0, n, k + 1).round().astype(int) for n, k in ((11, rows), (13, columns))
        ]
        assert found.masks.shape == (len(places), 3, rows, columns)
        assert found.masks.dtype == found.boxes_cxcywh.dtype == np.float32
        for i, place in enumerate(places):
            for t in range(3):
                mask = self.LABELS[t] == place
                assert found.present[i, t] == mask.any()
                for r in range(rows):
                    for c in range(columns):
                        cell = mask[edges[0][r] : edges[0][r + 1], edges[1][c] : edges[1][c + 1]]
                        assert found.masks[i, t, r, c] == pytest.approx(cell.mean())
                if not mask.any():
                    assert not found.boxes_cxcywh[i, t].any()
                    continue
                y, x = np.nonzero(mask)
                box = (
                    (x.min() + x.max() + 1) / 26, (y.min() + y.max() + 1) / 22,
                    (np.ptp(x) + 1) / 13, (np.ptp(y) + 1) / 11,
                )  # fmt: skip
                assert found.boxes_cxcywh[i, t] == pytest.approx(box)

    def test_what_hardly_shows_is_no_track(self) -> None:
        labels = np.zeros((2, 25, 50), np.uint8)
        labels[0, 0, :4], labels[1, 3, :5] = 1, 2  # Four and five of 1,250 pixels.
        scene = Scene(np.zeros((2, 25, 50, 3), np.uint8), labels, (7, 8))
        masks, classes = scene.masks_of(None)
        assert classes.tolist() == [8] and masks.shape == (1, 2, 25, 50)
        assert masks.sum() == 5 and len(scene.masks_of(7)[0]) == 0


class TestReader:
    """The door through which training reads."""

    def test_what_a_query_is(self, reader: ClipReader) -> None:
        scenes = SceneReader(composer_of(reader))
        video, number = video_of(reader, "f2.jpg"), category(reader, "ant")
        frames, tracks, valid = scenes.drawn_query(video, number, 4, np.random.default_rng(8))
        scene = composer_of(reader).query(np.random.default_rng(8), video, number, FRAMES)
        assert np.array_equal(frames, scene.frames)
        assert valid.tolist() == [True] * FRAMES
        expected = scene.tracks(4, number)
        assert len(expected.masks) > 0 and set(tracks.classes.tolist()) == {number}
        for name in ("masks", "classes", "present", "boxes_cxcywh"):
            np.testing.assert_array_equal(getattr(tracks, name), getattr(expected, name))

    def test_what_a_support_is_at_any_length(self, reader: ClipReader) -> None:
        scenes = SceneReader(composer_of(reader))
        video, number = video_of(reader, "e2.jpg"), category(reader, "elk")
        for length in (1, 3, FRAMES):
            shorter = scenes.of_length(length)
            frames, count = shorter.drawn_support(video, number, np.random.default_rng(2))
            assert frames.shape == (length, HEIGHT, WIDTH, 3) and count == length

    def test_what_a_frame_is(self, reader: ClipReader) -> None:
        scenes = SceneReader(composer_of(reader))
        video = video_of(reader, "e2.jpg")
        frame, tracks = scenes.drawn_frame(video, 0, 8, np.random.default_rng(6))
        other, _ = scenes.drawn_frame(video, 0, 8, np.random.default_rng(7))
        assert frame.shape == (HEIGHT, WIDTH, 3) and not np.array_equal(frame, other)
        assert tracks.masks.shape[1:] == (1, -(-HEIGHT // 8), -(-WIDTH // 8))
        assert len(tracks.masks) > 0 and tracks.present.all()

    def test_photos_are_as_they_were(self, reader: ClipReader) -> None:
        scenes = SceneReader(composer_of(reader))
        video = video_of(reader, "e2.jpg")
        np.testing.assert_array_equal(scenes.frames(video), reader.frames(video))
