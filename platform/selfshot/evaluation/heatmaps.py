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


def _columns(
    frames: UInt8[np.ndarray, "time height width 3"],
    maps: Sequence[tuple[str, Float[np.ndarray, "time map_height map_width"]]],
) -> list[list[Image.Image]]:
    """For each moment the frame, and under it each map over the frame."""
    height, width = frames.shape[1:3]
    scale = _SIDE / max(height, width)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return [
        [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)]
        + [heat_over(frame, values[t], size) for _, values in maps]
        for t, frame in enumerate(frames)
    ]


def heat_moments(
    frames: UInt8[np.ndarray, "time height width 3"],
    maps: Sequence[tuple[str, Float[np.ndarray, "time map_height map_width"]]],
) -> list[Image.Image]:
    """A picture of each moment: the frame and each map over it, side by side with captions.

    Args:
        frames: of a clip.
        maps: captions, and values of 0 to 1.
    """
    captions = ["frames", *(caption for caption, _ in maps)]
    moments = []
    for column in _columns(frames, maps):
        across, height = column[0].width + _GAP, column[0].height
        moment = Image.new("RGB", (across * len(captions) + _GAP, height + _BAR + _GAP), _GROUND)
        for place, (caption, picture) in enumerate(zip(captions, column, strict=True)):
            moment.paste(text_picture(caption, 13, _INK, _GROUND), (_GAP + place * across, 2))
            moment.paste(picture, (_GAP + place * across, _BAR))
        moments.append(moment)
    return moments


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
    columns = _columns(frames, maps)
    captions = ["frames", *(caption for caption, _ in maps)]
    across, down = columns[0][0].width + _GAP, columns[0][0].height + _BAR + _GAP
    sheet = Image.new("RGB", (across * len(columns) + _GAP, down * len(captions)), _GROUND)
    for row, caption in enumerate(captions):
        sheet.paste(text_picture(caption, 13, _INK, _GROUND), (_GAP, row * down + 2))
        for t, column in enumerate(columns):
            sheet.paste(column[row], (_GAP + t * across, row * down + _BAR))
    film = Gif(stem.with_suffix(".gif"), fps)
    for moment in heat_moments(frames, maps):
        film.add(moment)
    film.close()
    sheet.save(stem.with_suffix(".png"))
    return stem.with_suffix(".png"), stem.with_suffix(".gif")
