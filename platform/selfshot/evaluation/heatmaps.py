"""Attention over frames, drawn as heat: a sheet and a film that shows before beside after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image

from selfshot.evaluation.drawing import text_picture
from selfshot.evaluation.films import Gif

_GROUND, _INK = (24, 26, 29), (228, 230, 233)
_SIDE, _GAP, _BAR = 160, 6, 22
_STRONGEST = 0.75  # share of the colour where the attention is greatest


def heat_over(
    frame: UInt8[np.ndarray, "height width 3"],
    heat: Float[np.ndarray, "map_height map_width"],
    size: tuple[int, int],
) -> Image.Image:
    """A frame, fitted to (width, height), with a map of 0 to 1 over it."""
    picture = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    large = Image.fromarray(np.asarray(heat, np.float32)).resize(size, Image.Resampling.BILINEAR)
    value = np.asarray(large).clip(0, 1)
    colour = colormaps["inferno"](value)[..., :3] * 255
    alpha = _STRONGEST * np.sqrt(value)[..., None]
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32)
    return Image.fromarray((grey * (1 - alpha) + colour * alpha).round().astype(np.uint8))


def draw_heatmaps(
    frames: UInt8[np.ndarray, "time height width 3"],
    maps: Sequence[tuple[str, Float[np.ndarray, "time map_height map_width"]]],
    stem: Path,
    *,
    fps: float = 4.0,
) -> tuple[Path, Path]:
    """Write `stem`.png, a row for the frames and for each map, and `stem`.gif, side by side.

    Args:
        frames: of a clip.
        maps: captions, and values of 0 to 1.
        stem: path without a suffix.
        fps: of the film.

    Returns:
        both paths.
    """
    height, width = frames.shape[1:3]
    scale = _SIDE / max(height, width)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    columns = [
        [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)]
        + [heat_over(frame, values[t], size) for _, values in maps]
        for t, frame in enumerate(frames)
    ]
    captions = ["frames", *(caption for caption, _ in maps)]
    across, down = size[0] + _GAP, size[1] + _BAR + _GAP
    sheet = Image.new("RGB", (across * len(columns) + _GAP, down * len(captions)), _GROUND)
    film = Gif(stem.with_suffix(".gif"), fps)
    for t, column in enumerate(columns):
        moment = Image.new("RGB", (across * len(captions) + _GAP, down), _GROUND)
        for row, (caption, picture) in enumerate(zip(captions, column, strict=True)):
            text = text_picture(caption, 13, _INK, _GROUND)
            moment.paste(text, (_GAP + row * across, 2))
            moment.paste(picture, (_GAP + row * across, _BAR))
            if not t:
                sheet.paste(text, (_GAP, row * down + 2))
            sheet.paste(picture, (_GAP + t * across, row * down + _BAR))
        film.add(moment)
    film.close()
    sheet.save(stem.with_suffix(".png"))
    return stem.with_suffix(".png"), stem.with_suffix(".gif")
