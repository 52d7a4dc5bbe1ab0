"""Tracks drawn on the frames of their video, fast enough to browse a benchmark.

`pictures` smooths and enlarges the small masks that the model works on. Here masks are those of a
file, drawn as they are, and a frame costs milliseconds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from selfshot.config.printable import printable
from selfshot.data.ytvis import Prediction, Track
from selfshot.evaluation.pictures import PALETTE
from selfshot.evaluation.track_iou import track_iou
from selfshot.ops.masks import Rle, decode_rle

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""`(left, top, right, bottom)` in pixels."""

FILL_ALPHA, HALO_ALPHA = 110, 130  # of 255
MAX_LABEL = 28  # characters
_DARK: Colour = (12, 12, 12)
SAME_OBJECT_IOU = 0.1  # below it a prediction is another object than the annotated one


def _shade(share: float, towards: int) -> UInt8[np.ndarray, "colours 3"]:
    return np.rint(PALETTE + share * (towards - PALETTE.astype(np.float64))).astype(np.uint8)


# The palette, then lighter, then darker: ids that follow each other differ in hue.
COLOURS: tuple[Colour, ...] = tuple(
    (int(red), int(green), int(blue))
    for red, green, blue in np.concatenate([PALETTE, _shade(0.4, 255), _shade(0.3, 0)])
)


def colour_of(number: int) -> Colour:
    """The colour of a track's id: the same in every frame and file."""
    return COLOURS[(number - 1) % len(COLOURS)]


def prediction_colours(predictions: Sequence[Prediction], tracks: Sequence[Track]) -> list[Colour]:
    """Colours of all predictions on a video: that of the track which is the same object.

    A prediction without such a track has a colour by its place in the file, one that no track of
    the video has while there are others. What is left out of a picture changes no colour.
    """
    free = [colour for colour in COLOURS if colour not in {colour_of(t.id) for t in tracks}]
    colours = [(free or COLOURS)[i % len(free or COLOURS)] for i in range(len(predictions))]
    if predictions and tracks:
        ious = track_iou(
            [prediction.segmentations for prediction in predictions],
            [track.segmentations for track in tracks],
            at_least=SAME_OBJECT_IOU,
        )
        for row, column in zip(*linear_sum_assignment(-ious), strict=True):
            if ious[row, column] >= SAME_OBJECT_IOU:
                colours[row] = colour_of(tracks[column].id)
    return colours


@dataclasses.dataclass(frozen=True)
class Instance:
    """What is drawn of a track: a mask, or None, for each frame of the video; colour and label."""

    segmentations: Sequence[Rle | None]
    colour: Colour
    label: str


