"""Scenes: objects that move, overlap and leave the frame over a background."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from selfshot.benchmarks.sprites.classes import BASE_SIZE
from selfshot.benchmarks.sprites.looks import look, smooth_noise

MIN_VISIBLE_SHARE = 0.12
"""An object of which less than this share of its whole is seen in a frame is absent there."""


@dataclasses.dataclass(frozen=True)
class Shot:
    """Rendered frames and the visible mask of every object.

    Attributes:
        frames: uint8 (T, H, W, 3).
        masks: bool (n, T, H, W), the visible part of each object.
        classes: n class names.
    """

    frames: np.ndarray
    masks: np.ndarray
    classes: tuple[str, ...]


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours of a background, calmer than the objects'."""
    base = rng.uniform(0.15, 0.9, 3)
    return np.clip(base + rng.normal(0, 0.16, (count, 3)), 0.03, 0.97).astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A still picture, float32 (height, width, 3) in [0, 1]."""
    kind = rng.integers(5)
    a, b, c = _palette(rng, 3)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    if kind == 0:  # fog
        size = (height, width)
        mix = 0.6 * smooth_noise(rng, 4, size) + 0.4 * smooth_noise(rng, 11, size)
        picture = a + (b - a) * np.clip(mix * 1.8 - 0.4, 0, 1)[..., None]
    elif kind == 1:  # hills under a sky
        picture = a + (b - a) * y[..., None]
        for colour, level in ((c, 0.5), (a * 0.55, 0.72)):
            ridge = level + 0.3 * (smooth_noise(rng, 5, (1, width))[0] - 0.5)
            picture = np.where((y > ridge)[..., None], colour, picture)
        picture = picture + 0.05 * (smooth_noise(rng, 24, (height, width)) - 0.5)[..., None]
    elif kind == 2:  # cloth
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(10, 40)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * frequency)
        picture = a + (b - a) * (0.5 + 0.35 * wave)[..., None]
    elif kind == 3:  # lights out of focus
        canvas = Image.fromarray((np.broadcast_to(a, (height, width, 3)) * 255).astype(np.uint8))
        draw = ImageDraw.Draw(canvas)
        for _ in range(int(rng.integers(6, 14))):
            centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
            radius = rng.uniform(0.04, 0.16) * height
            fill = tuple(int(v * 255) for v in (b if rng.random() < 0.5 else c))
            box = (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius)
            draw.ellipse(box, fill=fill)
        blurred = canvas.filter(ImageFilter.GaussianBlur(height / 50))
        picture = np.asarray(blurred, np.float32) / 255
    else:  # a gradient with a vignette
        angle = rng.uniform(0, 2 * np.pi)
        along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5
        picture = a + (b - a) * along[..., None]
        picture = picture * (1 - 0.7 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]
    return np.clip(picture, 0, 1)


def _path(rng: np.random.Generator, num_frames: int, leaves: bool) -> np.ndarray:
    """Centres along a curve, (T, 2) as (x, y) in shares of the frame."""
    start, bend, end = rng.uniform(0.16, 0.84, (3, 2))
    # A short way, so that an object does not fly across the whole frame each time.
    end = start + (end - start) * rng.uniform(0.3, 1.0)
    if leaves:
        outside = np.array([rng.choice([-0.25, 1.25]), rng.uniform(0.1, 0.9)])
        outside = outside if rng.random() < 0.5 else outside[::-1]
        start, end = (start, outside) if rng.random() < 0.5 else (outside, end)
    t = np.linspace(0, 1, num_frames)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * (0.3 * bend + 0.35 * (start + end)) + t**2 * end


def _paths(rng: np.random.Generator, count: int, num_frames: int) -> list[np.ndarray]:
    """Paths of several objects, each the roomiest of a few, so that most of each is seen."""
    paths: list[np.ndarray] = []
    for _ in range(count):
        leaves = rng.random() < 0.2
        candidates = [_path(rng, num_frames, leaves) for _ in range(6)]
        if paths:
            others = np.stack(paths)
            room = [np.hypot(*(others - c).transpose(2, 0, 1)).mean(1).min() for c in candidates]
            paths.append(candidates[int(np.argmax(room))])
        else:
            paths.append(candidates[0])
    return paths


def _layers(
    rng: np.random.Generator, name: str, side: float, path: np.ndarray, height: int, width: int
) -> np.ndarray:
    """One object in every frame: premultiplied float32 (T, H, W, 4) in [0, 1]."""
    num_frames = len(path)
    pixels = side * min(height, width)
    # Shrink once with a good filter; the affine below then only turns and nudges.
    resolution = int(np.clip(round(pixels * 1.6), 16, BASE_SIZE))
    sprite = look(rng, name).resize((resolution, resolution), Image.Resampling.BOX)
    centres = path * (width, height)
    t = np.linspace(0, 1, num_frames)
    angle = rng.uniform(-0.4, 0.4) + rng.uniform(-0.5, 0.5) * (t - 0.5)
    grow = 1 + rng.uniform(-0.2, 0.2) * (t - 0.5) * 2
    wobble = 1 + rng.uniform(0, 0.12) * np.sin(2 * np.pi * (t * rng.uniform(0.5, 2) + rng.random()))
    aspect = rng.uniform(0.8, 1.25)  # the view: nearer or farther to the side
    shear = rng.uniform(-0.2, 0.2)
    mirror = rng.choice([-1.0, 1.0])
    layers = np.zeros((num_frames, height, width, 4), np.float32)
    for frame in range(num_frames):
        # The glyph's longer side is 80% of its square.
        scale = pixels * grow[frame] / (0.8 * resolution)
        turn = np.array(
            [
                [np.cos(angle[frame]), -np.sin(angle[frame])],
                [np.sin(angle[frame]), np.cos(angle[frame])],
            ]
        )
        view = np.array([[mirror * np.sqrt(aspect), shear], [0, 1 / np.sqrt(aspect)]])
        stretch = np.diag([wobble[frame], 1 / wobble[frame]])
        inverse = np.linalg.inv(turn @ stretch @ view * scale)
        offset = resolution / 2 - inverse @ (centres[frame])
        matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
        drawn = sprite.transform(
            (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        layers[frame] = np.asarray(drawn, np.float32) / 255
    return layers


def shot(
    rng: np.random.Generator,
    objects: list[tuple[str, float]],
    *,
    num_frames: int,
    height: int,
    width: int,
) -> Shot:
    """Render one shot.

    Args:
        rng: source of every choice.
        objects: class and size (share of the shorter side) of each object, in any order;
            who covers whom is drawn at random.
        num_frames: T.
        height: pixels.
        width: pixels.
    """
    margin = 1.25
    still = _background(rng, int(height * margin), int(width * margin))
    slack = np.array([still.shape[0] - height, still.shape[1] - width])
    start, end = rng.uniform(0, slack, (2, 2))
    order = rng.permutation(len(objects))
    stack = [
        _layers(rng, name, side, path, height, width)
        for (name, side), path in zip(objects, _paths(rng, len(objects), num_frames), strict=True)
    ]

    frames = np.empty((num_frames, height, width, 3), np.float32)
    for frame, share in enumerate(np.linspace(0, 1, num_frames)):
        top, left = (start + (end - start) * share).astype(int)
        frames[frame] = still[top : top + height, left : left + width]
    masks = np.zeros((len(objects), num_frames, height, width), bool)
    for i in order:
        alpha = stack[i][..., 3]
        frames = frames * (1 - alpha[..., None]) + stack[i][..., :3]
        covers = alpha >= 0.5
        masks &= ~covers
        masks[i] = covers
    for i in range(len(objects)):
        # What is left of an object is compared with the most that was ever seen of it, so a
        # sliver behind another object, or at the border, does not count as present.
        whole = max(int((stack[i][..., 3] >= 0.5).sum((1, 2)).max()), 1)
        seen = masks[i].sum((1, 2))
        masks[i, seen < MIN_VISIBLE_SHARE * whole] = False

    brightness = rng.uniform(0.85, 1.12)
    grain = rng.normal(0, rng.uniform(0, 0.02), frames.shape).astype(np.float32)
    pixels = np.clip(frames * brightness + grain, 0, 1)
    return Shot((pixels * 255 + 0.5).astype(np.uint8), masks, tuple(name for name, _ in objects))
