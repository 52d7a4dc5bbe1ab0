"""Frames out of video files and images, and a decoder that may hang or die."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from selfshot.data.guard import Clip, GuardedDecoder
from selfshot.data.video import Sampled, VideoError, probe, sample_frames

FRAMES, HEIGHT, WIDTH, FPS = 20, 48, 64, 10

FAKE = """
import ctypes, os, signal, sys, time
import numpy as np
from selfshot.data.video import VideoError

def decode(path, *, num_frames, height, width, start_s, end_s, decoder):
    print("noise on standard output")
    if path.endswith("_decord"):
        if decoder == "pyav":
            return np.full((num_frames, height, width, 3), 77, np.uint8)
        path = path.removesuffix("_decord")
    if path == "hang":
        time.sleep(600)
    if path == "hang_holding_the_gil":
        ctypes.PyDLL(None).sleep(600)
    if path == "exit":
        os._exit(3)
    if path == "crash":
        print("about to crash", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if path == "refuse":
        raise VideoError("a reason with an é")
    if path == "bug":
        raise IndexError("out of range")
    if path == "wrong_shape":
        return np.zeros((1, 2, 3), np.uint8)
    return np.full((num_frames, height, width, 3), int(path), np.uint8)
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds in which frame i is grey of value 10·i."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            image = np.full((HEIGHT, WIDTH, 3), 10 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedDecoder]:
    (tmp_path / "fake_decoder.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with GuardedDecoder(
        num_frames=2, height=3, width=5, time_limit_s=1.0, decode="fake_decoder:decode"
    ) as decoder:
        yield decoder


def _which(frames: np.ndarray) -> list[int]:
    return (frames.reshape(len(frames), -1).mean(1) / 10).round().astype(int).tolist()


def test_the_middles_of_equal_parts(video: Path) -> None:
    frames = sample_frames(video, num_frames=5, height=24, width=32)
    assert frames.shape == (5, 24, 32, 3) and frames.dtype == np.uint8
    assert _which(frames) == [2, 6, 10, 14, 18]


def test_a_part_of_a_video(video: Path) -> None:
    frames = sample_frames(video, num_frames=2, height=24, width=32, start_s=1.0, end_s=1.4)
    assert _which(frames) == [11, 13]
    rest = sample_frames(video, num_frames=1, height=24, width=32, start_s=1.5, end_s=60.0)
    assert _which(rest) == [17]


def test_more_frames_than_the_video_has(video: Path) -> None:
    frames = sample_frames(video, num_frames=4, height=24, width=32, end_s=0.2)
    assert _which(frames) == [0, 0, 1, 1]


def test_a_part_with_too_few_frames(video: Path) -> None:
    size = {"num_frames": 3, "height": HEIGHT, "width": WIDTH}
    part = {"start_s": 0.5, "end_s": 1.0}
    whole = sample_frames(video, **size, **part)
    np.testing.assert_array_equal(sample_frames(video, **size, **part, least_frames=5), whole)
    with pytest.raises(VideoError, match="it has 5 frames where 6 are needed"):
        sample_frames(video, **size, **part, least_frames=6)
    with GuardedDecoder(**size, least_frames=6) as guard:
        assert guard.decode(video).shape == (3, HEIGHT, WIDTH, 3)
        with pytest.raises(VideoError, match="it has 5 frames where 6 are needed"):
            guard.decode(Clip(str(video), **part))


def test_facts(video: Path) -> None:
    facts = probe(video)
    assert (facts.num_frames, facts.height, facts.width) == (FRAMES, HEIGHT, WIDTH)
    assert facts.fps == pytest.approx(FPS)


def test_a_part_without_frames(video: Path) -> None:
    with pytest.raises(VideoError, match=r"no frame between 5.0 s and 6.0 s; it has 2.00 s"):
        sample_frames(video, num_frames=1, height=24, width=32, start_s=5.0, end_s=6.0)


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"height": 0}, {"start_s": 2.0, "end_s": 1.0}]
)
def test_numbers_that_make_no_sense(video: Path, wrong: dict[str, float]) -> None:
    good = {"num_frames": 2, "height": 24, "width": 32}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sample_frames(video, **(good | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "empty"), (b"no video at all", "cannot be opened")],
)
def test_what_is_no_video(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=reason) as caught:
        sample_frames(path, num_frames=2, height=24, width=32)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.reason, copied.path) == (caught.value.reason, str(path))


def test_odd_videos_give_frames_or_a_reason(shared: Path) -> None:
    folder = shared / "data" / "odd_videos"
    if not folder.is_dir():
        pytest.skip(f"no odd videos at {folder}")
    paths = sorted(folder.iterdir())
    with GuardedDecoder(num_frames=8, height=64, width=64, time_limit_s=20) as decoder:
        started = time.monotonic()
        answers = dict(zip([p.name for p in paths], decoder.decode_many(paths), strict=True))
        assert time.monotonic() - started < 20 * len(paths)
    for answer in answers.values():
        if isinstance(answer, VideoError):
            assert answer.reason and "\n" not in answer.reason
        else:
            assert answer.frames.shape == (8, 64, 64, 3) and answer.frames.std() > 0
    for name in ("empty.mp4", "not_a_video.mp4", "truncated.mp4"):
        assert isinstance(answers[name], VideoError), name
    for name in ("KAY_VID2.AVI", "Taï cam61.avi", "three_frames.mp4", "pancake.mkv"):
        assert isinstance(answers[name], Sampled), name


def test_the_memory_limit_is_the_clips_own(video: Path) -> None:
    """A small clip needs little, whatever the decoder's own libraries take."""
    size = {"num_frames": 5, "height": 24, "width": 32}
    with GuardedDecoder(**size, memory_limit_bytes=200 * 2**20) as decoder:
        np.testing.assert_array_equal(decoder.decode(video), sample_frames(video, **size))


