"""Pictures beside and below each other, with captions: sheets, and frames of animations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from selfshot.evaluation.rendering.painting import Colour, label_picture, plain, text_picture

GAP, BAR = 6, 22  # between pictures; of a caption's line
_LETTERS = 13
_TITLE_BAR, _TITLE_LETTERS = 34, 17
_LEAST_CAPTION = 192  # so wide a caption may be above whatever is narrower

GROUND: Colour = (24, 26, 29)
INK: Colour = (228, 230, 233)
_RIGHT: Colour = (70, 200, 120)
_WRONG: Colour = (240, 92, 88)
_UNKNOWN: Colour = (150, 152, 156)

Pixels = UInt8[np.ndarray, "height width 3"]
Frames = UInt8[np.ndarray, "time height width 3"]


@dataclasses.dataclass(frozen=True)
class SupportClip:
    """A support: its frames (None where it cannot be read), and whether its class is right.

    `right` is None where the class is not known.
    """

    caption: str
    frames: Frames | None
    right: bool | None = None

    def pictures(self, height: int) -> list[Image.Image]:
        """Its frames so high, each with the caption, and a border of green, red or grey."""
        frames = self.frames if self.frames is not None and len(self.frames) else [None]
        return [framed(still(pixels, height), self.right, self.caption) for pixels in frames]

    def middle(self, height: int) -> Image.Image:
        """Its middle frame, likewise."""
        frames = self.frames if self.frames is None else self.frames[len(self.frames) // 2 :][:1]
        return dataclasses.replace(self, frames=frames).pictures(height)[0]


@dataclasses.dataclass(frozen=True)
class Tile:
    """A clip by one frame (None where it cannot be read), and whether it is right, if known."""

    frame: Pixels | None
    caption: str
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class SupportRow:
    """Supports of one kind, best first."""

    caption: str
    clips: tuple[SupportClip, ...]


def resized(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    """A frame of another width and height."""
    picture = Image.fromarray(pixels)
    if picture.size == size:
        return picture
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def still(pixels: Pixels | None, height: int) -> Image.Image:
    """A frame so high, at most three times as wide; empty where there is none."""
    if pixels is None:
        return Image.new("RGB", (height, height), GROUND)
    width = round(pixels.shape[1] * height / pixels.shape[0])
    return resized(pixels, (min(max(width, 2), 3 * height), height))


def framed(picture: Image.Image, right: bool | None, label: str = "") -> Image.Image:
    """A picture in a border of green (right), red (wrong) or grey (not known), with a label."""
    colour = _UNKNOWN if right is None else _RIGHT if right else _WRONG
    picture = picture.copy()
    if label:
        text = label_picture(label, colour, 11, picture.width)
        picture.paste(text, (0, picture.height - text.height))
    edge = (0, 0, picture.width - 1, picture.height - 1)
    ImageDraw.Draw(picture).rectangle(edge, outline=colour, width=2)
    return picture


def beside(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures from left to right, their upper sides in line."""
    return _lined_up(pictures, gap, 0)


def below(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures from top to bottom, their left sides in line."""
    return _lined_up(pictures, gap, 1)


def _lined_up(pictures: Sequence[Image.Image], gap: int, axis: int) -> Image.Image:
    """Along the width (axis 0) or the height (1)."""
    size = [max((picture.size[i] for picture in pictures), default=0) for i in (0, 1)]
    size[axis] = sum(picture.size[axis] for picture in pictures) + gap * max(len(pictures) - 1, 0)
    whole = Image.new("RGB", (size[0], size[1]), GROUND)
    place = [0, 0]
    for picture in pictures:
        whole.paste(picture, (place[0], place[1]))
        place[axis] += picture.size[axis] + gap
    return whole


def captioned(caption: str, picture: Image.Image) -> Image.Image:
    """A picture below its caption, if it has one, which may be of several lines."""
    if not caption:
        return picture
    width = max(picture.width, _LEAST_CAPTION)
    lines = [_bar(line, _LETTERS, (2, BAR), width) for line in caption.split("\n")]
    return below([*lines, picture], gap=0)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], title: str = ""
) -> Image.Image:
    """Rows of pictures, each with its caption, if any, above it; and a title above all."""
    bodies = [captioned(caption, beside(pictures)) for caption, pictures in rows]
    body = below(bodies)
    sheet = Image.new("RGB", (body.width + 2 * GAP, body.height + GAP), GROUND)
    sheet.paste(body, (GAP, 0))
    if not title:
        return sheet
    bar = _bar(title, _TITLE_LETTERS, (GAP, _TITLE_BAR), sheet.width - 2 * GAP)
    head = Image.new("RGB", (sheet.width, _TITLE_BAR), GROUND)
    head.paste(bar, (GAP, 0))
    return below([head, sheet], gap=0)


def query_sheet(rows: Sequence[tuple[Tile, Sequence[Tile]]], height: int = 160) -> Image.Image:
    """Queries with the clips that were found for them.

    Args:
        rows: a query and what was found, best first: that is framed by whether it is right.
        height: of a picture, in pixels.
    """
    lines = []
    for query, found in rows:
        most = max(tile.caption.count("\n") for tile in (query, *found))
        pictures = [still(query.frame, height)]
        pictures += [framed(still(tile.frame, height), tile.right) for tile in found]
        captions = [
            tile.caption + "\n" * (most - tile.caption.count("\n")) for tile in (query, *found)
        ]
        lines.append(("", [captioned(*pair) for pair in zip(captions, pictures, strict=True)]))
    return contact_sheet(lines)


@functools.lru_cache(maxsize=64)
def _bar(text: str, letters: int, place: tuple[int, int], width: int) -> Image.Image:
    """A line of text, at most so wide; `place`: how far down it is in a bar of which height."""
    line = text_picture(plain(text, 160), letters, INK, GROUND, width)
    bar = Image.new("RGB", (line.width, place[1]), GROUND)
    bar.paste(line, (0, place[0]))
    return bar
