"""The object classes of sprites: symbols of the DejaVu font that matplotlib ships."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

GLYPHS: dict[str, int] = {
    "sun": 0x2600, "cloud": 0x2601, "umbrella": 0x2602, "snowman": 0x2603,
    "star": 0x2605, "telephone": 0x260E, "teacup": 0x2615, "shamrock": 0x2618,
    "pointing_hand": 0x261B, "raised_finger": 0x261D, "skull": 0x2620, "radiation": 0x2622,
    "biohazard": 0x2623, "winged_staff": 0x2624, "ankh": 0x2625, "peace": 0x262E,
    "yin_yang": 0x262F, "ship_wheel": 0x2638, "moon": 0x263E,
    "ram": 0x2648, "bull": 0x2649, "scorpion": 0x264F,  "fishes": 0x2653,
    "king": 0x265A, "queen": 0x265B, "rook": 0x265C, "bishop": 0x265D, "knight": 0x265E,
    "pawn": 0x265F, "spade": 0x2660, "club": 0x2663, "heart": 0x2665, "diamond": 0x2666,
    "note": 0x266A, "beamed_notes": 0x266C, "sharp": 0x266F,
    "recycling": 0x267B, "wheelchair": 0x267F, "die": 0x2684, "flag": 0x2691,
    "hammers": 0x2692, "anchor": 0x2693, "swords": 0x2694, "scales": 0x2696,
    "flower": 0x2698, "gear": 0x2699, "atom": 0x269B, "lily": 0x269C,
    "warning": 0x26A0, "lightning": 0x26A1, "urn": 0x26B1, "airplane": 0x2708,
    "envelope": 0x2709, "victory": 0x270C, "pencil": 0x270F, "nib": 0x2712, "tick": 0x2714,
    "times": 0x2716, "pattee": 0x2720, "snowflake": 0x2744, "blossom": 0x273F,
    "ivy": 0x2766, "arrowhead": 0x27A4, "mouse": 0x1F42D, "cow": 0x1F42E, "cat": 0x1F431,
    "monkey": 0x1F435, "pentagon": 0x2B1F, "triangle": 0x25B2, "half_moon": 0x25D7,
    "pinwheel": 0x2707, "house": 0x2302,
}  # fmt: skip

BASE_SIZE = 96
"""Side, in pixels, of the square on which a class's shape is kept."""


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), 160)


@functools.cache
def shape(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The shape of a class: its body (holes filled) and its ink (the lines drawn on it).

    Args:
        name: a key of `GLYPHS`.

    Returns:
        Two float32 arrays (BASE_SIZE, BASE_SIZE) in [0, 1]; the body's bounding box is
        centred and its longer side is 80% of the square.
    """
    glyph = chr(GLYPHS[name])
    left, top, right, bottom = _font().getbbox(glyph)
    image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(image).text((4 - left, 4 - top), glyph, font=_font(), fill=255)
    image = image.crop(image.getbbox())
    scale = 0.8 * BASE_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("L", (BASE_SIZE, BASE_SIZE))
    canvas.paste(
        image.resize(size, Image.Resampling.LANCZOS),
        ((BASE_SIZE - size[0]) // 2, (BASE_SIZE - size[1]) // 2),
    )
    ink = np.asarray(canvas, np.float32) / 255
    # Line drawings (a teacup, a mouse) become solid things that carry lines; closing first
    # joins strokes that nearly touch.
    closed = ndimage.binary_closing(np.pad(ink > 0.35, 6), iterations=3)
    solid = ndimage.binary_fill_holes(closed)[6:-6, 6:-6].astype(np.float32)
    body = np.maximum(ndimage.gaussian_filter(solid, 0.6), ink)
    return body, ink
