"""Tracks on frames: colours that stay, masks where they are, labels in the picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from selfshot.data.ytvis import Prediction, Track
from selfshot.evaluation.rendering.painting import (
    COLOURS,
    Instance,
    Painter,
    colour_of,
    label_picture,
    paint_clip,
    plain,
    prediction_colours,
    prediction_instances,
    track_instances,
)
from selfshot.ops.masks import Rle, encode_rle

HEIGHT, WIDTH, LENGTH = 90, 130, 3
RED = (200, 0, 0)


def _rle(top: int, left: int, bottom: int, right: int) -> Rle:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return encode_rle(mask)


LEFT, RIGHT, MIDDLE = _rle(40, 5, 80, 45), _rle(35, 80, 85, 125), _rle(50, 50, 70, 75)


def _track(number: int, rle: Rle, crowd: bool = False) -> Track:
    nothing = (None,) * LENGTH
    return Track(number, 1, 2, (rle,) * LENGTH, nothing, nothing, iscrowd=crowd)


def _prediction(rle: Rle, score: float) -> Prediction:
    return Prediction(1, 2, score, (rle,) * LENGTH)


def _painted(instances: list[Instance], size: tuple[int, int], frame: int = 0) -> np.ndarray:
    picture = Image.new("RGB", size[::-1], (90, 90, 90))
    Painter(instances, (HEIGHT, WIDTH), size).paint(picture, frame)
    return np.asarray(picture)


class TestColours:
    """A track keeps its colour, and what is the same object shares it."""

    def test_an_id_is_a_colour(self) -> None:
        assert len(set(COLOURS)) == len(COLOURS) == 24
        assert len({colour_of(number) for number in range(40, 64)}) == 24
        others = [_track(n, RIGHT) for n in (11, 12)]
        alone = track_instances([_track(7, LEFT)], {2: "cat"})[0].colour
        among = track_instances([*others, _track(7, LEFT)], {2: "cat"})[2].colour
        assert alone == among == colour_of(7)
        for odd in (0, -5, 10**30):
            assert colour_of(odd) in COLOURS

    def test_neighbouring_ids_are_far_apart(self) -> None:
        for number in range(1, 25):
            one, other = np.array(colour_of(number)), np.array(colour_of(number + 1))
            assert np.abs(one.astype(int) - other).sum() > 90

    def test_a_prediction_has_the_colour_of_its_object(self) -> None:
        tracks = [_track(3, LEFT), _track(8, RIGHT)]
        predictions = [_prediction(MIDDLE, 0.9), _prediction(RIGHT, 0.2), _prediction(LEFT, 0.5)]
        colours = prediction_colours(predictions, tracks)
        assert colours[1:] == [colour_of(8), colour_of(3)]
        assert colours[0] not in colours[1:]

    def test_what_is_left_out_changes_no_colour(self) -> None:
        predictions = [_prediction(MIDDLE, 0.1), _prediction(LEFT, 0.5), _prediction(RIGHT, 0.9)]
        every = prediction_instances(predictions, [], {2: "cat"}, min_score=0, top=9)
        some = prediction_instances(predictions, [], {2: "cat"}, min_score=0.3, top=9)
        one = prediction_instances(predictions, [], {2: "cat"}, min_score=0, top=1)
        assert [i.label for i in every] == ["cat 0.90", "cat 0.50", "cat 0.10"]
        assert some == every[:2] and one == every[:1]
        assert len({i.colour for i in every}) == 3

    def test_more_objects_than_colours(self) -> None:
        tracks = [_track(number, LEFT) for number in range(1, 41)]
        colours = prediction_colours([_prediction(RIGHT, 0.5)] * 30, tracks)
        assert len(colours) == 30 and set(colours) <= set(COLOURS)


class TestPainting:
    """Masks are where the file says, in any size of the picture."""

    @pytest.mark.parametrize("factor", [1, 2, 0.5, 1.37])
    def test_inside_outside_and_rim(self, factor: float) -> None:
        size = (round(HEIGHT * factor), round(WIDTH * factor))
        drawn = _painted([Instance((LEFT,), RED, "x")], size).astype(int)

        def at(row: float, column: float) -> list[int]:
            return drawn[int(row * size[0] / HEIGHT), int(column * size[1] / WIDTH)].tolist()

        assert at(20, 110) == at(60, 60) == at(85, 25) == [90, 90, 90]
        inside = at(65, 30)
        assert inside[0] > 110 and inside[1] < 90, "tinted, and what is below shows through"
        rim = drawn[int(70 * size[0] / HEIGHT), : size[1] // 3]
        assert (np.abs(rim - RED).sum(1) < 60).any(), "the rim is opaque"

    def test_a_mask_is_drawn_to_the_pixel(self) -> None:
        drawn = _painted([Instance((MIDDLE,), RED, "x")], (HEIGHT, WIDTH))
        changed = (drawn != 90).any(2)
        label = Painter([], (HEIGHT, WIDTH), (HEIGHT, WIDTH)).letters + 6
        np.testing.assert_array_equal(changed[50:70, 50:75], True)
        assert drawn[50:70, 75].max() < 90, "a dark line around it"
        changed[49:71, 49:76] = False
        assert not changed[50:].any() and not changed[: 50 - label].any()

    def test_where_it_leaves_the_picture_there_is_no_rim(self) -> None:
        drawn = _painted([Instance((_rle(30, 0, 90, 50),), RED, "x")], (HEIGHT, WIDTH))
        assert drawn[75, 0].tolist() == drawn[75, 20].tolist() != drawn[75, 49].tolist()
        assert drawn[89, 20].tolist() == drawn[75, 20].tolist()
        assert drawn[75, 49].tolist() == list(RED)

    def test_absent_and_empty_masks(self) -> None:
        empty = encode_rle(np.zeros((HEIGHT, WIDTH), bool))
        instances = [Instance((None, LEFT, empty), RED, "x")]
        for frame, changes in ((0, False), (1, True), (2, False)):
            assert (_painted(instances, (HEIGHT, WIDTH), frame) != 90).any() == changes

    def test_a_small_one_is_over_a_large_one(self) -> None:
        large = Instance((_rle(10, 10, 85, 125),), (0, 0, 250), "x")
        small = Instance((MIDDLE,), RED, "y")
        for instances in ([large, small], [small, large]):
            drawn = _painted(instances, (HEIGHT, WIDTH))
            assert drawn[60, 50].tolist() == list(RED)

    def test_labels_do_not_cover_each_other(self) -> None:
        rles = [_rle(40, 20 + 3 * i, 80, 90) for i in range(4)]
        colours = [(250, 250, 10), (10, 250, 250), (250, 10, 250), (10, 250, 10)]
        instances = [Instance((r,), c, "cat 0.9") for r, c in zip(rles, colours, strict=True)]
        drawn = _painted(instances, (4 * HEIGHT, 4 * WIDTH))
        for colour in colours:
            label = label_picture("cat 0.9", colour, 15, 500)
            ground = (np.asarray(label) == colour).all(2).sum()
            assert (drawn == colour).all(2).sum() >= ground

    def test_labels_stay_in_the_picture(self) -> None:
        corner = Instance((_rle(0, 120, 20, 130),), RED, "a rather long name of a class 0.99")
        for size in ((HEIGHT, WIDTH), (30, 40), (8, 5)):
            assert _painted([corner], size).shape == (*size, 3)


class TestClips:
    """Small clips are enlarged, and their masks have smooth outlines."""

    TIME, TALL, WIDE = 5, 22, 26

    def _frames(self, value: int = 0) -> np.ndarray:
        return np.full((self.TIME, self.TALL, self.WIDE, 3), value, np.uint8)

    def _drawn(self, mask: np.ndarray, scale: int, value: int = 0, **more: float) -> np.ndarray:
        instance = Instance((encode_rle(mask),) * self.TIME, (0, 0, 250), **more)  # type: ignore[arg-type]
        return paint_clip(self._frames(value), [instance], mask.shape, scale).astype(int)

    def test_it_is_enlarged_and_the_background_left_alone(self) -> None:
        mask = np.zeros((self.TALL, self.WIDE), bool)
        mask[3:10, 2:9] = True
        drawn = self._drawn(mask, 3, value=90)
        assert drawn.shape == (self.TIME, 3 * self.TALL, 3 * self.WIDE, 3)
        assert (drawn[:, :, 3 * 13 :] == 90).all()
        assert drawn[0, 3 * 6, 3 * 5, 2] > 120 > 90 > drawn[0, 3 * 6, 3 * 5, 0]

    def test_weaker_ones_are_fainter(self) -> None:
        mask = np.zeros((self.TALL, self.WIDE), bool)
        mask[3:10, 2:9] = True
        brightness = [int(self._drawn(mask, 3, strength=s).sum()) for s in (1.0, 0.5, 0.1)]
        assert brightness[0] > brightness[1] > brightness[2] > 0

    @pytest.mark.parametrize("scale", [1, 2, 3, 4])
    def test_a_mask_one_pixel_wide_does_not_vanish(self, scale: int) -> None:
        line, dot = (np.zeros((self.TALL, self.WIDE), bool) for _ in range(2))
        line[5, 4:15] = dot[15, 15] = True
        drawn = self._drawn(line, scale)
        assert drawn[0, 5 * scale : 6 * scale, 9 * scale : 10 * scale].max() > 100
        drawn = self._drawn(dot, scale)
        assert drawn[0, 15 * scale : 16 * scale, 15 * scale : 16 * scale].max() > 100

    def test_the_outline_is_brighter_than_the_fill_and_anti_aliased(self) -> None:
        y, x = np.mgrid[: self.TALL, : self.WIDE]
        drawn = self._drawn((y - 11) ** 2 + (x - 13) ** 2 < 8**2, 4)[0, 44, :, 2]
        edge = 4 * (13 + 8)
        assert drawn[edge - 6 : edge + 6].max() > 1.5 * drawn[52]
        assert drawn[edge + 8 :].max() == 0
        diagonal = self._drawn(y + x < 22, 4)[0, 40, :, 2]
        assert len(set(diagonal[40:56])) > 4, "shades between outline and background"

    def test_no_instance_is_the_enlarged_clip(self) -> None:
        drawn = paint_clip(self._frames(33), [], (1, 1), 2)
        assert drawn.shape == (self.TIME, 2 * self.TALL, 2 * self.WIDE, 3) and (drawn == 33).all()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("giant panda", "giant panda"),
        ("two\nlines\tand\x1b[31m", "two lines and [31m"),
        ("x" * 60, "x" * 27 + "…"),
        ("half \ud800 a pair", "half a pair"),
        ("Кошка", "Кошка"),
        ("", ""),
    ],
)
def test_any_name_can_be_a_label(name: str, shown: str) -> None:
    assert plain(name) == shown
    assert label_picture(name, RED, 14, 400).width > 0
