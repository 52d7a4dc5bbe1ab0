"""A disk that is full, at one size after another: one line, and the same command goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "integration" / "toy.yaml"
SIZES_KB = (64, 300, 600, 1000, 1500, 2000, 3000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZES_KB[0]}k", "none", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run(output: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "selfshot.cli", "run", str(TOY), "--set", f"output={output}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def test_a_full_disk_ends_in_one_line(disk: Path) -> None:
    full = 0
    for size in SIZES_KB:
        subprocess.run(
            ["mount", "-o", f"remount,size={size}k", str(disk)], check=True, capture_output=True
        )
        done = run(disk / "runs")
        if done.returncode == 0:
            break
        full += 1
        said = done.stdout + done.stderr
        print(f"{size} KB:", said.splitlines()[-1])
        assert done.returncode == 2 and "Traceback" not in said, said
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ") and "run the same command" in last, said
        assert "a disk is full" in last or "No space left on device" in last, said
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, capture_output=True)
    done = run(disk / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"{full} full disks, each ended in one line")
    assert full >= 3
    assert (disk / "runs" / "toy" / "report" / "report.html").stat().st_size > 0
