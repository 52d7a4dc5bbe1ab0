"""Where drawn frames stand: panels side by side, supports beside them, and contact sheets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from selfshot.data.ytvis import Video
from selfshot.evaluation.drawing import (
    Colour,
    Instance,
    Painter,
    label_picture,
    plain,
    text_picture,
)

# Panels: small videos are enlarged towards the least height, large ones are fitted into the most.
_LEAST_HEIGHT, _MOST_HEIGHT, _MOST_WIDTH = 240, 540, 960
_LEAST_WIDTH = 64  # of everything together: encoders refuse slivers
_TILE_WIDTH, _TILE_HEIGHT = 320, 240  # a frame of a contact sheet is fitted into this
_SUPPORT_HEIGHT = 96  # on a contact sheet
_MOST_SUPPORT_HEIGHT = 168  # beside a video
_COLUMNS = 4
_GAP, _BAR, _LETTERS = 6, 22, 13
_TITLE_BAR, _TITLE_LETTERS = 34, 17

_GROUND: Colour = (24, 26, 29)
_INK: Colour = (228, 230, 233)
_RIGHT: Colour = (70, 200, 120)
_WRONG: Colour = (240, 92, 88)
_UNKNOWN: Colour = (150, 152, 156)


@dataclasses.dataclass(frozen=True)
class Panel:
    """A copy of the video with some instances drawn on it."""

    caption: str
    instances: tuple[Instance, ...]


@dataclasses.dataclass(frozen=True)
class SupportClip:
    """A support: its frames (None where it cannot be read), and whether its class is right.

    `right` is None where the class is not known.
    """

    caption: str
    frames: UInt8[np.ndarray, "time height width 3"] | None
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class SupportRow:
    """Supports of one kind, best first."""

    caption: str
    clips: tuple[SupportClip, ...]


class Scene:
    """Draws frames of one video: a panel beside the other, then the supports."""

    def __init__(
        self, video: Video, panels: Sequence[Panel], supports: Sequence[SupportRow]
    ) -> None:
        """Lays everything out.

        Args:
            video: whose frames.
            panels: at least one.
            supports: rows of them; may be empty.
        """
        self.panel_size = panel_size(video)
        self.length = video.length
        height, width = self.panel_size
        mask_size = (video.height, video.width)
        self._painters = [Painter(panel.instances, mask_size, self.panel_size) for panel in panels]
        self._lefts = [place * (width + _GAP) for place in range(len(panels))]
        whole_height = _BAR + height
        rows = [_moving_row(row, whole_height // len(supports)) for row in supports]
        across = self._lefts[-1] + width
        whole_width = across + max((_GAP + row.width for row in rows), default=0)
        whole_width = max(whole_width, _LEAST_WIDTH)
        # Encoders of video want even sides.
        size = (-(-whole_width // 2) * 2, -(-whole_height // 2) * 2)
        self._empty = Image.new("RGB", size, _GROUND)
        for panel, left in zip(panels, self._lefts, strict=True):
            self._empty.paste(_text(panel.caption, width), (left, 2))
        self._supports: list[tuple[tuple[int, int], list[Image.Image]]] = []
        for number, row in enumerate(rows):
            corner = (across + _GAP, number * (whole_height // len(rows)))
            self._empty.paste(_text(row.caption, row.width), (corner[0], corner[1] + 2))
            for left, pictures in row.tiles:
                self._supports.append(((corner[0] + left, corner[1] + _BAR), pictures))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the drawn frames, in pixels."""
        return self._empty.size

    def draw(self, pixels: UInt8[np.ndarray, "height width 3"], frame: int) -> Image.Image:
        """A frame of the video, of the panels' size, with everything that belongs to it."""
        canvas = self._empty.copy()
        for painter, left in zip(self._painters, self._lefts, strict=True):
            picture = Image.fromarray(pixels)
            painter.paint(picture, frame)
            canvas.paste(picture, (left, _BAR))
        for corner, pictures in self._supports:
            canvas.paste(pictures[frame * len(pictures) // self.length], corner)
        return canvas


def panel_size(video: Video) -> tuple[int, int]:
    """Height and width of a panel, in pixels."""
    scale = min(_MOST_HEIGHT / video.height, _MOST_WIDTH / video.width)
    if scale > 1:
        scale = min(scale, math.ceil(max(_LEAST_HEIGHT / video.height, 1)))
    return max(round(video.height * scale), 2), max(round(video.width * scale), 2)


def tile_size(video: Video) -> tuple[int, int]:
    """Height and width of a frame on a contact sheet, in pixels."""
    scale = min(_TILE_HEIGHT / video.height, _TILE_WIDTH / video.width)
    return max(round(video.height * scale), 2), max(round(video.width * scale), 2)


def sheet_indices(video: Video, num_panels: int) -> list[int]:
    """The frames that a contact sheet shows: evenly spaced, the first and the last with them."""
    count = _COLUMNS * (3 if num_panels == 1 else 2)
    return np.unique(np.linspace(0, video.length - 1, count).round().astype(int)).tolist()


def contact_sheet(
    title: str,
    video: Video,
    panels: Sequence[Panel],
    supports: Sequence[SupportRow],
    frames: Sequence[tuple[int, UInt8[np.ndarray, "height width 3"]]],
) -> Image.Image:
    """Frames of a video in a grid; each panel has a line of it under the other's.

    Args:
        title: written above.
        video: whose frames.
        panels: at least one.
        supports: shown above the frames by their middle frames; may be empty.
        frames: index and pixels of each frame to show, in any size.
    """
    height, width = tile_size(video)
    mask_size = (video.height, video.width)
    painters = [Painter(panel.instances, mask_size, (height, width)) for panel in panels]
    columns = min(_COLUMNS, max(len(frames), 1))
    strips = [_still_row(row) for row in supports]
    lines = [
        (panel, painter, frames[start : start + columns])
        for start in range(0, len(frames), columns)
        for panel, painter in zip(panels, painters, strict=True)
    ]
    across = max([columns * (width + _GAP) + _GAP, *(2 * _GAP + row.width for row in strips)])
    down = _TITLE_BAR + sum(_BAR + row.height + _GAP for row in strips)
    sheet = Image.new("RGB", (across, down + len(lines) * (_BAR + height + _GAP)), _GROUND)
    text = text_picture(plain(title, 160), _TITLE_LETTERS, _INK, _GROUND, across - 2 * _GAP)
    sheet.paste(text, (_GAP, _GAP))
    top = _TITLE_BAR
    for row in strips:
        sheet.paste(_text(row.caption, row.width), (_GAP, top + 2))
        sheet.paste(row.picture, (_GAP, top + _BAR))
        top += _BAR + row.height + _GAP
    for panel, painter, line in lines:
        sheet.paste(_text(panel.caption, across - 2 * _GAP), (_GAP, top + 2))
        for place, (index, pixels) in enumerate(line):
            picture = _resized(pixels, (width, height))
            number = text_picture(str(index), 11, _INK, _GROUND)
            picture.paste(number, (width - number.width, 0))
            painter.paint(picture, index)  # labels may cover the number, and not the reverse
            sheet.paste(picture, (_GAP + place * (width + _GAP), top + _BAR))
        top += _BAR + height + _GAP
    return sheet


@dataclasses.dataclass(frozen=True)
class _MovingRow:
    """Supports of one kind: the caption, and for each its place and its pictures."""

    caption: str
    width: int
    tiles: list[tuple[int, list[Image.Image]]]


@dataclasses.dataclass(frozen=True)
class _StillRow:
    caption: str
    picture: Image.Image

    @property
    def width(self) -> int:
        return self.picture.width

    @property
    def height(self) -> int:
        return self.picture.height


def _moving_row(row: SupportRow, height: int) -> _MovingRow:
    """Lays out a row of supports that is `height` pixels high with its caption."""
    tiles, left = [], 0
    for clip in row.clips:
        pictures = _support_pictures(clip, min(max(height - _BAR - _GAP, 24), _MOST_SUPPORT_HEIGHT))
        tiles.append((left, pictures))
        left += pictures[0].width + _GAP
    return _MovingRow(row.caption, max(left - _GAP, 2 * _SUPPORT_HEIGHT), tiles)


def _still_row(row: SupportRow) -> _StillRow:
    moving = _moving_row(row, _SUPPORT_HEIGHT + _BAR + _GAP)
    strip = Image.new("RGB", (moving.width, _SUPPORT_HEIGHT), _GROUND)
    for left, pictures in moving.tiles:
        strip.paste(pictures[len(pictures) // 2], (left, 0))
    return _StillRow(row.caption, strip)


def _support_pictures(clip: SupportClip, height: int) -> list[Image.Image]:
    """The frames of a support, framed by whether it is right, with its caption."""
    colour = _UNKNOWN if clip.right is None else _RIGHT if clip.right else _WRONG
    if clip.frames is None or not len(clip.frames):
        pictures = [Image.new("RGB", (height, height), _GROUND)]
    else:
        _, rows, columns, _ = clip.frames.shape
        width = min(max(round(columns * height / rows), 2), 3 * height)
        pictures = [_resized(pixels, (width, height)) for pixels in clip.frames]
    for picture in pictures:
        label = label_picture(clip.caption, colour, 11, picture.width)
        picture.paste(label, (0, picture.height - label.height))
        edge = (0, 0, picture.width - 1, picture.height - 1)
        ImageDraw.Draw(picture).rectangle(edge, outline=colour, width=2)
    return pictures


def _resized(pixels: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(pixels)
    if picture.size == size:
        return picture
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _text(caption: str, width: int) -> Image.Image:
    return text_picture(plain(caption, 120), _LETTERS, _INK, _GROUND, width)
