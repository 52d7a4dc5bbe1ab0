"""Pictures of videos and masks: arrays in, arrays or encoded bytes out. Nothing here reads a file.

Masks are drawn from a smoothed field whose 0.5 level is the edge. The field divided by the length
of its gradient is the distance to the edge in pixels, so fills and outlines stay sharp and
anti-aliased at any enlargement, without the staircase of the small masks the model works on.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

Frames = NDArray[np.uint8]  # (time, height, width, 3)
Masks = NDArray[np.bool_]  # (instances, time, height, width)
Colours = NDArray[np.uint8]  # (instances, 3)

# Bright enough for dark videos, saturated enough for light ones, apart for colour-blind eyes in
# the first four, which are nearly always enough.
PALETTE: Colours = np.array(
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

# In mask pixels. The wide blur takes away the staircase; the narrow one, lowered so that it shows
# only there, keeps what is a pixel or two wide and would vanish in the wide one.
_WIDE_BLUR, _NARROW_BLUR, _NARROW_DROP = 0.9, 0.3, 0.2
_SAME_OBJECT_IOU = 0.1  # below it a prediction is another object than the one it is compared to


def palette(count: int) -> Colours:
    """The first `count` colours, cycling when there are more instances than colours."""
    return PALETTE[np.arange(count) % len(PALETTE)]


def overlay(
    frames: Frames,
    masks: Masks,
    scores: Sequence[float] | NDArray[np.floating] | None = None,
    colours: Colours | None = None,
    scale: int = 3,
) -> Frames:
    """Draws instance masks over an enlarged video.

    Args:
        frames: uint8, (T, H, W, 3).
        masks: bool, (n, T, H, W); n may be 0.
        scores: one in [0, 1] for each instance; weaker ones are drawn fainter. None: all strong.
        colours: (n, 3), each instance's own. None: from the palette, in the order in which
            instances appear (first frame, then from left to right), so that the order of the
            array does not matter.
        scale: how many times larger the picture is than the frames.

    Returns:
        uint8, (T, H·scale, W·scale, 3).

    Raises:
        ValueError: If shapes do not go together; the message names both.
    """
    _check_frames(frames)
    masks = np.asarray(masks, dtype=bool)
    if masks.ndim != 4 or masks.shape[1:] != frames.shape[:3]:
        raise ValueError(
            f"masks: shape {masks.shape} is not allowed "
            f"((n, T, H, W) with T, H, W = {frames.shape[:3]} of the frames)"
        )
    if scale < 1:
        raise ValueError(f"scale: {scale} is not allowed (an integer ≥ 1)")
    strengths = _strengths(scores, len(masks))
    order = _order_of_appearance(masks)
    if colours is None:
        colours = np.empty((len(masks), 3), dtype=np.uint8)
        colours[order] = palette(len(masks))
    elif np.shape(colours) != (len(masks), 3):
        raise ValueError(
            f"colours: shape {np.shape(colours)} is not allowed (({len(masks)}, 3): one RGB "
            "triple for each instance)"
        )
    picture = enlarge(frames, scale).astype(np.float32)
    # Large instances first, so that a small one in front of them stays visible.
    areas = masks.sum(axis=(1, 2, 3))
    for instance in sorted(order, key=lambda i: -areas[i]):
        if areas[instance]:
            distance = _distance_to_edge(masks[instance], scale)
            _paint(picture, distance, colours[instance], strengths[instance], scale)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def enlarge(frames: Frames, scale: int) -> Frames:
    """Frames `scale` times larger, smoothly (Lanczos)."""
    _check_frames(frames)
    if scale == 1:
        return frames
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    resample = Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(f).resize(size, resample)) for f in frames])


def track_ious(masks: Masks, reference_masks: Masks) -> NDArray[np.float64]:
    """IoU over space and time of every instance with every reference: (n, m)."""
    if not len(masks) or not len(reference_masks):
        return np.zeros((len(masks), len(reference_masks)))
    flat = masks.reshape(len(masks), -1).astype(np.float64)
    reference = reference_masks.reshape(len(reference_masks), -1).astype(np.float64)
    shared = flat @ reference.T
    union = flat.sum(axis=1)[:, None] + reference.sum(axis=1)[None, :] - shared
    return np.asarray(shared / np.maximum(union, 1.0))


def colours_like(masks: Masks, reference_masks: Masks) -> Colours:
    """Colours that say which reference each instance is: the same object has the same colour.

    Args:
        masks: (n, T, H, W), for example predictions.
        reference_masks: (m, T, H, W), for example the truth, as `overlay` would colour it.

    Returns:
        (n, 3). An instance that overlaps no reference gets a colour that no reference has (while
        the palette lasts).
    """
    reference_rank = np.empty(len(reference_masks), dtype=int)
    reference_rank[_order_of_appearance(reference_masks)] = np.arange(len(reference_masks))
    ious = track_ious(masks, reference_masks)
    rank = np.full(len(masks), -1)
    for instance, reference in zip(*linear_sum_assignment(-ious), strict=True):
        if ious[instance, reference] >= _SAME_OBJECT_IOU:
            rank[instance] = reference_rank[reference]
    others = [i for i in _order_of_appearance(masks) if rank[i] < 0]
    rank[others] = len(reference_masks) + np.arange(len(others))
    colours: Colours = PALETTE[rank % len(PALETTE)]
    return colours


def animation(
    frames: Frames, fps: float, *, kind: Literal["webp", "gif"] = "webp", quality: int = 80
) -> bytes:
    """Encodes frames as a moving picture that loops for ever.

    Args:
        frames: uint8, (T, H, W, 3).
        fps: frames in a second, > 0.
        kind: "webp" (small, full colour) or "gif" (256 colours, opens anywhere).
        quality: of WebP, 0 to 100.
    """
    _check_frames(frames)
    if not fps > 0:
        raise ValueError(f"fps: {fps} is not allowed (a number > 0)")
    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": rest, "duration": round(1000 / fps), "loop": 0}
    if kind == "webp":
        # PIL merges equal neighbours only in GIF; `minimize_size` is slow and gains little here.
        first.save(buffer, "WEBP", quality=quality, method=2, **options)
    else:
        first.save(buffer, "GIF", disposal=2, **options)
    return buffer.getvalue()


def still(frame: NDArray[np.uint8], *, quality: int = 75) -> bytes:
    """One frame (H, W, 3) as a WebP picture, for readers who prefer that nothing moves."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def contact_sheet(
    query_frames: Frames,
    supports: Sequence[Frames],
    results: Mapping[str, Frames],
    *,
    correct: Sequence[bool | None] | None = None,
    frame: int | None = None,
    height: int = 160,
) -> bytes:
    """A query, its supports and its results in a row, as one PNG.

    Args:
        query_frames: (T, H, W, 3).
        supports: clips of any size; each shows its middle frame.
        results: caption → drawn frames (what `overlay` returns), in the order to show them.
        correct: for each support, whether its class is the query's (a green or red border), or
            None where it is not known (grey).
        frame: which frame of the query and the results; None: the middle one.
        height: of each panel, in pixels.
    """
    correct = [None] * len(supports) if correct is None else list(correct)
    if len(correct) != len(supports):
        raise ValueError(f"correct: {len(correct)} values for {len(supports)} supports")
    borders = {True: (46, 160, 87), False: (214, 69, 65), None: (150, 150, 150)}
    panels = [_panel("query", query_frames, frame, height, None)]
    for number, (clip, right) in enumerate(zip(supports, correct, strict=True), start=1):
        panels.append(_panel(f"support {number}", clip, None, height, borders[right]))
    panels += [_panel(caption, clip, frame, height, None) for caption, clip in results.items()]
    gap = 8
    width = sum(panel.width for panel in panels) + gap * (len(panels) + 1)
    sheet = Image.new("RGB", (width, panels[0].height + 2 * gap), "white")
    left = gap
    for panel in panels:
        sheet.paste(panel, (left, gap))
        left += panel.width + gap
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _panel(
    caption: str,
    frames: Frames,
    frame: int | None,
    height: int,
    border: tuple[int, int, int] | None,
) -> Image.Image:
    """One captioned picture of a contact sheet."""
    _check_frames(frames)
    index = len(frames) // 2 if frame is None else min(max(frame, 0), len(frames) - 1)
    picture = Image.fromarray(frames[index])
    width = max(round(picture.width * height / picture.height), 1)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    if border is not None:
        ImageDraw.Draw(picture).rectangle((0, 0, width - 1, height - 1), outline=border, width=4)
    panel = Image.new("RGB", (width, height + 20), "white")
    panel.paste(picture, (0, 0))
    font = ImageFont.load_default(size=12)
    ImageDraw.Draw(panel).text((2, height + 4), caption, fill=(40, 40, 40), font=font)
    return panel


