"""What does reading a large annotation file cost?

Claim: a file of 200 MB is read and checked in seconds, and the peak memory stays below four times
the file. Writes such a file (tracks of 30 frames of 720p, as compressed RLE with boxes and areas)
and prints, for a process of its own that reads it, the time, the peak, and the peak / the size.

    python performance/reading.py [--megabytes 200]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from video_ap import make

from selfshot.data.ytvis import Annotations, Track, load_annotations, save_annotations
from selfshot.ops.masks import rle_to_box


def write(path: Path, megabytes: int) -> None:
    truth, _ = make(20)
    with_boxes = [
        dataclasses.replace(
            track, boxes=tuple(rle and rle_to_box(rle) for rle in track.segmentations)
        )
        for track in truth.tracks
    ]
    save_annotations(path, dataclasses.replace(truth, tracks=tuple(with_boxes)))
    times = round(megabytes * 1e6 / path.stat().st_size)
    tracks: list[Track] = []
    for _ in range(times):
        for track in with_boxes:
            tracks.append(dataclasses.replace(track, id=len(tracks) + 1))
    save_annotations(path, Annotations(truth.videos, truth.categories, tuple(tracks)))


def alone(path: Path) -> None:
    # The peak before is that of the imports.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    tracks = len(load_annotations(path).tracks)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tracks": tracks, "seconds": seconds, "before": before, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone is not None:
        alone(chosen.alone)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        write(path, chosen.megabytes)
        size = path.stat().st_size / 1e6
        done = subprocess.run(
            [sys.executable, __file__, "--alone", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout)
    print(f"file         {size:8.0f} MB, {found['tracks']} tracks")
    print(f"reading      {found['seconds']:8.1f} s")
    print(f"peak memory  {found['peak']:8.0f} MB, {found['before']:.0f} MB before reading")
    print(f"ratio        {found['peak'] / size:8.2f} of the file")


if __name__ == "__main__":
    main()
