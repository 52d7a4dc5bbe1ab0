"""decord and PyAV behind one door: equal frames, times from the first frame, damaged files."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from selfshot.data.guard import DECODE_AT, Clip, FileFrames, GuardedDecoder
from selfshot.data.video import (
    Sampled,
    VideoError,
    choose_frames,
    duration_s,
    find_part,
    frames_at,
    probe,
    sample_clip,
    sample_frames,
)

DECODERS = ("decord", "pyav")
TIMEBASE = Fraction(1, 1000)


def write(
    path: Path,
    times_ms: Sequence[int],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    prepare: Callable[[Any], object] = lambda stream: None,
    options: dict[str, str] | None = None,
    **open_options: Any,
) -> Path:
    """A video whose frame i is grey of value 10·i + 5, shown at these times."""
    with av.open(str(path), "w", **open_options) as container:
        stream = container.add_stream(codec, rate=10, options=options or {"crf": "10"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = TIMEBASE
        prepare(stream)
        for index, time in enumerate(times_ms):
            pixels = np.full((*size, 3), 10 * index + 5, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, TIMEBASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def which(frames: np.ndarray) -> list[int]:
    return ((frames.reshape(len(frames), -1).mean(1) - 5) / 10).round().astype(int).tolist()


def sampled(path: Path, decoder: Any, num_frames: int = 4, **more: Any) -> list[int]:
    size = {"num_frames": num_frames, "height": 24, "width": 32}
    with GuardedDecoder(decoder=decoder, **size) as guard:
        return which(guard.decode(Clip(str(path), **more)))


class TestTimes:
    """Seconds from the start of the first frame; the frame on screen counts."""

    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize("name", ["late.mkv", "late.mp4", "late.ts", "late.avi"])
    def test_a_video_that_starts_late(self, tmp_path: Path, decoder: str, name: str) -> None:
        path = write(tmp_path / name, range(10_000, 12_000, 100))
        assert duration_s(path) == pytest.approx(2.0, abs=0.15)
        assert sampled(path, decoder, end_s=1.0) == [1, 3, 6, 8]
        assert sampled(path, decoder, start_s=1.0, end_s=2.0) == [11, 13, 16, 18]
        with pytest.raises(VideoError, match=r"no frame between 2.5 s and 3.0 s; it has 2.\d\d s"):
            sampled(path, decoder, start_s=2.5, end_s=3.0)

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_the_frame_on_screen_counts(self, tmp_path: Path, decoder: str) -> None:
        path = write(tmp_path / "vfr.mp4", [0, 2000, 4000, 8000, 8100, 8200])
        assert duration_s(path) == pytest.approx(8.3, abs=0.15)
        shown = [sampled(path, decoder, 2, start_s=t, end_s=t + 1.0) for t in range(8)]
        assert shown == [[i, i] for i in (0, 0, 1, 1, 2, 2, 2, 2)]
        # Four parts of the whole are equal in time, not in frames.
        assert sampled(path, decoder) == [0, 1, 2, 2]

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_audio_that_starts_first(self, tmp_path: Path, decoder: str) -> None:
        path = tmp_path / "audio.mp4"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=10, options={"crf": "10"})
            video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
            audio = container.add_stream("aac", rate=8000)
            sound = av.AudioFrame.from_ndarray(
                np.zeros((1, 40_000), np.float32), format="fltp", layout="mono"
            )
            sound.rate = 8000
            container.mux(audio.encode(sound))
            for index in range(20):
                pixels = np.full((48, 64, 3), 10 * index + 5, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = 10 + index, Fraction(1, 10)
                container.mux(video.encode(frame))
            container.mux([*video.encode(), *audio.encode()])
        assert duration_s(path) == pytest.approx(2.0, abs=0.05), "of the frames, not of the sound"
        assert sampled(path, decoder, end_s=1.0) == [1, 3, 6, 8]

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_one_frame(self, tmp_path: Path, decoder: str) -> None:
        path = write(tmp_path / "one.mp4", [0])
        assert sampled(path, decoder) == [0] * 4
        assert duration_s(path) == pytest.approx(0.1, abs=0.05)

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_times_that_are_missing(self, tmp_path: Path, decoder: str) -> None:
        """A bare stream has none: frames are as long as its rate says."""
        path = write(tmp_path / "bare.h264", range(0, 2000, 100), format="h264")
        assert sampled(path, decoder, 5) == [2, 6, 10, 14, 18]

    def test_parts_and_frames_of_times(self) -> None:
        starts = np.array([0.0, 1.0, 1.1, 1.2, 5.0])
        times = np.stack([starts, [1.0, 1.1, 1.2, 1.3, 6.0]], axis=1).astype(np.float32)
        assert find_part(times, None, None) == (0, 5)
        assert find_part(times, 1.0, 1.3) == (1, 4)
        assert find_part(times, 2.0, 4.0) == find_part(times, 1.3, 5.2) == (3, 4)
        assert find_part(times, 6.0, 7.0) is None and find_part(times, -2.0, 0.0) is None
        assert find_part(times, -2.0, 0.2) == (0, 1) and find_part(times, 5.9, 9.0) == (4, 5)
        assert choose_frames(times, 1, 4, 3).tolist() == [1, 2, 3]
        assert choose_frames(times, 0, 5, 6).tolist() == [0, 3, 3, 3, 3, 4]


def test_both_decoders_give_equal_frames_of_real_clips(shared: Path) -> None:
    paths = sorted((shared / "data" / "corpus_real" / "clips").glob("*.mp4"))[::24]
    if not paths:
        pytest.skip("no real clips")
    sizes = [(72, 128), (64, 64), (96, 160), (128, 128), (280, 320), (33, 48)]
    for number, path in enumerate(paths):
        for part in ({}, {"start_s": 0.3, "end_s": 0.8}):
            height, width = sizes[number % len(sizes)]
            size = {"num_frames": 8, "height": height, "width": width, **part}
            ours = sample_clip(path, decoder="pyav", **size)
            np.testing.assert_array_equal(ours.frames, sample_frames(path, **size), str(path))
            assert ours.decoded == ours.expected > 0


def corners(frame: np.ndarray) -> list[int]:
    height, width = frame.shape[:2]
    places = ((height // 4, width // 4), (height // 4, 3 * width // 4))
    below = [(y + height // 2, x) for y, x in places]
    return [int(frame[y, x, 0].astype(float).round(-2)) for y, x in [*places, *below]]


@pytest.mark.parametrize(
    ("degrees", "mirrored", "expected"),
    [
        (0, False, [200, 100, 0, 0]),
        (90, False, [100, 0, 200, 0]),
        (180, False, [0, 0, 100, 200]),
        (270, False, [0, 200, 0, 100]),
        (0, True, [100, 200, 0, 0]),
    ],
)
def test_frames_are_turned_as_players_show_them(
    tmp_path: Path, degrees: int, mirrored: bool, expected: list[int]
) -> None:
    path = tmp_path / "turned.mp4"
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32], pixels[:16, 32:] = 200, 100
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    facts = probe(path)
    assert (facts.height, facts.width) == ((64, 32) if degrees % 180 else (32, 64))
    for decoder in DECODERS[mirrored:]:  # decord knows no mirrors.
        for height, width in ((64, 64), (24, 96)):
            size = {"num_frames": 1, "height": height, "width": width}
            assert corners(sample_frames(path, decoder=decoder, **size)[0]) == expected
        (frame,) = frames_at(
            path, indices=[2], length=3, height=32, width=32, decoder=decoder
        )
        assert corners(frame) == expected


def test_videos_that_decord_cannot_read(shared: Path, tmp_path: Path) -> None:
    av1 = shared / "failing" / "av1" / "av1.mp4"
    gif = write_gif(tmp_path / "moving.gif")
    with GuardedDecoder(num_frames=4, height=24, width=32) as decoder:
        assert which(decoder.decode(gif)) == [2, 7, 12, 17]
        if av1.exists():
            (answer,) = decoder.decode_many([av1])
            assert isinstance(answer, Sampled) and (answer.decoded, answer.expected) == (16, 16)
            assert probe(av1).num_frames == 16
            request = FileFrames(str(av1), (0, 15), 16, 24, 32)
            with GuardedDecoder(decode=DECODE_AT) as by_index:
                assert by_index.decode(request).shape == (2, 24, 32, 3)


def write_gif(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb8"
        for index in range(20):
            pixels = np.full((48, 64, 3), 10 * index + 5, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="rgb8")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_cover_is_not_the_video(tmp_path: Path) -> None:
    """An attached picture may be the first video stream."""
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=10)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream("libx264", rate=10, options={"crf": "10"})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        grey = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 250, np.uint8), format="rgb24")
        container.mux([*cover.encode(grey.reformat(format="yuvj420p")), *cover.encode()])
        for index in range(20):
            pixels = np.full((48, 64, 3), 10 * index + 5, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
    for decoder in DECODERS:
        assert sampled(path, decoder, 5) == [2, 6, 10, 14, 18]
    assert duration_s(path) == pytest.approx(2.0)


class TestDamage:
    """What can be decoded of a damaged file is used, and said."""

    @staticmethod
    def moving(path: Path, gop: int = 10) -> Path:
        """Sixty frames with texture, of which every tenth is a key frame."""
        rng = np.random.default_rng(7)
        scene = rng.integers(0, 256, (64, 256, 3), np.uint8).repeat(2, 0).repeat(2, 1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                "libx264", rate=25, options={"g": str(gop), "bf": "0", "sc_threshold": "0"}
            )
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            for index in range(60):
                pixels = np.ascontiguousarray(scene[:64, 4 * index : 4 * index + 96])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        return path

    @staticmethod
    def packets(path: Path) -> list[tuple[int, int]]:
        with av.open(str(path)) as container:
            return [(p.pos, p.size) for p in container.demux(video=0) if p.size]

    def spoil(self, path: Path, target: Path, frames: Sequence[int]) -> Path:
        """A copy in which the packets of these frames are noise."""
        content = bytearray(path.read_bytes())
        for frame in frames:
            at, size = self.packets(path)[frame]
            content[at : at + size] = random.Random(frame).randbytes(size)
        target.write_bytes(content)
        return target

    def test_frames_that_are_lost_are_replaced_and_counted(self, tmp_path: Path) -> None:
        whole = self.moving(tmp_path / "whole.mp4")
        damaged = self.spoil(whole, tmp_path / "damaged.mp4", [34])
        size = {"num_frames": 60, "height": 32, "width": 48}
        expected = sample_frames(whole, decoder="pyav", **size)
        with pytest.raises(VideoError, match="cannot be decoded"):
            sample_clip(damaged, **size)
        with GuardedDecoder(**size) as decoder:
            (answer,) = decoder.decode_many([damaged])
        assert isinstance(answer, Sampled)
        assert (answer.decoded, answer.expected) == (59, 60)
        np.testing.assert_array_equal(answer.frames[:34], expected[:34])
        np.testing.assert_array_equal(answer.frames[34], expected[33])
        np.testing.assert_array_equal(answer.frames[40:], expected[40:])

    def test_without_its_key_frame_a_group_does_not_count(self, tmp_path: Path) -> None:
        whole = self.moving(tmp_path / "whole.mp4")
        damaged = self.spoil(whole, tmp_path / "damaged.mp4", [20])
        size = {"num_frames": 60, "height": 32, "width": 48}
        expected = sample_frames(whole, decoder="pyav", **size)
        answer = sample_clip(damaged, decoder="pyav", **size)
        assert (answer.decoded, answer.expected) == (50, 60)
        np.testing.assert_array_equal(answer.frames[:20], expected[:20])
        np.testing.assert_array_equal(answer.frames[30:], expected[30:])
        assert all(np.array_equal(frame, expected[19]) for frame in answer.frames[20:30])

    def test_a_part_with_too_little_left_is_refused(self, tmp_path: Path) -> None:
        whole = self.moving(tmp_path / "whole.mp4")
        damaged = self.spoil(whole, tmp_path / "damaged.mp4", [20, 30])
        with GuardedDecoder(num_frames=4, height=32, width=48) as decoder:
            first, lost, half, rest = decoder.decode_many(
                Clip(str(damaged), start_s, end_s)
                for start_s, end_s in ((0.0, 0.8), (0.8, 1.6), (0.4, 1.6), (1.2, 2.4))
            )
        assert isinstance(first, Sampled) and (first.decoded, first.expected) == (20, 20)
        assert isinstance(lost, VideoError) and "none of its 20 frames" in lost.reason
        assert isinstance(half, VideoError)
        assert half.reason.startswith("10 of its 30 frames can be decoded, fewer than the 50%")
        assert isinstance(rest, Sampled) and (rest.decoded, rest.expected) == (20, 30)

    def test_annotated_frames_are_never_replaced(self, tmp_path: Path) -> None:
        whole = self.moving(tmp_path / "whole.mp4")
        damaged = self.spoil(whole, tmp_path / "damaged.mp4", [34])
        size = {"length": 60, "height": 32, "width": 48}
        expected = frames_at(whole, indices=[3, 59, 33], **size)
        with GuardedDecoder(decode=DECODE_AT) as decoder:
            given = decoder.decode(FileFrames(str(damaged), (3, 59, 33), 60, 32, 48))
            np.testing.assert_array_equal(given, expected)
            with pytest.raises(VideoError, match="none of its 1 frames can be decoded"):
                decoder.decode(FileFrames(str(damaged), (34,), 60, 32, 48))
            with pytest.raises(VideoError, match="frame 34 cannot be decoded"):
                decoder.decode(FileFrames(str(damaged), (33, 34), 60, 32, 48))

    def test_a_file_that_is_cut_off(self, tmp_path: Path) -> None:
        """Its header, at the front, promises frames that are not there."""
        whole = tmp_path / "whole.mp4"
        self.moving(tmp_path / "plain.mp4")
        with (
            av.open(str(tmp_path / "plain.mp4")) as source,
            av.open(str(whole), "w", options={"movflags": "faststart"}) as target,
        ):
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
        at, _ = self.packets(whole)[40]
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(whole.read_bytes()[:at])
        answer = sample_clip(cut, num_frames=4, height=32, width=48, decoder="pyav")
        assert (answer.decoded, answer.expected) == (40, 60)

    def test_limits_hold_for_pyav(self, tmp_path: Path) -> None:
        path = self.moving(tmp_path / "whole.mp4")
        size = {"num_frames": 100, "height": 4000, "width": 4000, "decoder": "pyav"}
        with (
            GuardedDecoder(memory_limit_bytes=10**9, **size) as decoder,
            pytest.raises(VideoError, match=r"Error|died"),
        ):
            decoder.decode(path)
        with (
            GuardedDecoder(time_limit_s=0.05, **size) as decoder,
            pytest.raises(VideoError, match="did not finish within"),
        ):
            decoder.decode(path)


def test_real_clips_with_damaged_bytes(shared: Path, tmp_path: Path) -> None:
    """How many decord reads, and of how many PyAV then gives frames; none are invented."""
    paths = sorted((shared / "data" / "corpus_real" / "clips").glob("*.mp4"))[::15]
    if not paths:
        pytest.skip("no real clips")
    counts = {"clips": len(paths), "decord": 0, "salvaged": 0, "quarantined": 0}
    size = {"height": 32, "width": 64}
    for number, path in enumerate(paths):
        draw = random.Random(number)
        content = bytearray(path.read_bytes())
        begin = content.find(b"mdat") + 4
        end = begin - 8 + int.from_bytes(content[begin - 8 : begin - 4], "big")
        for _ in range(draw.choice([2, 8, 32])):
            at = draw.randrange(begin, end - 8)
            content[at : at + 8] = draw.randbytes(8)
        damaged = tmp_path / path.name
        damaged.write_bytes(content)
        length = probe(path).num_frames
        every = {"num_frames": length, **size}
        try:
            sample_clip(damaged, **every)
            counts["decord"] += 1
            continue
        except VideoError:
            pass
        with GuardedDecoder(**every) as decoder:
            (answer,) = decoder.decode_many([damaged])
        if isinstance(answer, VideoError):
            assert answer.reason and "\n" not in answer.reason
            counts["quarantined"] += 1
            continue
        counts["salvaged"] += 1
        assert length / 2 <= answer.decoded < answer.expected == length
        # Whatever comes before the first byte that differs is as it was.
        first = min(
            i for i, (at, n) in enumerate(TestDamage.packets(path))
            if content[at : at + n] != path.read_bytes()[at : at + n]
        )  # fmt: skip
        truth = sample_frames(path, **every)
        if first > 4:  # Frames are reordered by at most a few places.
            np.testing.assert_array_equal(answer.frames[: first - 4], truth[: first - 4])
    print(counts)
    assert counts["clips"] >= 20 and counts["salvaged"] >= 10
