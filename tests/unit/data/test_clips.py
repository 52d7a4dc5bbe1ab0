"""Annotated clips as arrays: which frames, whose masks, and how cells average them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfshot.data.clips import ClipReader, average_cells
from selfshot.data.ytvis import Annotations, Track, Video
from selfshot.ops.masks import encode_rle

HEIGHT, WIDTH, NUM_FRAMES = 24, 40, 5
LENGTHS = {1: 2, 2: 5, 3: 13}
CAT, DOG = 7, 3


def _mask(video: int, track: int, frame: int) -> np.ndarray:
    """A blob that differs for each video, track and frame."""
    rng = np.random.default_rng([video, track, frame])
    mask = np.zeros((HEIGHT, WIDTH), bool)
    top, left = rng.integers(0, HEIGHT - 5), rng.integers(0, WIDTH - 9)
    mask[top : top + 5, left : left + 9] = rng.random((5, 9)) < 0.8
    return mask


@pytest.fixture(scope="module")
def frames_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    for video, length in LENGTHS.items():
        for frame in range(length):
            grey = np.full((HEIGHT, WIDTH, 3), 50 * video + 3 * frame, np.uint8)
            Image.fromarray(grey).save(root / f"{video}_{frame}.png")
    return root


@pytest.fixture(scope="module")
def annotations() -> Annotations:
    """Each video has a cat, a dog, a cat that is absent in even frames, and a crowd of cats."""
    videos, tracks = {}, []
    for video, length in LENGTHS.items():
        names = tuple(f"{video}_{frame}.png" for frame in range(length))
        videos[video] = Video(video, WIDTH, HEIGHT, length, names)
        for number, (category, crowd) in enumerate(
            [(CAT, False), (DOG, False), (CAT, False), (CAT, True)]
        ):
            rles = tuple(
                None if number == 2 and frame % 2 == 0 else encode_rle(_mask(video, number, frame))
                for frame in range(length)
            )
            nothing = (None,) * length
            tracks.append(
                Track(len(tracks) + 1, video, category, rles, nothing, nothing, iscrowd=crowd)
            )
    return Annotations(videos, {CAT: "cat", DOG: "dog"}, tuple(tracks))


@pytest.fixture
def reader(annotations: Annotations, frames_root: Path) -> ClipReader:
    return ClipReader(annotations, frames_root, num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH)


class TestFrames:
    """A clip has as many frames as the model wants, whatever the video has."""

    def test_a_short_video_is_padded_with_its_last_frame(self, reader: ClipReader) -> None:
        assert reader.frame_indices(1).tolist() == [0, 1, 1, 1, 1]
        assert reader.valid_frames(1).tolist() == [True, True, False, False, False]

    def test_a_video_that_fits_is_taken_whole(self, reader: ClipReader) -> None:
        assert reader.frame_indices(2).tolist() == [0, 1, 2, 3, 4]
        assert reader.valid_frames(2).all()

    def test_a_long_video_is_sampled_in_the_middle_of_equal_parts(self, reader: ClipReader) -> None:
        assert reader.frame_indices(3).tolist() == [1, 3, 6, 9, 11]
        assert reader.valid_frames(3).all()

    @pytest.mark.parametrize("video", LENGTHS)
    def test_pixels_are_those_of_the_indices(self, reader: ClipReader, video: int) -> None:
        frames = reader.frames(video)
        assert frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
        greys = [50 * video + 3 * i for i in reader.frame_indices(video)]
        assert frames[:, 0, 0, 0].tolist() == greys


class TestTracks:
    """Masks, presence and boxes of one clip."""

    @pytest.mark.parametrize("video", LENGTHS)
    def test_masks_follow_the_frames(self, reader: ClipReader, video: int) -> None:
        tracks = reader.tracks(video, stride=1)
        assert tracks.masks.shape == (3, NUM_FRAMES, HEIGHT, WIDTH)
        assert tracks.masks.dtype == np.float32 and tracks.classes.tolist() == [CAT, DOG, CAT]
        for number in range(3):
            for place, frame in enumerate(reader.frame_indices(video)):
                absent = number == 2 and frame % 2 == 0
                expected = np.zeros((HEIGHT, WIDTH)) if absent else _mask(video, number, int(frame))
                np.testing.assert_array_equal(tracks.masks[number, place], expected)
                assert tracks.present[number, place] == (not absent)

    def test_boxes_are_those_of_the_masks(self, reader: ClipReader) -> None:
        tracks = reader.tracks(3, stride=1)
        for mask, box, present in zip(
            tracks.masks.reshape(-1, HEIGHT, WIDTH),
            tracks.boxes_cxcywh.reshape(-1, 4),
            tracks.present.ravel(),
            strict=True,
        ):
            if not present:
                assert not mask.any() and not box.any()
                continue
            rows, columns = np.nonzero(mask)
            top, bottom = rows.min() / HEIGHT, (rows.max() + 1) / HEIGHT
            left, right = columns.min() / WIDTH, (columns.max() + 1) / WIDTH
            expected = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            np.testing.assert_allclose(box, expected, rtol=1e-6)

    def test_one_category(self, reader: ClipReader) -> None:
        everything = reader.tracks(2, stride=4)
        cats = reader.tracks(2, stride=4, category_id=CAT)
        assert cats.classes.tolist() == [CAT, CAT], "a crowd is no track"
        np.testing.assert_array_equal(cats.masks, everything.masks[[0, 2]])
        np.testing.assert_array_equal(cats.boxes_cxcywh, everything.boxes_cxcywh[[0, 2]])
        assert reader.tracks(2, stride=4, category_id=99).masks.shape == (0, NUM_FRAMES, 6, 10)

    def test_stride_is_in_pixels_of_the_resized_frame(
        self, annotations: Annotations, frames_root: Path
    ) -> None:
        small = ClipReader(annotations, frames_root, num_frames=5, height=16, width=32)
        tracks = small.tracks(2, stride=4)
        assert tracks.masks.shape == (3, 5, 4, 8)
        expected = average_cells(_mask(2, 0, 3), (4, 8))
        np.testing.assert_array_equal(tracks.masks[0, 3], expected)
        same = ClipReader(annotations, frames_root, num_frames=5, height=24, width=40)
        np.testing.assert_array_equal(tracks.boxes_cxcywh, same.tracks(2, stride=4).boxes_cxcywh)

    def test_one_frame(self, reader: ClipReader) -> None:
        pixels, tracks = reader.frame(3, 8, 8)
        assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels[0, 0, 0] == 150 + 24
        assert tracks.masks.shape == (3, 1, 3, 5)
        assert tracks.present[:, 0].tolist() == [True, True, False]
        np.testing.assert_array_equal(tracks.masks[1, 0], average_cells(_mask(3, 1, 8), (3, 5)))


class TestAverageCells:
    """The share of each cell that a mask covers."""

    @pytest.mark.parametrize("shape", [(12, 20), (13, 29), (37, 11), (7, 5)])
    @pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 5)])
    def test_is_the_mean_of_each_cell(self, shape: tuple[int, int], size: tuple[int, int]) -> None:
        mask = np.random.default_rng(shape[0]).random(shape) < 0.4
        cells = average_cells(mask, size)
        assert cells.shape == size and cells.dtype == np.float32
        for i in range(size[0]):
            for j in range(size[1]):
                top, bottom = round(i * shape[0] / size[0]), round((i + 1) * shape[0] / size[0])
                left, right = round(j * shape[1] / size[1]), round((j + 1) * shape[1] / size[1])
                expected = mask[top:bottom, left:right].mean()
                assert cells[i, j] == pytest.approx(expected, abs=1e-6)

    def test_shares_stay_shares(self) -> None:
        shares = np.random.default_rng(0).random((12, 21)).astype(np.float32)
        cells = average_cells(shares, (4, 7))
        np.testing.assert_allclose(cells.mean(), shares.mean(), rtol=1e-5)
        assert average_cells(np.ones((13, 17), bool), (3, 5)).tolist() == np.ones((3, 5)).tolist()

    def test_a_grid_finer_than_the_mask_has_no_holes(self) -> None:
        assert average_cells(np.ones((5, 11), bool), (7, 13)).min() == 1
        mask = np.zeros((5, 11), bool)
        mask[2:, :4] = True
        cells = average_cells(mask, (15, 22))
        np.testing.assert_array_equal(cells, mask.repeat(3, 0).repeat(2, 1))


class TestParts:
    """Stretches of a video, and parts of its frames."""

    @pytest.mark.parametrize(
        ("video", "start", "end", "frames"),
        [
            (3, 0.0, 1.0, [1, 3, 6, 9, 11]),
            (3, 0.5, 1.0, [6, 8, 9, 10, 12]),
            (3, 0.25, 0.5, [3, 4, 5]),
            (2, 0.9, 0.95, [4]),
            (1, 0.0, 0.5, [0]),
        ],
    )
    def test_a_stretch_is_sampled_as_a_video_is(
        self, reader: ClipReader, video: int, start: float, end: float, frames: list[int]
    ) -> None:
        pixels = reader.part(video, start, end)
        assert pixels.shape == (len(frames), HEIGHT, WIDTH, 3)
        assert pixels[:, 0, 0, 0].tolist() == [50 * video + 3 * frame for frame in frames]

    def test_a_part_of_the_frames_fills_the_clip(self, tmp_path: Path) -> None:
        """Of a picture with one bright quarter, each quarter in turn."""
        picture = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
        picture[HEIGHT:, :WIDTH] = 200
        Image.fromarray(picture).save(tmp_path / "0.png")
        video = Video(1, 2 * WIDTH, 2 * HEIGHT, 1, ("0.png",))
        reader = ClipReader(
            Annotations({1: video}, {}, ()), tmp_path, num_frames=3, height=HEIGHT, width=WIDTH
        )
        for left, top in ((0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)):
            pixels = reader.cut_out(1, [left, top, left + 0.5, top + 0.5])
            assert pixels.shape == (3, HEIGHT, WIDTH, 3)
            assert pixels.mean() == (200 if (left, top) == (0, 0.5) else 0)
        whole = reader.cut_out(1, [0.0, 0.0, 1.0, 1.0])
        np.testing.assert_array_equal(whole, reader.frames(1))
        assert reader.cut_out(1, [0.1234, 0.3, 0.8234, 1.0]).shape == (3, HEIGHT, WIDTH, 3)
