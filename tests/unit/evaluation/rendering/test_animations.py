"""Animations: every frame is there, in its colours, for as long as it should be."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from selfshot.evaluation.rendering.animations import FORMATS, Animation

TIME, HEIGHT, WIDTH = 5, 22, 26


def pictures() -> list[Image.Image]:
    frames = np.random.default_rng(0).integers(0, 255, (TIME, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in frames]


def encoded(kind: str, frames: list[Image.Image], fps: float = 10.0) -> io.BytesIO:
    file = io.BytesIO()
    with Animation(file, kind, fps) as animation:
        for frame in frames:
            animation.add(frame)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_every_frame_decodes(kind: str) -> None:
    with Image.open(encoded(kind, pictures())) as image:
        assert image.format == kind.upper()
        assert (image.n_frames, image.size) == (TIME, (WIDTH, HEIGHT))
        assert image.info["loop"] == 0
        image.seek(1)
        image.load()
        assert image.info["duration"] == 100
    with Image.open(encoded(kind, pictures()[:1])) as image:
        assert image.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("size", [(71, 67), (26, 22), (640, 360)])
def test_an_mp4_has_even_sides_and_loses_nothing(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "any.name"
    with Animation(path, "mp4", 12.5) as animation:
        for value in (40, 120, 200):
            animation.add(Image.new("RGB", size, (value,) * 3))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 12.5
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    for value, frame in zip((40, 120, 200), frames, strict=True):
        assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
        assert frame.shape[0] >= size[1] and frame.shape[1] >= size[0]
        assert abs(frame[: size[1] - 8, : size[0] - 8].mean() - value) < 8


def test_webp_keeps_the_colours() -> None:
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    frames[0, ..., 0] = 200
    frames[1, ..., 1] = 200
    with Image.open(encoded("webp", [Image.fromarray(frame) for frame in frames])) as image:
        image.seek(1)
        pixel = np.asarray(image.convert("RGB"))[16, 16]
    assert abs(int(pixel[1]) - 200) < 12
    assert pixel[0] < 12


@pytest.mark.parametrize("kind", FORMATS)
def test_what_goes_wrong_is_what_is_told(kind: str, tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError, match="of the one who draws"),
        Animation(tmp_path / "none" / "x", kind, 6.0) as animation,
    ):
        if kind != "mp4":  # which opens its file with the first frame
            animation.add(pictures()[0])
        raise KeyError("of the one who draws")
    with pytest.raises(FileNotFoundError), Animation(tmp_path / "none" / "x", kind, 6.0) as other:
        other.add(pictures()[0])


def test_frames_in_a_second_are_more_than_none() -> None:
    with pytest.raises(ValueError, match="fps: 0"):
        Animation(io.BytesIO(), "webp", 0)