def _check_frames(frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"frames: {frames.dtype} of shape {frames.shape} is not allowed "
            "(uint8 of shape (T, H, W, 3), T ≥ 1)"
        )


def _strengths(
    scores: Sequence[float] | NDArray[np.floating] | None, count: int
) -> NDArray[np.float64]:
    """How strongly each instance is drawn, in [0.4, 1]."""
    if scores is None:
        return np.ones(count)
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (count,):
        raise ValueError(f"scores: shape {values.shape} is not allowed (({count},), as the masks)")
    return np.asarray(0.4 + 0.6 * np.clip(np.nan_to_num(values, nan=0.0), 0.0, 1.0))


def _order_of_appearance(masks: Masks) -> list[int]:
    """Instances by first frame, then left to right, top to bottom; empty ones last."""

    def key(instance: int) -> tuple[float, ...]:
        times, rows, columns = np.nonzero(masks[instance])
        if not len(times):
            return (np.inf, 0.0, 0.0, 0.0)
        now = times == times[0]
        return (times[0], columns[now].mean(), rows[now].mean(), len(times))

    return sorted(range(len(masks)), key=key)


def _distance_to_edge(mask: NDArray[np.bool_], scale: int) -> NDArray[np.float32]:
    """Signed distance to the mask's edge in enlarged pixels, negative inside: (T, H', W')."""
    field = mask.repeat(scale, axis=1).repeat(scale, axis=2).astype(np.float32)
    # Padding is the nearest edge's value, so a mask that leaves the frame is not closed there.
    wide, narrow = (
        ndimage.gaussian_filter(field, (0.0, blur * scale, blur * scale), mode="nearest")
        for blur in (_WIDE_BLUR, _NARROW_BLUR)
    )
    field = np.maximum(wide, narrow - _NARROW_DROP)
    slope_y, slope_x = np.gradient(field, axis=(1, 2))
    slope = np.hypot(slope_y, slope_x)
    return np.asarray((0.5 - field) / np.maximum(slope, 1e-3), dtype=np.float32)


def _paint(
    picture: NDArray[np.float32],
    distance: NDArray[np.float32],
    colour: NDArray[np.uint8],
    strength: float,
    scale: int,
) -> None:
    """Blends a fill, a dark halo and a bright outline into the picture, in place."""
    line = max(0.75 * scale, 1.0)  # width in enlarged pixels
    fill = 0.42 * strength * np.clip(0.5 - distance, 0.0, 1.0)
    halo = 0.5 * strength * np.clip(1.5 + line / 2 - np.abs(distance), 0.0, 1.0)
    edge = strength * np.clip(0.5 + line / 2 - np.abs(distance), 0.0, 1.0)
    for alpha, paint in ((fill, colour), (halo, np.zeros(3)), (edge, colour)):
        weight = alpha[..., None]
        picture *= 1.0 - weight
        picture += weight * np.asarray(paint, dtype=np.float32)
