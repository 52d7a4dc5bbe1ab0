"""Pictures: sizes, colours that follow instances, edges that stay sharp, bytes that decode."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from selfshot.evaluation import pictures

TIME, HEIGHT, WIDTH = 5, 22, 26


def video(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (TIME, HEIGHT, WIDTH, 3), dtype=np.uint8)


def squares() -> np.ndarray:
    """Three instances: left from the start, right from the start, and one that comes later."""
    masks = np.zeros((3, TIME, HEIGHT, WIDTH), dtype=bool)
    masks[0, :, 3:10, 2:9] = True
    masks[1, :, 8:19, 13:23] = True
    masks[2, 2:, 12:18, 3:9] = True
    return masks


def test_overlay_is_enlarged_and_leaves_the_background_alone():
    frames = np.full((TIME, HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    drawn = pictures.overlay(frames, squares()[:1], scale=3)
    assert drawn.shape == (TIME, 3 * HEIGHT, 3 * WIDTH, 3)
    assert drawn.dtype == np.uint8
    assert (drawn[:, :, 3 * 13 :] == 90).all()  # far from the mask
    inside = drawn[0, 3 * 6, 3 * 5]
    assert inside[2] > 120 > inside[0]  # tinted with the palette's first colour, a blue


def test_overlay_does_not_depend_on_the_order_of_instances():
    masks, scores = squares(), np.array([0.9, 0.5, 0.7])
    expected = pictures.overlay(video(), masks, scores)
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        assert (pictures.overlay(video(), masks[order], scores[order]) == expected).all()


def test_explicit_colours_belong_to_their_instances():
    frames = np.zeros((TIME, HEIGHT, WIDTH, 3), dtype=np.uint8)
    colours = np.array([(255, 0, 0), (0, 255, 0)], dtype=np.uint8)
    drawn = pictures.overlay(frames, squares()[:2], colours=colours, scale=2)
    assert drawn[0, 2 * 6, 2 * 5].argmax() == 0
    assert drawn[0, 2 * 13, 2 * 18].argmax() == 1


def test_weaker_scores_are_fainter_and_nan_is_weakest():
    frames = np.zeros((TIME, HEIGHT, WIDTH, 3), dtype=np.uint8)
    brightness = [
        int(pictures.overlay(frames, squares()[:1], [score]).sum())
        for score in (1.0, 0.5, float("nan"))
    ]
    assert brightness[0] > brightness[1] > brightness[2] > 0


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_mask_one_pixel_wide_does_not_vanish(scale):
    frames = np.zeros((TIME, HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = np.zeros((2, TIME, HEIGHT, WIDTH), dtype=bool)
    masks[0, :, 5, 4:15] = True
    masks[1, :, 15, 15] = True
    drawn = pictures.overlay(frames, masks, scale=scale)
    assert drawn[0, 5 * scale : 6 * scale, 9 * scale : 10 * scale].max() > 100
    assert drawn[0, 15 * scale : 16 * scale, 15 * scale : 16 * scale].max() > 100


def test_outline_is_brighter_than_the_fill_and_anti_aliased():
    frames = np.zeros((1, 40, 40, 3), dtype=np.uint8)
    y, x = np.mgrid[:40, :40]
    masks = ((y - 20) ** 2 + (x - 20) ** 2 < 12**2)[None, None]
    line = pictures.overlay(frames, masks, scale=4)[0, 80, :, 2].astype(int)
    edge = 4 * (20 + 12)
    assert line[edge - 6 : edge + 6].max() > 1.5 * line[80]
    assert len(set(line[edge - 8 : edge + 8])) > 4  # shades between outline and background
    assert line[edge + 8 :].max() == 0


def test_no_instances_is_only_the_enlarged_video():
    none = np.zeros((0, TIME, HEIGHT, WIDTH), dtype=bool)
    assert (pictures.overlay(video(), none, scale=2) == pictures.enlarge(video(), 2)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((1, TIME, HEIGHT, 3), dtype=bool)}, "masks: shape"),
        ({"scores": [0.5]}, "scores: shape"),
        ({"colours": np.zeros((1, 3), dtype=np.uint8)}, "colours: shape"),
        ({"scale": 0}, "scale: 0"),
        ({"frames": np.zeros((TIME, HEIGHT, WIDTH, 3))}, "frames: float64"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    arguments = {"frames": video(), "masks": squares()} | change
    with pytest.raises(ValueError, match=message):
        pictures.overlay(**arguments)


def test_track_ious_by_hand():
    a = np.zeros((1, 2, 4, 4), dtype=bool)
    b = a.copy()
    a[0, :, :2] = True  # 16 of 32
    b[0, 0, :2] = True  # 8, all within a
    b[0, 1, 2] = True  # 4 outside
    assert pictures.track_ious(a, b)[0, 0] == pytest.approx(8 / 20)
    assert pictures.track_ious(a, b[:0]).shape == (1, 0)


def test_colours_like_the_truth_follow_objects_not_positions_in_the_array():
    truth = squares()
    colours = pictures.colours_like(truth[[2, 0]], truth)
    assert (colours == pictures.palette(3)[[2, 0]]).all()
    elsewhere = np.roll(truth[:1], 12, axis=3) & ~truth.any(axis=0)
    stranger = pictures.colours_like(np.concatenate([elsewhere, truth[1:2]]), truth[1:2])
    assert (stranger[1] == pictures.palette(1)[0]).all()
    assert (stranger[0] == pictures.palette(2)[1]).all()


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_animation_decodes_to_every_frame(kind):
    encoded = pictures.animation(video(), 10.0, kind=kind)
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == kind.upper()
        assert (image.n_frames, image.size) == (TIME, (WIDTH, HEIGHT))
        assert image.info["loop"] == 0
        image.seek(1)
        image.load()
        assert image.info["duration"] == 100


def test_animation_keeps_the_colours():
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    frames[0, ..., 0] = 200
    frames[1, ..., 1] = 200
    with Image.open(io.BytesIO(pictures.animation(frames, 5))) as image:
        image.seek(1)
        pixel = np.asarray(image.convert("RGB"))[16, 16]
    assert abs(int(pixel[1]) - 200) < 12
    assert pixel[0] < 12


def test_animation_of_one_frame_and_a_wrong_fps():
    with Image.open(io.BytesIO(pictures.animation(video()[:1], 5))) as image:
        assert image.size == (WIDTH, HEIGHT)
    with pytest.raises(ValueError, match="fps: 0"):
        pictures.animation(video(), 0)


def test_contact_sheet_has_a_panel_for_each_part_with_borders():
    support = np.full((3, 30, 30, 3), 10, dtype=np.uint8)
    result = pictures.overlay(video(), squares(), scale=2)
    sheet = pictures.contact_sheet(
        video(), [support, support], {"truth": result}, correct=[True, False], height=44
    )
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    width = round(WIDTH * 44 / HEIGHT)
    assert pixels.shape == (44 + 20 + 16, 2 * width + 2 * 44 + 5 * 8, 3)
    right, wrong = pixels[9, 8 + width + 8 + 20], pixels[9, 8 + width + 8 + 44 + 8 + 20]
    assert right.argmax() == 1  # green
    assert wrong.argmax() == 0  # red
    with pytest.raises(ValueError, match="correct: 1 values for 2 supports"):
        pictures.contact_sheet(video(), [support, support], {}, correct=[True])
