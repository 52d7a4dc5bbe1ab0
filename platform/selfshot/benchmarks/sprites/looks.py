"""Looks: how one object of a class is coloured, textured, lit and deformed."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image
from scipy import ndimage

from selfshot.benchmarks.sprites.classes import BASE_SIZE, shape

_GRID = np.stack(np.meshgrid(*[np.linspace(-1, 1, BASE_SIZE, dtype=np.float32)] * 2, indexing="ij"))


def _colour(rng: np.random.Generator, saturation: tuple, value: tuple) -> np.ndarray:
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return np.asarray(rgb, np.float32)


def smooth_noise(rng: np.random.Generator, cells: int, size: int | tuple[int, int]) -> np.ndarray:
    """Noise of `cells` × `cells` random values, enlarged bicubically, float32 about [0, 1]."""
    height, width = (size, size) if isinstance(size, int) else size
    small = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _pattern(rng: np.random.Generator) -> np.ndarray:
    """A texture in [0, 1] that mixes an object's two colours."""
    y, x = _GRID
    kind = rng.integers(7)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    frequency = rng.uniform(3, 7)
    if kind == 0:
        return np.full_like(x, rng.choice([0.0, 0.15]))
    if kind == 1:
        return np.clip(along * 0.6 + 0.5, 0, 1)
    if kind == 2:
        return np.clip(np.hypot(x - rng.uniform(-0.4, 0.4), y - rng.uniform(-0.4, 0.4)), 0, 1)
    if kind == 3:
        return np.clip(0.5 + 2 * np.sin(along * frequency * 2), 0, 1)
    if kind == 4:
        checks = np.sin(along * frequency * 2) * np.sin(across * frequency * 2)
        return np.clip(0.5 + 2.5 * checks, 0, 1)
    if kind == 5:
        waves = np.sin(along * frequency * 2.4) * np.sin(across * frequency * 2.4)
        return np.clip(4 * (waves - 0.45), 0, 1)
    return np.clip((smooth_noise(rng, int(rng.integers(5, 12)), BASE_SIZE) - 0.5) * 2.5 + 0.5, 0, 1)


def look(rng: np.random.Generator, name: str) -> Image.Image:
    """Draw one object of a class with a look of its own.

    The stroke weight, a smooth deformation, two colours, a texture, the direction of the
    light and an outline are drawn from `rng`, so neither colour nor texture shows the class.

    Args:
        rng: source of the look.
        name: class, a key of `GLYPHS`.

    Returns:
        A premultiplied RGBA image of BASE_SIZE × BASE_SIZE pixels.
    """
    body, ink = shape(name)
    has_lines = ink.sum() < 0.75 * body.sum()
    weight = rng.integers(-1, 2)
    if weight:
        thicken = ndimage.grey_dilation if weight > 0 else ndimage.grey_erosion
        size = 2 * abs(int(weight)) + 1
        thick = thicken(body, size=(size, size))
        # Thin shapes would vanish when eroded: keep those as they are.
        if thick.sum() > 0.55 * body.sum():
            body = thick
        ink = np.minimum(ink, body)

    strength = rng.uniform(1.0, 3.5)
    field = [(smooth_noise(rng, 4, BASE_SIZE) - 0.5) * 2 * strength for _ in range(2)]
    rows, columns = np.mgrid[:BASE_SIZE, :BASE_SIZE].astype(np.float32)
    coordinates = np.stack([rows + field[0], columns + field[1]])
    body, ink = (
        np.clip(ndimage.map_coordinates(plane, coordinates, order=1), 0, 1) for plane in (body, ink)
    )

    first = _colour(rng, (0.35, 1.0), (0.55, 1.0))
    second = _colour(rng, (0.2, 1.0), (0.35, 1.0))
    second = first + (second - first) * np.float32(rng.uniform(0.25, 0.8))
    pattern = _pattern(rng)[..., None]
    rgb = first * (1 - pattern) + second * pattern

    # A line drawing keeps its lines, dark on a bright body or light on a dark one; a
    # silhouette has none.
    lines = ink if has_lines else np.zeros_like(ink)
    stroke = np.float32(0.12) if rgb.mean() > 0.45 else np.float32(0.95)
    rgb = rgb * (1 - lines[..., None]) + stroke * lines[..., None]

    angle = rng.uniform(0, 2 * np.pi)
    dome = ndimage.gaussian_filter(body, 5)
    slope_y, slope_x = np.gradient(dome)
    shade = 1 + rng.uniform(3, 9) * (slope_x * np.cos(angle) + slope_y * np.sin(angle))
    light = shade * rng.uniform(0.8, 1.1) + 0.15 * (dome - 0.5)
    rgb = np.clip(rgb * np.clip(light, 0.35, 1.6)[..., None], 0, 1)

    alpha = body
    border = int(rng.integers(0, 4))
    if border:
        alpha = np.maximum(body, ndimage.grey_dilation(body, size=(2 * border + 1,) * 2))
        edge = np.float32(rng.choice([0.05, 0.1, 0.97]))
        rgb = rgb * body[..., None] + edge * (1 - body[..., None])
    rgba = np.concatenate([rgb * alpha[..., None], alpha[..., None]], axis=-1)
    pixels = (rgba * 255 + 0.5).astype(np.uint8)
    # "RGBa" says that the colours are premultiplied; called "RGBA", Pillow would multiply them
    # by alpha again when it resizes, and leave a bright fringe.
    return Image.frombuffer("RGBa", pixels.shape[1::-1], pixels.tobytes(), "raw", "RGBa", 0, 1)
