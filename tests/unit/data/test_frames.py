"""Frames of annotated videos by index: from images, and exactly from one video file."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from refusals import refused
from selfshot.data.clips import ClipReader
from selfshot.data.frames import FrameReader
from selfshot.data.video import VideoError, frames_at
from selfshot.data.ytvis import Annotations, Video, load_annotations, save_annotations

LENGTH, HEIGHT, WIDTH = 23, 34, 44
ORDERS: list[Sequence[int]] = [range(LENGTH), [0], [22], [5, 5, 5], [17, 3, 3, 21, 0], [8, 9, 10]]


def _pictures() -> np.ndarray:
    """Frames that differ from their neighbours: a bar that moves two pixels a frame over a ramp."""
    frames = np.empty((LENGTH, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = np.linspace(20, 120, WIDTH).astype(np.uint8)[None, None, :, None]
    for index in range(LENGTH):
        frames[index, 2 : HEIGHT - 3, 2 * index : 2 * index + 6 - index // 20] = (230, 220, 210)
    frames[:, -2:] = (np.arange(LENGTH) * 10)[:, None, None, None]
    return frames


def _write(path: Path, frames: np.ndarray, codec: str) -> None:
    """A video file with few key frames, and frames that refer to later ones where it can."""
    options = {"libx264": {"g": "9", "bf": "3", "crf": "6"}, "libvpx-vp9": {"g": "9", "crf": "8"}}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


FILES = {
    "h264.mp4": "libx264",
    "h264.mkv": "libx264",
    "h264.MOV": "libx264",
    "mpeg4.avi": "mpeg4",
    "vp9.webm": "libvpx-vp9",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    for name, codec in FILES.items():
        if codec in av.codecs_available:
            _write(folder / name, _pictures(), codec)
    (folder / "images").mkdir()
    for index, frame in enumerate(_pictures()):
        Image.fromarray(frame).save(folder / "images" / f"{index}.png")
    return folder


@pytest.fixture
def reader(root: Path) -> Iterator[FrameReader]:
    made = FrameReader(root)
    yield made
    made.close()


def _video(name: str, length: int = LENGTH) -> Video:
    return Video(1, WIDTH, HEIGHT, length, (name,))


IMAGES = Video(2, WIDTH, HEIGHT, LENGTH, tuple(f"images/{i}.png" for i in range(LENGTH)))


def _nearest(frames: np.ndarray) -> list[int]:
    """For each frame the index of the picture that it is most like."""
    far = np.abs(frames[:, None].astype(float) - _pictures()[None]).mean((2, 3, 4))
    assert far.min(1).max() < 12, "no picture is like it"
    return far.argmin(1).tolist()


@pytest.mark.parametrize("name", FILES)
def test_indices_are_exact(root: Path, reader: FrameReader, name: str) -> None:
    if not (root / name).exists():
        pytest.skip(f"PyAV has no encoder {FILES[name]} here")
    for indices in ORDERS:
        frames = reader.read(_video(name), indices, HEIGHT, WIDTH)
        assert frames.shape == (len(indices), HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
        assert _nearest(frames) == list(indices)


@pytest.mark.parametrize("size", [1, 7, 16, 100])
def test_pieces_are_the_whole(reader: FrameReader, size: int) -> None:
    for video in (_video("h264.mp4"), IMAGES):
        pieces = list(reader.pieces(video, range(LENGTH), HEIGHT, WIDTH, size=size))
        assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
        assert _nearest(np.concatenate(pieces)) == list(range(LENGTH))


def test_images_are_read_as_they_are(reader: FrameReader) -> None:
    frames = reader.read(IMAGES, [4, 2], HEIGHT, WIDTH)
    np.testing.assert_array_equal(frames, _pictures()[[4, 2]])


def test_frames_are_resized(reader: FrameReader) -> None:
    small = reader.read(_video("h264.mp4"), [3, 20], 17, 22)
    expected = reader.read(IMAGES, [3, 20], 17, 22)
    assert np.abs(small.astype(float) - expected).mean() < 12


@pytest.mark.parametrize("length", [LENGTH - 1, LENGTH + 1])
def test_a_file_of_another_length_is_refused(reader: FrameReader, length: int) -> None:
    with pytest.raises(VideoError, match=f"it has {LENGTH} frames where {length} are expected"):
        reader.read(_video("h264.mp4", length), [0], HEIGHT, WIDTH)


def test_a_file_of_another_size_is_refused(reader: FrameReader) -> None:
    with pytest.raises(VideoError, match=f"its frames are {WIDTH} × {HEIGHT} pixels and the "):
        reader.read(Video(1, HEIGHT, WIDTH, LENGTH, ("h264.mp4",)), [0], 16, 16)
    reason = reader.fault(Video(1, HEIGHT, WIDTH, LENGTH, ("h264.mkv",)))
    assert reason is not None and reason.startswith("video h264.mkv: its frames are")


@pytest.mark.parametrize(
    "wrong", [{"indices": []}, {"indices": [-1]}, {"indices": [LENGTH]}, {"height": 0}]
)
def test_numbers_that_make_no_sense(root: Path, wrong: dict[str, object]) -> None:
    good = {"indices": [0], "length": LENGTH, "height": HEIGHT, "width": WIDTH}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        frames_at(root / "h264.mp4", **(good | wrong))  # type: ignore[arg-type]


def test_a_broken_file_costs_itself(tmp_path: Path, root: Path) -> None:
    whole = (root / "h264.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "good.mkv").write_bytes(whole)
    reader = FrameReader(tmp_path)
    for name in ("cut.mkv", "empty.mp4", "text.mp4", "none.mp4"):
        with pytest.raises(VideoError) as caught:
            reader.read(_video(name), range(LENGTH), HEIGHT, WIDTH)
        assert caught.value.path == str(tmp_path / name)
    assert _nearest(reader.read(_video("good.mkv"), [6], HEIGHT, WIDTH)) == [6]
    reader.close()


def test_a_broken_file_does_not_end_the_process(shared: Path) -> None:
    folder = shared / "data" / "odd_videos"
    if not folder.is_dir():
        pytest.skip(f"no odd videos at {folder}")
    reader = FrameReader(folder)
    for name in ("corrupted.mp4", "truncated.mp4", "not_a_video.mp4"):
        with pytest.raises(VideoError):
            reader.read(Video(1, 64, 64, 7, (name,)), range(7), 64, 64)
    frames = reader.read(Video(1, 560, 320, 3, ("three_frames.mp4",)), range(3), 64, 64)
    assert frames.std() > 0
    reader.close()


def test_a_name_outside_the_root_is_refused(reader: FrameReader) -> None:
    with refused():
        reader.read(_video("../h264.mp4"), [0], HEIGHT, WIDTH)


def test_each_thread_has_its_own_decoder(reader: FrameReader) -> None:
    found: dict[int, list[int]] = {}

    def read(start: int) -> None:
        indices = [(start * 5 + step) % LENGTH for step in range(3)]
        for _ in range(5):
            frames = reader.read(_video("h264.mp4"), indices, HEIGHT, WIDTH)
            found[start] = [a - b for a, b in zip(_nearest(frames), indices, strict=True)]

    threads = [threading.Thread(target=read, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [0, 0, 0], 1: [0, 0, 0], 2: [0, 0, 0]}


def test_a_reader_can_be_sent_to_another_process(reader: FrameReader) -> None:
    reader.read(_video("h264.mp4"), [0], HEIGHT, WIDTH)
    sent = pickle.loads(pickle.dumps(reader))
    assert _nearest(sent.read(_video("h264.mp4"), [9], HEIGHT, WIDTH)) == [9]
    sent.close()


def test_clips_of_a_video_file_are_those_of_its_images(root: Path) -> None:
    videos = {1: _video("h264.mp4"), 2: IMAGES}
    reader = ClipReader(Annotations(videos, {}, ()), root, num_frames=5, height=HEIGHT, width=WIDTH)
    assert _nearest(reader.frames(1)) == reader.frame_indices(1).tolist()
    assert _nearest(reader.frames(1)) == _nearest(reader.frames(2))
    pixels, _ = reader.frame(1, 13, 2)
    assert _nearest(pixels[None]) == [13]


class TestAnnotations:
    """What the reader of annotations allows."""

    ENTRY = {"id": 1, "width": WIDTH, "height": HEIGHT, "length": 9, "file_names": ["a/b.MP4"]}

    def _load(self, folder: Path, **changes: object) -> Annotations:
        entry = {k: v for k, v in (self.ENTRY | changes).items() if v is not None}
        document = {"videos": [entry], "categories": [], "annotations": []}
        (folder / "a.json").write_text(json.dumps(document))
        return load_annotations(folder / "a.json")

    def test_one_video_file_with_its_length(self, tmp_path: Path) -> None:
        annotations = self._load(tmp_path)
        assert annotations.videos[1].video_file == "a/b.MP4"
        assert annotations.videos[1].length == 9
        save_annotations(tmp_path / "copy.json", annotations)
        assert load_annotations(tmp_path / "copy.json") == annotations

    def test_images_are_no_video_file(self, tmp_path: Path) -> None:
        assert self._load(tmp_path, file_names=["a.jpg"], length=1).videos[1].video_file is None
        assert self._load(tmp_path, file_names=None).videos[1].video_file is None

    @pytest.mark.parametrize(
        "changes",
        [
        {"length": None},
        {"length": 0},
        {"file_names": ["a/b.jpg"]},
        {"file_names": ["a.mp4", "b.mp4"]},
        {"file_names": ["../b.mp4"]},
    ],
    )
    def test_what_is_refused(
        self, tmp_path: Path, changes: dict[str, object]
    ) -> None:
        with refused():
            self._load(tmp_path, **copy.deepcopy(changes))