class Painter:
    """Draws the same instances on any frame of their video."""

    def __init__(
        self, instances: Sequence[Instance], mask_size: tuple[int, int], size: tuple[int, int]
    ) -> None:
        """Nothing is drawn yet.

        Args:
            instances: what to draw.
            mask_size: height and width of the masks, in pixels.
            size: height and width of the pictures that are drawn on, in pixels.
        """
        self.instances = tuple(instances)
        self.mask_size, self.size = mask_size, size
        self.line = max(1, round(min(size) / 200))
        self.letters = max(11, round(min(size) / 24))

    def paint(self, picture: Image.Image, frame: int) -> None:
        """Draw the instances of a frame on its picture, in place; small ones over large ones."""
        here = [
            (instance, rle)
            for instance in self.instances
            if (rle := instance.segmentations[frame]) is not None
        ]
        if not here:
            return
        areas = coco_mask.area([rle for _, rle in here])
        boxes = coco_mask.toBbox([rle for _, rle in here])
        labels: list[tuple[Instance, Box]] = []
        for index in np.argsort(-areas.astype(np.int64), kind="stable"):
            if areas[index]:
                instance, rle = here[index]
                box = self._on_picture(boxes[index])
                mask = self._mask(rle, box)
                halo, alpha = _alphas(mask, self.line)
                picture.paste(_DARK, box, Image.fromarray(halo))
                picture.paste(instance.colour, box, Image.fromarray(alpha))
                labels.append((instance, box))
        taken: list[Box] = []
        for instance, box in reversed(labels):
            label = label_picture(instance.label, instance.colour, self.letters, picture.width)
            place = self._place(label, box, taken)
            picture.paste(label, place[:2])
            taken.append(place)

    def _on_picture(self, box: np.ndarray) -> Box:
        """The part of the picture that a mask's box covers, and a line's width around it."""
        x, y, width, height = box.tolist()
        down, across = self.size[0] / self.mask_size[0], self.size[1] / self.mask_size[1]
        return (
            max(math.floor(x * across) - self.line, 0),
            max(math.floor(y * down) - self.line, 0),
            min(math.ceil((x + width) * across) + self.line, self.size[1]),
            min(math.ceil((y + height) * down) + self.line, self.size[0]),
        )

    def _mask(self, rle: Rle, box: Box) -> Bool[np.ndarray, "height width"]:
        """The part of a mask that lies in a box of the picture."""
        dense = decode_rle(rle, *self.mask_size)
        left, top, right, bottom = box
        if self.size == self.mask_size:
            return dense[top:bottom, left:right]
        down, across = self.mask_size[0] / self.size[0], self.mask_size[1] / self.size[1]
        # Rounding may step over the last pixel by less than anything.
        part = (
            left * across,
            top * down,
            min(right * across, self.mask_size[1]),
            min(bottom * down, self.mask_size[0]),
        )
        scaled = Image.fromarray(dense.view(np.uint8) * np.uint8(255)).resize(
            (right - left, bottom - top), Image.Resampling.BILINEAR, box=part
        )
        return np.asarray(scaled) > 127

    def _place(self, label: Image.Image, box: Box, taken: Sequence[Box]) -> Box:
        """Where a label goes: over its instance if there is room, and on no other label."""
        left, top, right, bottom = box
        first: Box | None = None
        for x, y in (
            (left, top - label.height),
            (left, top),
            (right - label.width, top - label.height),
            (left, bottom),
            (left, bottom - label.height),
            ((left + right - label.width) // 2, (top + bottom - label.height) // 2),
            *((left, top - label.height * step) for step in (2, 3, 4)),
            *((left, bottom + label.height * step) for step in (1, 2, 3)),
        ):
            x = min(max(x, 0), max(self.size[1] - label.width, 0))
            y = min(max(y, 0), max(self.size[0] - label.height, 0))
            place = (x, y, x + label.width, y + label.height)
            if not any(_meet(place, other) for other in taken):
                return place
            first = first or place
        assert first is not None
        return first


def _alphas(
    mask: Bool[np.ndarray, "height width"], line: int
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """How dark a pixel gets, and then how much of the colour it gets.

    Dark is a pixel around the mask, so that its rim is seen on a ground of its own colour. Of the
    colour the rim inside of the mask gets all, and what is within it a part. The sides of the
    array are no rim: masks come with a margin but where they leave the picture.
    """
    inner = np.ascontiguousarray(mask)
    around = inner.copy()
    around[1:] |= inner[:-1]
    around[:-1] |= inner[1:]
    around[:, 1:] |= inner[:, :-1]
    around[:, :-1] |= inner[:, 1:]
    halo = (around ^ inner).view(np.uint8) * np.uint8(HALO_ALPHA)
    for _ in range(line):
        outer, inner = inner, inner.copy()
        inner[1:] &= outer[:-1]
        inner[:-1] &= outer[1:]
        inner[:, 1:] &= outer[:, :-1]
        inner[:, :-1] &= outer[:, 1:]
    return halo, np.where(inner, np.uint8(FILL_ALPHA), mask.view(np.uint8) * np.uint8(255))


def _meet(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def plain(text: str, most: int = MAX_LABEL) -> str:
    """A name as a picture can show it: one line of printable characters, not too long."""
    line = " ".join(printable(text, instead=" ").split())
    return line if len(line) <= most else line[: most - 1] + "…"


@functools.lru_cache(maxsize=1024)
def label_picture(text: str, colour: Colour, letters: int, width: int) -> Image.Image:
    """A label on its colour, at most `width` pixels wide; not to be drawn on."""
    dark = np.dot(colour, (0.299, 0.587, 0.114)) > 120
    ink = (16, 16, 16) if dark else (255, 255, 255)
    return text_picture(plain(text), letters, ink, colour, width)


def text_picture(
    text: str, letters: int, ink: Colour, ground: Colour, width: int | None = None
) -> Image.Image:
    """A line of text with a little ground around it; cut where it is wider than `width` pixels."""
    font = font_of(letters)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    across = max(math.ceil(right - left) + letters // 2, 1)
    picture = Image.new("RGB", (across, ascent + descent), ground)
    ImageDraw.Draw(picture).text((letters // 4 - left, 0), text, fill=ink, font=font)
    if width is not None and across > width:
        return picture.crop((0, 0, width, picture.height))
    return picture


@functools.cache
def font_of(letters: int) -> ImageFont.FreeTypeFont:
    """The font of all texts, which matplotlib brings with it: it knows most alphabets."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), letters)


def track_instances(tracks: Sequence[Track], categories: Mapping[int, str]) -> list[Instance]:
    """Annotated tracks as they are drawn."""
    return [
        Instance(
            track.segmentations,
            colour_of(track.id),
            categories[track.category_id] + (" (crowd)" if track.iscrowd else ""),
        )
        for track in tracks
    ]


def prediction_instances(
    predictions: Sequence[Prediction],
    tracks: Sequence[Track],
    categories: Mapping[int, str],
    *,
    min_score: float,
    top: int,
) -> list[Instance]:
    """The best predictions on a video as they are drawn.

    Args:
        predictions: all those on the video, in the file's order.
        tracks: the annotated tracks of the video, whose colours they take.
        categories: class names by id.
        min_score: weaker ones are left out.
        top: at most so many.
    """
    colours = prediction_colours(predictions, tracks)
    best = sorted(range(len(predictions)), key=lambda i: -predictions[i].score)
    return [
        Instance(
            predictions[i].segmentations,
            colours[i],
            f"{plain(categories[predictions[i].category_id], MAX_LABEL - 5)} "
            f"{predictions[i].score:.2f}",
        )
        for i in best[:top]
        if predictions[i].score >= min_score
    ]
