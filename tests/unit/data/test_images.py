"""The one door to image files: orientation, depth, size and order, and what is refused."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfshot.data.frames import FrameReader
from selfshot.data.images import image_names, image_size, read_image, read_indices
from selfshot.data.video import VideoError
from selfshot.data.ytvis import Video

HEIGHT, WIDTH = 24, 40
T = Image.Transpose
STORED = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
          6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}  # fmt: skip
"""How an upright image is stored, by the EXIF orientation that undoes it."""
SAVED: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 98, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
}


def _upright() -> np.ndarray:
    """An image that differs from each of its turns and mirrors."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[2:10, 4:12] = (250, 20, 30)
    pixels[12:20, 20:36] = (20, 200, 240)
    return pixels


@pytest.mark.parametrize("suffix", SAVED)
@pytest.mark.parametrize("orientation", STORED)
def test_the_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"frame.{suffix}"
    method = STORED[orientation]
    upright = Image.fromarray(_upright())
    exif = Image.Exif()
    exif[274] = orientation
    stored = upright if method is None else upright.transpose(method)
    stored.save(path, exif=exif, **SAVED[suffix])
    assert image_size(path) == (HEIGHT, WIDTH)
    frame = read_image(path, HEIGHT, WIDTH, (HEIGHT, WIDTH))
    np.testing.assert_allclose(frame.astype(int), _upright(), atol=6)
    small = read_image(path, HEIGHT // 2, WIDTH // 2)
    assert np.abs(small.astype(int) - _upright()[::2, ::2]).mean() < 12
    with pytest.raises(VideoError, match="24 × 40 "):
        read_image(path, HEIGHT, WIDTH, (WIDTH, HEIGHT))


def _png(path: Path, pixels: np.ndarray, color_type: int) -> Path:
    """A PNG of 16 bits a channel, which Pillow cannot write in colour."""
    rows = pixels.astype(">u2").reshape(len(pixels), -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", pixels.shape[1], len(pixels), 16, color_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )
    return path


RAMP = np.arange(256, dtype=np.uint16).reshape(8, 32) * 257
"""16-bit greys whose 8-bit values are 0 to 255."""
EIGHT = (RAMP // 257).astype(np.uint8)


class TestDepth:
    def test_grey_of_16_bits(self, tmp_path: Path) -> None:
        png = _png(tmp_path / "grey.png", RAMP, 0)
        Image.fromarray(RAMP).save(tmp_path / "grey.tif")
        for path in (png, tmp_path / "grey.tif"):
            np.testing.assert_array_equal(read_image(path, 8, 32)[..., 1], EIGHT)

    @pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
    def test_colour_and_alpha_of_16_bits(
        self, tmp_path: Path, color_type: int, channels: int
    ) -> None:
        path = _png(tmp_path / "deep.png", np.repeat(RAMP[..., None], channels, 2), color_type)
        np.testing.assert_array_equal(read_image(path, 8, 32)[..., 0], EIGHT)

    def test_white_that_is_zero(self, tmp_path: Path) -> None:
        Image.fromarray(RAMP).save(tmp_path / "negative.tif", tiffinfo={262: 0})
        np.testing.assert_array_equal(
            read_image(tmp_path / "negative.tif", 8, 32)[..., 0], 255 - EIGHT
        )

    @pytest.mark.parametrize(
        ("dtype", "reason"), [(np.int32, "32-bit integers"), (np.float32, "32-bit floats")]
    )
    def test_pixels_without_a_known_white_are_refused(
        self, tmp_path: Path, dtype: type, reason: str
    ) -> None:
        Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "deep.tif")
        with pytest.raises(VideoError, match=f"{reason} have no known white; save it"):
            read_image(tmp_path / "deep.tif", 8, 32)

    def test_one_bit(self, tmp_path: Path) -> None:
        bits = np.indices((8, 32)).sum(0) % 3 == 0
        for suffix in ("png", "tif", "bmp"):
            Image.fromarray(bits).save(tmp_path / f"bits.{suffix}")
            frame = read_image(tmp_path / f"bits.{suffix}", 8, 32)
            np.testing.assert_array_equal(frame[..., 2], 255 * bits)

    def test_alpha_leaves_the_colours(self, tmp_path: Path) -> None:
        alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
        picture = Image.fromarray(_upright())
        picture.putalpha(Image.fromarray(alpha))
        picture.save(tmp_path / "rgba.png")
        np.testing.assert_array_equal(read_image(tmp_path / "rgba.png", HEIGHT, WIDTH), _upright())
        Image.merge("LA", [picture.getchannel(1), picture.getchannel(3)]).save(tmp_path / "la.png")
        grey = read_image(tmp_path / "la.png", HEIGHT, WIDTH)
        np.testing.assert_array_equal(grey, _upright()[..., 1:2].repeat(3, 2))

    def test_a_palette_with_transparency(self, tmp_path: Path) -> None:
        indexed = Image.fromarray(_upright()).quantize(4)
        indexed.save(tmp_path / "p.png", transparency=b"\x00\x80\xff\xff")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frame = read_image(tmp_path / "p.png", HEIGHT, WIDTH)
        np.testing.assert_array_equal(frame, np.asarray(indexed.convert("RGB")))

    def test_cmyk_as_photoshop_writes_it(self, tmp_path: Path) -> None:
        Image.fromarray(_upright()).convert("CMYK").save(tmp_path / "print.jpg", quality=98)
        frame = read_image(tmp_path / "print.jpg", HEIGHT, WIDTH)
        np.testing.assert_allclose(frame.astype(int), _upright(), atol=40)


class TestWhatIsRefused:
    @pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
    def test_several_pictures_in_one(self, tmp_path: Path, name: str) -> None:
        first, second = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
        first.save(tmp_path / name, save_all=True, append_images=[second])
        with pytest.raises(VideoError, match="it holds 2 pictures, and a frame is one"):
            read_image(tmp_path / name, 6, 8)
        first.save(tmp_path / name)
        np.testing.assert_allclose(read_image(tmp_path / name, 6, 8)[0, 0], (255, 0, 0), atol=2)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(None, "no such image"), (b"", "the file is empty"), (b"text", "cut short, or no image")],
    )
    def test_what_is_no_image(self, tmp_path: Path, content: bytes | None, reason: str) -> None:
        path = tmp_path / "frame.jpg"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(VideoError, match=reason):
            read_image(path, 3, 5)

    def test_an_image_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "frame.jpg"
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(VideoError, match="cannot be read"):
            read_image(path, 64, 64)

    def test_what_cannot_be_opened(self, tmp_path: Path) -> None:
        (tmp_path / "loop.jpg").symlink_to("loop.jpg")
        (tmp_path / "folder.jpg").mkdir()
        for name, reason in (("loop.jpg", "symbolic links"), ("folder.jpg", "Is a directory")):
            with pytest.raises(VideoError, match=reason):
                read_image(tmp_path / name, 3, 5)
        with pytest.raises(VideoError, match="write / in its name"):
            read_image(tmp_path / "v\\0.jpg", 3, 5)

    @pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
    def test_bytes_that_are_wrong_are_a_reason(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        exif = Image.Exif()
        exif[274] = 6
        path = tmp_path / "frame"
        read = 0
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
            picture = Image.fromarray(rng.integers(0, 255, (24, 40, 3), np.uint8))
            picture.save(path, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
            whole = path.read_bytes()
            for _ in range(150):
                content = bytearray(whole)
                for place in rng.integers(0, min(len(whole), 500), 5):
                    content[place] = rng.integers(0, 256)
                path.write_bytes(content)
                try:
                    assert read_image(path, 12, 20).shape == (12, 20, 3)
                    read += 1
                except VideoError as error:
                    assert error.reason and error.path == str(path)
        assert 50 < read < 850


def test_plain_images_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    for name in ("f.jpg", "f.png"):
        Image.fromarray(noise).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            image.draft("RGB", (50, 30))
            expected = image.convert("RGB").resize((50, 30), Image.Resampling.BILINEAR,
                                                   reducing_gap=2.0)  # fmt: skip
        np.testing.assert_array_equal(read_image(tmp_path / name, 30, 50), np.asarray(expected))


def test_frames_of_a_video_have_its_size(tmp_path: Path) -> None:
    for index, size in enumerate([(40, 24), (24, 40), (40, 24)]):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    video = Video(1, WIDTH, HEIGHT, 3, ("0.png", "1.png", "2.png"))
    reader = FrameReader(tmp_path)
    assert reader.read(video, [0, 2], 12, 20).shape == (2, 12, 20, 3)
    with pytest.raises(VideoError, match="the frame is 24 × 40 pixels and its video is 40 × 24"):
        reader.read(video, [1], 12, 20)
    assert "frame 1.png: the frame is 24 × 40" in str(reader.fault(video))


class TestOrder:
    def test_numbers_count(self, tmp_path: Path) -> None:
        ordered = ["0.jpg", "1.JPG", "2.webp", "9.tiff", "10.png", "11.gif", "100.bmp"]
        for name in [*ordered, "._0.jpg", "notes.txt"]:
            (tmp_path / name).touch()
        assert image_names(tmp_path) == ordered

    def test_numbers_in_the_middle(self, tmp_path: Path) -> None:
        ordered = ["cam1_f2.jpg", "Cam1_f10.jpg", "cam2_f1.jpg", "cam10_f1.jpg", "x.jpg"]
        for name in ordered:
            (tmp_path / name).touch()
        assert image_names(tmp_path) == ordered

    @pytest.mark.parametrize("two", [("1.jpg", "01.jpg"), ("1.jpg", "1.png"), ("A.jpg", "a.jpg")])
    def test_two_names_of_one_place(self, tmp_path: Path, two: tuple[str, str]) -> None:
        for name in two:
            (tmp_path / name).touch()
        first, second = sorted(two)
        with pytest.raises(VideoError, match=f"{first} and {second} are the same frame"):
            image_names(tmp_path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
    def test_a_folder_that_may_not_be_read(self, tmp_path: Path) -> None:
        tmp_path.chmod(0)
        with pytest.raises(VideoError, match="the folder cannot be read"):
            image_names(tmp_path)
        tmp_path.chmod(0o700)


def test_indices_of_a_palette(tmp_path: Path) -> None:
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image = Image.fromarray(indices)
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_indices(tmp_path / "mask.png"), indices)
    Image.fromarray(indices).save(tmp_path / "mask.png")
    with pytest.raises(VideoError, match="mode L is not allowed"):
        read_indices(tmp_path / "mask.png")
