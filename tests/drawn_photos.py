"""Photos that a test draws: coloured shapes on textured grounds, with masks in COCO's form.

Grounds are grey and dim, and shapes have colours, so a pixel tells which shape it is of.
"""

from __future__ import annotations

import colorsys
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from selfshot.ops.masks import encode_rle

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Something in a photo.

    Attributes:
        name: of its class.
        box: left, top, width and height in pixels.
        colour: of all its pixels.
        form: `box`, which is annotated by a polygon, or `ellipse`, by an RLE.
        crowd: whether it is annotated as one.
    """

    name: str
    box: tuple[int, int, int, int]
    colour: Colour
    form: str = "ellipse"
    crowd: bool = False

    def mask(self, height: int, width: int) -> np.ndarray:
        """Its pixels, were there nothing before it."""
        left, top, across, down = self.box
        x, y = np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None]
        if self.form == "box":
            return (x > left) & (x < left + across) & (y > top) & (y < top + down)
        right, below = (x - left - across / 2) / (across / 2), (y - top - down / 2) / (down / 2)
        return right**2 + below**2 <= 1

    def polygon(self) -> list[list[int]]:
        """Its corners in COCO's form."""
        left, top, across, down = self.box
        right, bottom = left + across, top + down
        return [[left, top, right, top, right, bottom, left, bottom]]


def colour(hue: float) -> Colour:
    """A bright colour; `hue` from 0 to 1."""
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 1, 1))
    return red, green, blue


def paint(
    height: int, width: int, shapes: Sequence[Shape], *, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pixels uint8 (h, w, 3) and each shape's visible mask; later shapes are in front."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height, width))
    smooth = ndimage.gaussian_filter(noise, (height / 12, width / 12), mode="wrap")
    ground = 70 + 25 * smooth / (smooth.std() + 1e-9) + rng.normal(0, 3, (height, width))
    pixels = np.repeat(ground.clip(20, 140)[..., None], 3, 2).astype(np.uint8)
    masks = [shape.mask(height, width) for shape in shapes]
    for place, shape in enumerate(shapes):
        pixels[masks[place]] = shape.colour
        for before in range(place):
            masks[before] = masks[before] & ~masks[place]
    return pixels, masks


def annotation(shape: Shape, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    """A shape in COCO's form, but for its ids."""
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
    whole = shape.form == "box" and mask.sum() == shape.box[2] * shape.box[3]
    return {
        "segmentation": shape.polygon() if whole and not shape.crowd else encode_rle(mask),
        "bbox": box,
        "area": float(mask.sum()),
        "iscrowd": int(shape.crowd),
        **more,
    }


def write_photos(
    root: Path,
    photos: Mapping[str, tuple[int, int, Sequence[Shape]]],
    categories: Sequence[str],
    *,
    seed: int = 0,
) -> Path:
    """Write photos, given by file name as height, width and shapes; returns the instances JSON.

    Ids of photos go from 1 on, in their order. The images are in `root/images`.
    """
    (root / "images").mkdir(parents=True)
    numbers = {name: 7 * place + 3 for place, name in enumerate(categories)}
    document: dict[str, Any] = {
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "images": [],
        "annotations": [],
    }
    for number, (name, (height, width, shapes)) in enumerate(photos.items(), start=1):
        pixels, masks = paint(height, width, shapes, seed=1000 * seed + number)
        Image.fromarray(pixels).save(root / "images" / name, quality=98, subsampling=0)
        document["images"].append(
            {"id": number, "file_name": name, "height": height, "width": width}
        )
        for shape, mask in zip(shapes, masks, strict=True):
            if mask.any():
                ids = {"image_id": number, "category_id": numbers[shape.name]}
                ids["id"] = len(document["annotations"]) + 1
                document["annotations"].append(annotation(shape, mask, **ids))
    (root / "instances.json").write_text(json.dumps(document))
    return root / "instances.json"


def pixels_like(frames: np.ndarray, wanted: Colour, within: float = 60) -> np.ndarray:
    """Pixels uint8 (…, 3) that are near a colour, bool (…)."""
    apart: np.ndarray = np.linalg.norm(frames.astype(float) - wanted, axis=-1) < within
    return apart


def nearest_colours(
    frames: np.ndarray, colours: Sequence[Colour], share: float = 0.5
) -> np.ndarray:
    """Which of some bright colours makes more than a share of each pixel: 0 for none, else from 1.

    A share of a bright colour in grey is the pixel's chroma, and the rest of it is its hue.
    """
    values = frames.astype(float)
    least = values.min(-1, keepdims=True)
    chroma = values.max(-1, keepdims=True) - least
    hues = 255 * (values - least) / np.maximum(chroma, 1)
    apart = np.linalg.norm(hues[..., None, :] - np.array(colours, float), axis=-1)
    found: np.ndarray = np.where(chroma[..., 0] > 255 * share, apart.argmin(-1) + 1, 0)
    return found
