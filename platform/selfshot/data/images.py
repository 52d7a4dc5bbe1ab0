"""Frames that are image files: the only module that reads one.

Every reader of images comes through here, so that a frame looks the same wherever it is used: the
EXIF orientation is applied, deep pixels are scaled to 8 bits, and what cannot be read rightly is
refused with its reason.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from selfshot.data.video import VideoError
from selfshot.errors import refuse_outage

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""How the name of an image ends, in letters of either case."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for bytes that are wrong, as fuzzing found."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_ORIENTATION = ExifTags.Base.Orientation
_BITS, _PHOTOMETRIC = TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION


def is_image(name: str | Path) -> bool:
    """Whether a file's name ends as an image's does."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def image_names(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """Names of the images in a folder in natural order: 2.jpg comes before 10.jpg.

    Hidden files are left out: macOS writes `._0.jpg` beside `0.jpg`.

    Raises:
        VideoError: the folder cannot be read, or two names have no order, as 1.jpg and 01.jpg.
        StorageError: its disk fails.
    """
    try:
        names = [
            one.name
            for one in folder.iterdir()
            if one.suffix.lower() in suffixes and not one.name.startswith(".")
        ]
    except OSError as error:
        refuse_outage(error, folder)
        raise VideoError(f"the folder cannot be read: {error.strerror}", folder) from None
    by_key: dict[tuple[str | int, ...], str] = {}
    for name in sorted(names):
        other = by_key.setdefault(natural_key(name), name)
        if other != name:
            raise VideoError(
                f"{other} and {name} are the same frame by their numbers; remove or rename one",
                folder,
            )
    return [by_key[key] for key in sorted(by_key)]


def natural_key(name: str) -> tuple[str | int, ...]:
    """Sorts names by the numbers in them, without regard to case and suffix."""
    parts = re.split(r"([0-9]+)", Path(name).stem.casefold())
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def is_sorted_as_text(names: Sequence[str]) -> bool:
    """Whether frames are listed as 0, 1, 10, 2: by their letters, and not by their numbers."""
    return list(names) == sorted(names) and list(names) != sorted(names, key=natural_key)


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width of an image with its orientation applied, from its header.

    Raises:
        VideoError: the image is missing or cannot be read.
    """
    with _opened(path) as image:
        return _size(image)


def read_image(
    path: Path | str, height: int, width: int, expected: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """An image, resized, as RGB.

    A JPEG that is at least twice as large is shrunk while it is decoded. Of an image with alpha
    the colours are taken as they are; 16 bits are scaled to 8.

    Args:
        path: the file.
        height: of the array given back, in pixels.
        width: of the array given back, in pixels.
        expected: height and width that the image must have; none: any.

    Raises:
        VideoError: the image is missing, cannot be decoded, has another size, is an animation, or
            has pixels without a known white.
    """
    with _opened(path) as image:
        size = _size(image)
        if expected is not None and size != expected:
            orientation = image.getexif().get(_ORIENTATION, 1)
            turned = f" (EXIF orientation {orientation} applied)" if orientation != 1 else ""
            raise VideoError(
                f"the frame is {size[1]} × {size[0]} pixels{turned} and its video is "
                f"{expected[1]} × {expected[0]} (width × height)",
                path,
            )
        stored = (width, height) if size == image.size[::-1] else (height, width)
        image.draft("RGB", stored)
        rgb = _as_rgb(image)
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return np.asarray(rgb)


def read_indices(path: Path | str) -> UInt8[np.ndarray, "height width"]:
    """The palette indices of an indexed PNG: the numbers of its objects.

    Raises:
        VideoError: the image is missing, cannot be decoded, or has no palette.
    """
    with _opened(path) as image:
        if image.mode != "P":
            raise VideoError(
                f"an image of mode {image.mode} is not allowed (an indexed PNG, mode P)", path
            )
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image)


def _size(image: Image.Image) -> tuple[int, int]:
    """Height and width with the orientation applied. Pillow has turned a TIFF's already."""
    width, height = image.size
    turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)


def _as_rgb(image: Image.Image) -> Image.Image:
    """The upright image in 8 bits a channel."""
    # Before the pixels are loaded: Pillow drops a TIFF's tags with them.
    white, inverted = 2**16 - 1, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        white = 2 ** tags.get(_BITS, (16,))[0] - 1
        inverted = tags.get(_PHOTOMETRIC) == 0
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32) * 255 // white
        return Image.fromarray((255 - grey if inverted else grey).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floats"
        raise ValueError(f"32-bit {kind} have no known white; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """An image of one picture; what is wrong with it is a VideoError."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            count = getattr(image, "n_frames", 1)
            # A camera's JPEG may hold a preview beside the picture.
            if count > 1 and image.format not in ("JPEG", "MPO"):
                raise ValueError(f"it holds {count} pictures, and a frame is one; save it as one")
            yield image
    except VideoError:
        raise
    except UnidentifiedImageError:
        empty = not Path(path).stat().st_size
        formats = ", ".join(_FORMATS)
        reason = "the file is empty" if empty else f"it is cut short, or no image ({formats})"
        raise VideoError(reason, path) from None
    except FileNotFoundError:
        hint = "; write / in its name, not \\" if "\\" in str(path) else ""
        raise VideoError(f"no such image{hint}", path) from None
    except _BROKEN as error:
        refuse_outage(error, path)
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"the image cannot be read: {reason}", path) from error
