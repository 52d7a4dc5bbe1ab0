"""A run that stops in mid-stream ends by itself, whatever it is that stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

pytestmark = pytest.mark.timeout(240)

HERE = Path(__file__).resolve().parent
FILES, BROKEN = 186, 57
RUN = """
import sys
from pathlib import Path
from engine_parts import mean_colour
from selfshot.cli import main
from selfshot.models import encoders

folder = Path(sys.argv[1])
made = encoders.LoadedEncoder(mean_colour(folder), "mean_colour", 32, 32)
encoders.open_encoder = lambda name, precision: made
sys.exit(main(["embed", "--corpus", str(folder / "videos"), "--out", str(folder / "out"),
    "--encoder", "mean_colour", *sys.argv[2:]]))
"""
SMALL = ["--set", "embedding.clips_per_shard=4"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """videos/ with 186 files, of which 57 are broken."""
    videos = tmp_path / "videos"
    videos.mkdir()
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for frame in range(8):
            pixels = np.full((32, 64, 3), 30 * frame, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    whole = (tmp_path / "video.mp4").read_bytes()
    for number in range(FILES):
        broken = number * BROKEN // FILES != (number + 1) * BROKEN // FILES
        (videos / f"{number:03d}.mp4").write_bytes(b"no video" if broken else whole)
    return tmp_path


def start(folder: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(HERE.parents[1] / "platform"), str(HERE)])
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), *SMALL],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_too_many_broken_files(folder: Path) -> None:
    process = start(folder)
    try:
        written, errors = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 2, errors
    (line, *reasons) = errors.splitlines()
    assert "of 186 clips cannot be embedded" in line
    assert "--set embedding.max_quarantine_share=" in line
    # Nothing but the message: no thread of Ray's has started another Ray meanwhile.
    assert reasons and all(reason.startswith("  ") for reason in reasons), errors
    assert "186 clips of" in written


def test_control_c(folder: Path) -> None:
    (folder / "seconds.txt").write_text("0.5")
    process = start(folder)
    try:
        while len(list((folder / "out").glob("shard-*.parquet"))) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors == "stopped; run the same command to go on\n"
