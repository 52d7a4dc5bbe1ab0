"""Sheets: pictures stand where they should, in borders that say what is right."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from selfshot.evaluation.rendering.sheets import (
    BAR,
    GAP,
    SupportClip,
    Tile,
    below,
    beside,
    captioned,
    contact_sheet,
    framed,
    query_sheet,
    still,
)

GREEN, RED, GREY = (70, 200, 120), (240, 92, 88), (150, 152, 156)


def block(width: int, height: int, colour: tuple[int, int, int] = (9, 9, 200)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_beside_and_below_keep_every_picture_whole() -> None:
    pictures = [block(30, 20, (250, 0, 0)), block(10, 50, (0, 250, 0))]
    row, column = np.asarray(beside(pictures)), np.asarray(below(pictures))
    assert row.shape == (50, 30 + GAP + 10, 3) and column.shape == (20 + GAP + 50, 30, 3)
    for whole in (row, column):
        assert (whole == (250, 0, 0)).all(2).sum() == 600
        assert (whole == (0, 250, 0)).all(2).sum() == 500
    assert beside([]).size == below([]).size == (0, 0)


def test_a_caption_has_a_line_for_each_of_its_own() -> None:
    picture = block(300, 40)
    assert captioned("", picture) is picture
    assert captioned("one", picture).size == (300, 40 + BAR)
    assert captioned("one\ntwo", picture).size == (300, 40 + 2 * BAR)
    long = captioned("word " * 99, picture)
    assert long.size == (300, 40 + BAR), "it is cut"
    assert (np.asarray(long)[BAR:] == (9, 9, 200)).all()


@pytest.mark.parametrize(("right", "colour"), [(True, GREEN), (False, RED), (None, GREY)])
def test_the_border_says_whether_it_is_right(right: bool | None, colour: tuple[int, ...]) -> None:
    plain = block(40, 30)
    drawn = np.asarray(framed(plain, right))
    assert (drawn[0] == colour).all() and (drawn[:, -1] == colour).all()
    assert (drawn[2:-2, 2:-2] == (9, 9, 200)).all()
    labelled = np.asarray(framed(plain, right, "cat"))
    assert (labelled[-8:, 2:-2] == colour).all(2).sum() > (drawn[-8:, 2:-2] == colour).all(2).sum()
    assert (np.asarray(plain) == (9, 9, 200)).all(), "the picture itself is left as it was"


def test_stills_of_any_shape() -> None:
    assert still(np.zeros((20, 30, 3), np.uint8), 40).size == (60, 40)
    assert still(np.zeros((2, 300, 3), np.uint8), 40).size == (120, 40)
    assert still(None, 40).size == (40, 40)


def test_a_sheet_has_a_row_of_tiles_for_each() -> None:
    tile = captioned("right\nclip", framed(block(60, 40), True))
    sizes = [contact_sheet([("", [tile, tile])] * rows).size for rows in (1, 3)]
    assert sizes[0] == (2 * 60 + 3 * GAP, 40 + 2 * BAR + GAP)
    assert sizes[1] == (sizes[0][0], 3 * sizes[0][1])
    titled = contact_sheet([("row", [tile, tile])], "a title")
    assert titled.size == (sizes[0][0], sizes[0][1] + BAR + 34)


def test_a_query_stands_before_what_was_found() -> None:
    frame = np.full((40, 60, 3), 200, np.uint8)
    row = (Tile(frame, "query"), [Tile(frame, "right\nclip", True), Tile(None, "gone", False)])
    one, three = (np.asarray(query_sheet([row] * rows, 40)) for rows in (1, 3))
    # Narrow pictures leave a caption the room it wants.
    assert len(three) == 3 * len(one) == 3 * (2 * BAR + 40 + GAP)
    assert (one[2 * BAR :, GAP : GAP + 60] == 200).all(2).sum() == 40 * 60, "the query, no border"
    for colour in (GREEN, RED):
        assert (one == colour).all(2).sum() >= 2 * 2 * 40
    assert query_sheet([]).size == (2 * GAP, GAP)


def test_a_support_shows_its_frames_or_that_it_has_none() -> None:
    frames = np.stack([np.full((20, 30, 3), value, np.uint8) for value in (10, 110, 210)])
    clip = SupportClip("", frames, True)
    assert [picture.getpixel((30, 20)) for picture in clip.pictures(40)] == [
        (10,) * 3, (110,) * 3, (210,) * 3
    ]  # fmt: skip
    assert clip.middle(40).getpixel((30, 20)) == (110,) * 3
    for nothing in (None, frames[:0]):
        assert [one.size for one in SupportClip("gone", nothing).pictures(40)] == [(40, 40)]
        assert SupportClip("gone", nothing).middle(40).size == (40, 40)
