"""A disk or a process that cannot read is no damaged file."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfshot.benchmarks.corpus_build import Cutting, build_manifest
from selfshot.benchmarks.corpus_items import Item, Wanted, walk_files
from selfshot.benchmarks.fingerprint import fingerprint
from selfshot.data.fetch import sample_stored_clip
from selfshot.data.images import image_names, read_image
from selfshot.data.video import sample_clip
from selfshot.errors import StorageError

SIZE = {"num_frames": 1, "height": 8, "width": 8}


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open no other file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: read_image(folder / "a.png", 8, 8),
        image_names,
        lambda folder: list(walk_files(folder, Wanted((".mp4",)), [])),
        lambda folder: fingerprint({}, [folder]),
        lambda folder: sample_stored_clip(str(folder / "clip.mp4"), offset=2, **SIZE),
    ],
    ids=["image", "frames", "folder", "fingerprint", "member"],
)
def test_too_many_open_files(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with contextlib.suppress(Exception):
        read(tmp_path)  # What it imports cannot be imported below.
    with no_more_files(), pytest.raises(StorageError, match=r"cannot be read: Too many open"):
        read(tmp_path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_mount_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")

    def gone(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    def build() -> dict[str, Any]:
        return build_manifest(
            [Item("clip.mp4", "clip", "clip")], str(tmp_path), str(tmp_path / "out"),
            cutting=Cutting(), items_per_file=1, workers=1, made_from="a test",
            on_message=lambda text: None,
        )  # fmt: skip

    with monkeypatch.context() as patched:
        patched.setattr("selfshot.data.fetch.open", gone, raising=False)
        with pytest.raises(StorageError, match=r"clip\.mp4 cannot be read"):
            build()
    assert build()["unread"] == 0
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", gone)
        with pytest.raises(StorageError, match=r"clip\.mp4 cannot be read"):
            sample_clip(tmp_path / "clip.mp4", **SIZE)
