"""Clips that are no files of their own: inside another file, behind an address, out of bounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from refusals import refused
from selfshot.data.fetch import FETCH, sample_stored_clip
from selfshot.data.guard import GuardedDecoder, StoredClip
from selfshot.data.video import VideoError, sample_frames
from selfshot.errors import StorageError

SIZE = {"num_frames": 3, "height": 32, "width": 64}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import av

    path = tmp_path_factory.mktemp("videos") / "moving.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for frame in range(11):
            pixels = np.full((32, 64, 3), 20 * frame, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_member_of_a_larger_file(video: Path, tmp_path: Path) -> None:
    content = video.read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"x" * 512 + content + b"y" * 700)
    frames = sample_stored_clip(
        str(tmp_path / "shard.tar"), offset=512, length=len(content), **SIZE
    ).frames
    np.testing.assert_array_equal(frames, sample_frames(video, **SIZE))
    with pytest.raises(VideoError, match="ends 100 bytes before it does"):
        sample_stored_clip(
            str(tmp_path / "shard.tar"), offset=512, length=len(content) + 800, **SIZE
        )
    with pytest.raises(VideoError, match="more than 0 MB"):
        sample_stored_clip(str(tmp_path / "shard.tar"), offset=512, max_bytes=100, **SIZE)


def test_a_video_behind_an_address(video: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/clips/a b.mp4", video.read_bytes())
    try:
        frames = sample_stored_clip("memory://clips/a b.mp4", start_s=0.5, **SIZE).frames
        np.testing.assert_array_equal(frames, sample_frames(video, start_s=0.5, **SIZE))
        with pytest.raises(VideoError, match="cannot be read"):
            sample_stored_clip("memory://clips/none.mp4", **SIZE)
    finally:
        files.rm("/clips", recursive=True)


def test_links_out_of_the_corpus_are_not_followed(video: Path, tmp_path: Path) -> None:
    inside = tmp_path / "corpus"
    inside.mkdir()
    (inside / "link.mp4").symlink_to(video)
    with pytest.raises(VideoError, match="leads out of the corpus folder"):
        sample_stored_clip(str(inside / "link.mp4"), within=str(inside), **SIZE)
    os.link(video, inside / "own.mp4")
    sample_stored_clip(str(inside / "own.mp4"), within=str(inside), **SIZE)


def test_a_decoder_that_wants_too_much_memory(video: Path) -> None:
    """The limit is of the child alone: this process goes on, and so does the next clip."""
    big = {"num_frames": 100, "height": 4000, "width": 4000}
    with GuardedDecoder(
        decode="selfshot.data.fetch:sample_stored_clip", memory_limit_bytes=2 * 10**9, **big
    ) as decoder:
        with pytest.raises(VideoError):
            decoder.decode(StoredClip(str(video)))
        with pytest.raises(VideoError):
            decoder.decode(StoredClip(str(video.with_name("none.mp4"))))


def test_an_outage_is_no_broken_clip(
    video: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/clips/a.mp4", video.read_bytes())

    def away(*args: Any, **kwargs: Any) -> None:
        raise OSError("503 Slow Down")

    monkeypatch.setattr("selfshot.data.storage.FIRST_WAIT_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(type(files), "_open", away)
        with refused(kind=StorageError):
            sample_stored_clip("memory://clips/a.mp4", **SIZE)
    files.rm("/clips", recursive=True)
    with pytest.raises(VideoError, match="cannot be read"):
        sample_stored_clip("http://127.0.0.1:9/clip.mp4", **SIZE)
    # The decoder's process says which it was.
    (tmp_path / "away.py").write_text(
        "from selfshot.errors import StorageError\n"
        "def sample(**clip):\n"
        "    raise StorageError('storage: s3://gone cannot be read: 503')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with GuardedDecoder(decode="away:sample", **SIZE) as decoder:
        for _ in range(2):
            with refused(kind=StorageError):
                decoder.decode(StoredClip(str(video)))


def test_a_web_server_that_is_busy_is_asked_again(
    video: Path, web_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec says of each of these answers that there is no such file."""
    monkeypatch.setattr("selfshot.data.storage.FIRST_WAIT_S", 0.0)
    address, web_server.content = f"{web_server.address}/clip.mp4", video.read_bytes()
    web_server.times = 4
    frames = sample_stored_clip(address, **SIZE).frames
    np.testing.assert_array_equal(frames, sample_frames(video, **SIZE))
    web_server.times = 100
    with pytest.raises(VideoError, match=r"cannot be read.*503"):
        sample_stored_clip(address, **SIZE)
    for final in (403, 404):
        web_server.refusal, web_server.times, before = final, 100, web_server.requests
        with pytest.raises(VideoError, match="cannot be read"):
            sample_stored_clip(address, **SIZE)
        assert web_server.requests - before <= 2  # HEAD, then GET.


def test_what_cannot_be_fetched_is_not_fetched_again_for_the_other_decoder(
    web_server: Any,
) -> None:
    web_server.refusal, web_server.times = 404, 100
    with (
        GuardedDecoder(decode=FETCH, **SIZE) as decoder,
        pytest.raises(VideoError, match="cannot be read"),
    ):
        decoder.decode(StoredClip(f"{web_server.address}/clip.mp4"))
    assert web_server.requests == 2  # HEAD, then GET.
