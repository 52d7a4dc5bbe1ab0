"""Attention over frames, drawn as heat: a sheet, and an animation of before beside after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image

from selfshot.evaluation.rendering.animations import Animation
from selfshot.evaluation.rendering.sheets import beside, captioned, contact_sheet
from selfshot.models.attention_maps import attention_maps
from selfshot.models.features import SupportFeatures
from selfshot.models.vis import SelfShotVIS

_SIDE = 160
_FPS = 4.0
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
) -> list[Image.Image]:
    """Write `stem`.png, a row for the frames and for each map, and `stem`.gif, side by side.

    Args:
        frames: of a clip.
        maps: captions, and values of 0 to 1.
        stem: path without a suffix.

    Returns:
        the GIF's frames.
    """
    height, width = frames.shape[1:3]
    scale = _SIDE / max(height, width)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    rows = [
        ("frames", [Image.fromarray(one).resize(size, Image.Resampling.BILINEAR) for one in frames])
    ]
    for caption, values in maps:
        pairs = zip(frames, values, strict=True)
        rows.append((caption, [heat_over(frame, heat, size) for frame, heat in pairs]))
    moments = [
        beside([captioned(caption, pictures[t]) for caption, pictures in rows])
        for t in range(len(frames))
    ]
    contact_sheet(rows).save(stem.with_suffix(".png"))
    with Animation(stem.with_suffix(".gif"), "gif", _FPS) as animation:
        for moment in moments:
            animation.add(moment)
    return moments


@torch.inference_mode()
def draw_attention(
    model: SelfShotVIS,
    frames: UInt8[np.ndarray, "time height width 3"],
    supports: SupportFeatures | None,
    stem: Path,
) -> list[Image.Image]:
    """Figure 5: where the instances in a clip look, before and after the fuser.

    Args:
        model: in evaluation mode, on any device.
        frames: of the clip.
        supports: what the fuser reads; None: nothing.
        stem: of the files, as for `draw_heatmaps`.

    Returns:
        the GIF's frames.
    """
    query = model.encode(torch.from_numpy(frames)[None], is_support=False)
    before, after = (one[0].cpu().numpy() for one in attention_maps(model, query, supports))
    return draw_heatmaps(frames, [("before the fuser", before), ("after it", after)], stem)
