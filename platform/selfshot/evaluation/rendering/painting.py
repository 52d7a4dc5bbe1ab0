"""Tracks drawn on the frames of their video: the one way to draw a mask.

A frame costs a millisecond, so that a benchmark can be browsed. That is why masks are pasted with
Pillow: `torchvision.utils.draw_segmentation_masks` draws a fifteenth as many frames in a second,
and what two masks share it draws black.
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
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from selfshot.config.printable import printable
from selfshot.data.ytvis import Prediction, Track
from selfshot.evaluation.track_iou import track_iou
from selfshot.ops.masks import Rle, decode_rle

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""`(left, top, right, bottom)` in pixels."""

# Bright enough for dark videos, saturated enough for light ones, apart for colour-blind eyes in
# the first four, which are nearly always enough.
PALETTE: UInt8[np.ndarray, "colours 3"] = np.array(
    [
        (56, 180, 255),
        (255, 168, 38),
        (255, 92, 172),
        (150, 232, 70),
        (170, 136, 255),
        (255, 226, 70),
        (40, 222, 192),
        (255, 108, 84),
    ],
    dtype=np.uint8,
)
FILL_ALPHA, HALO_ALPHA = 110, 130  # of 255
_SMOOTHING = 0.4  # blur of a mask that is enlarged, in its own pixels: takes the staircase
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
    """What is drawn of a track.

    Attributes:
        segmentations: a mask, or None, for each frame.
        colour: of the mask and of its label.
        label: may be empty; it is not drawn then.
        strength: in [0, 1]; what is weaker is fainter.
    """

    segmentations: Sequence[Rle | None]
    colour: Colour
    label: str = ""
    strength: float = 1.0


class Painter:
    """Draws the same instances on any frame of their video."""

    def __init__(
        self,
        instances: Sequence[Instance],
        mask_size: tuple[int, int],
        size: tuple[int, int],
        line: int | None = None,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            instances: what to draw.
            mask_size: height and width of the masks, in pixels.
            size: height and width of the pictures that are drawn on, in pixels.
            line: width of a mask's rim, in pixels; none: in proportion to the picture.
        """
        self.instances = tuple(instances)
        self.mask_size, self.size = mask_size, size
        self.line = max(1, round(min(size) / 200)) if line is None else line
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
                for colour, alpha in zip(
                    (_DARK, instance.colour), _alphas(mask, self.line), strict=True
                ):
                    if instance.strength < 1:
                        alpha = (alpha * instance.strength).astype(np.uint8)
                    picture.paste(colour, box, Image.fromarray(alpha))
                if instance.label:
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
        smooth = scaled.filter(ImageFilter.GaussianBlur(_SMOOTHING / down)) if down < 1 else scaled
        found = np.asarray(smooth) > 127
        return found if found.any() else np.asarray(scaled) > 127  # a dot would vanish

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

    Dark is half a line around the mask, so that its rim is seen on a ground of its own colour. Of
    the colour the rim inside of the mask gets all, and what is within it a part. The sides of the
    array are no rim: masks come with a margin but where they leave the picture.
    """
    mask = np.ascontiguousarray(mask)
    around = _grown(mask, max(1, line // 2))
    inner = ~_grown(~mask, line)
    halo = (around ^ mask).view(np.uint8) * np.uint8(HALO_ALPHA)
    return halo, np.where(inner, np.uint8(FILL_ALPHA), mask.view(np.uint8) * np.uint8(255))


def _grown(
    mask: Bool[np.ndarray, "height width"], pixels: int
) -> Bool[np.ndarray, "height width"]:
    """A mask with what is at most so many steps up, down or to a side of it."""
    for _ in range(pixels):
        inner, mask = mask, mask.copy()
        mask[1:] |= inner[:-1]
        mask[:-1] |= inner[1:]
        mask[:, 1:] |= inner[:, :-1]
        mask[:, :-1] |= inner[:, 1:]
    return mask


def paint_clip(
    frames: UInt8[np.ndarray, "time height width 3"],
    instances: Sequence[Instance],
    mask_size: tuple[int, int],
    scale: int,
) -> UInt8[np.ndarray, "time tall wide 3"]:
    """A small clip enlarged by a whole factor, with instances in smooth outlines.

    Args:
        frames: of the clip.
        instances: with a mask for each of them.
        mask_size: height and width of the masks, in pixels.
        scale: how many times larger the picture is than the frames.
    """
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    if not instances:
        size, resample = (width, height), Image.Resampling.LANCZOS
        return np.stack([np.asarray(Image.fromarray(f).resize(size, resample)) for f in frames])
    # Drawn at twice the size: what is made smaller has no hard edges.
    line = max(round(1.5 * scale), 1)
    painter = Painter(instances, mask_size, (2 * height, 2 * width), line)
    pictures = []
    for index, pixels in enumerate(frames):
        picture = Image.fromarray(pixels).resize(
            (2 * width, 2 * height), Image.Resampling.LANCZOS
        )
        painter.paint(picture, index)
        pictures.append(np.asarray(picture.reduce(2)))
    return np.stack(pictures)


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


@functools.lru_cache(maxsize=1024)
def text_picture(
    text: str, letters: int, ink: Colour, ground: Colour, width: int | None = None
) -> Image.Image:
    """A line of text on a little ground, at most `width` pixels wide; not to be drawn on."""
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