def test_the_guard_gives_the_same_frames(video: Path) -> None:
    whole = sample_frames(video, num_frames=5, height=24, width=32)
    part = sample_frames(video, num_frames=5, height=24, width=32, start_s=0.5, end_s=1.5)
    with GuardedDecoder(num_frames=5, height=24, width=32) as decoder:
        np.testing.assert_array_equal(decoder.decode(video), whole)
        np.testing.assert_array_equal(decoder.decode(Clip(str(video), 0.5, 1.5)), part)
        assert decoder.restarts == 0


def _told(answer: Sampled | np.ndarray | VideoError) -> int | str:
    if isinstance(answer, VideoError):
        return answer.reason
    return int((answer.frames if isinstance(answer, Sampled) else answer).flat[0])


def test_a_bad_clip_costs_that_clip(fake: GuardedDecoder) -> None:
    clips = ["1", "exit", "2", "hang", "3", "refuse", "bug", "crash", "4", "exit"]
    assert [_told(answer) for answer in fake.decode_many(clips)] == [
        1,
        "the decoder's process died (exit code 3: noise on standard output)",
        2,
        "the decoder did not finish within 1 s",
        3,
        "a reason with an é",
        "IndexError: out of range",
        "the decoder's process died (SIGSEGV: about to crash)",
        4,
        "the decoder's process died (exit code 3: noise on standard output)",
    ]
    assert fake.restarts == 8, "each once more with PyAV"
    assert _told(fake.decode("5")) == 5


def test_what_decord_fails_with_is_tried_with_pyav(fake: GuardedDecoder) -> None:
    clips = ["exit_decord", "1", "hang_decord", "refuse_decord", "2", "bug_decord"]
    assert [_told(answer) for answer in fake.decode_many(clips)] == [77, 1, 77, 77, 2, 77]
    assert fake.restarts == 2


def test_frames_of_another_shape_are_no_answer(fake: GuardedDecoder) -> None:
    with pytest.raises(VideoError, match="makes no sense"):
        fake.decode("wrong_shape")
    assert _told(fake.decode("6")) == 6


def test_answers_that_nobody_takes_do_not_come_later(fake: GuardedDecoder) -> None:
    answers = fake.decode_many(["1", "2", "3"])
    assert _told(next(answers)) == 1
    answers.close()  # type: ignore[attr-defined]
    assert _told(fake.decode("9")) == 9


def test_a_forked_process_has_a_child_of_its_own(fake: GuardedDecoder) -> None:
    assert _told(fake.decode("1")) == 1
    answers = fake.decode_many(["2", "3", "4", "5"])
    assert _told(next(answers)) == 2
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def forked() -> None:
        told.put([_told(answer) for answer in fake.decode_many(["60", "61", "62"])])
        # The fork has a copy of the generator that is open in its parent, too.
        told.put([_told(answer) for answer in answers])

    process = context.Process(target=forked)
    process.start()
    ours = [_told(answer) for answer in answers]
    assert told.get() == [60, 61, 62]
    assert told.get() == ours == [3, 4, 5]
    process.join()
    # It ended, and the parent's child lives on: nothing is restarted.
    child = fake._idle[0]._process
    assert child is not None and child.poll() is None
    assert _told(fake.decode("7")) == 7 and fake.restarts == 0
    assert fake._idle[0]._process is child


def test_threads_and_open_calls_have_children_of_their_own(fake: GuardedDecoder) -> None:
    def decode(thread: int) -> list[int | str]:
        clips = [str(20 * thread + clip) for clip in range(20)]
        return [_told(answer) for answer in fake.decode_many(clips)]

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(decode, range(4)))
    assert told == [list(range(20 * thread, 20 * thread + 20)) for thread in range(4)]
    pairs = zip(fake.decode_many("12345"), fake.decode_many("67890"), strict=True)
    assert [(_told(a), _told(b)) for a, b in pairs] == [(1, 6), (2, 7), (3, 8), (4, 9), (5, 0)]
    fake.close()
    assert not fake._idle


def test_a_pickled_decoder_starts_its_own_child(fake: GuardedDecoder) -> None:
    assert _told(fake.decode("1")) == 1
    with pickle.loads(pickle.dumps(fake)) as other:
        assert not other._idle and _told(other.decode("2")) == 2
    assert _told(fake.decode("3")) == 3


def test_no_clips(fake: GuardedDecoder) -> None:
    assert list(fake.decode_many([])) == []


def test_a_decoder_that_cannot_be_imported_is_no_clips_fault() -> None:
    with (
        GuardedDecoder(num_frames=1, height=2, width=3, decode="no_such_module:x") as decoder,
        pytest.raises(RuntimeError, match=r"does not start: exit code 1: .*no_such_module"),
    ):
        decoder.decode("clip.mp4")


def test_the_child_is_light() -> None:
    code = "import sys, selfshot.data.guard as g; print({'torch', 'decord'} & set(sys.modules))"
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("clip", ["1", "hang_holding_the_gil"])
def test_the_child_dies_with_its_parent(tmp_path: Path, clip: str) -> None:
    (tmp_path / "fake_decoder.py").write_text(FAKE)
    code = (
        "import sys, threading, time\n"
        "from selfshot.data.guard import GuardedDecoder\n"
        "d = GuardedDecoder(num_frames=1, height=2, width=3, time_limit_s=1.0,\n"
        "                   decode='fake_decoder:decode')\n"
        "d.decode('1')\n"
        "print(d._idle[0]._process.pid, flush=True)\n"
        f"d.decode({clip!r})\n"
        "time.sleep(600)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 15
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    """Not gone, and not a zombie that waits for whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
