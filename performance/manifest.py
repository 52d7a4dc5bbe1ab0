"""What does a long manifest cost the program that embeds it?

Claim: before the first clip is decoded the whole list is hashed and checked, at more than a hundred
thousand clips a second on one core, in memory that does not grow with the list. Writes lists of two
lengths, and prints for each, in a process of its own: clips a second, and the memory that was taken
beyond that of the imports; sorted by id, and shuffled, which takes hashes of all ids.

    python performance/manifest.py [--clips 500000 2000000]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfshot.data.corpus_manifest import check_manifest, open_manifest

ROWS_PER_FILE = 100_000
# As many as the longer list asks for several passes over the shuffled ids.
HASHES_AT_ONCE = 1 << 18


def write(folder: Path, clips: int, *, shuffled: bool) -> None:
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, clips, ROWS_PER_FILE)):
        rows = np.arange(start, min(clips, start + ROWS_PER_FILE))
        if shuffled:
            rng.shuffle(rows)
        digits = pc.utf8_lpad(pc.cast(pa.array(rows), pa.string()), 12, "0")
        ids = pc.binary_join_element_wise("clip", digits, "-")
        seconds = pa.array(rows % 600, pa.float64())
        table = {
            "clip_id": ids,
            "uri": pc.binary_join_element_wise(digits, "mp4", "."),
            "start_s": seconds,
            "end_s": pc.add(seconds, 5.0),
        }
        pq.write_table(pa.table(table), folder / f"clips-{number:05d}.parquet")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(folder: str) -> None:
    # The first small list loads what is loaded lazily.
    with tempfile.TemporaryDirectory() as small:
        write(Path(small), 1000, shuffled=True)
        check_manifest(open_manifest(small), HASHES_AT_ONCE)
    before, began = peak_mb(), time.process_time()
    manifest = open_manifest(folder)
    check_manifest(manifest, HASHES_AT_ONCE)
    seconds = time.process_time() - began
    print(json.dumps({"rate": manifest.clips / seconds, "mb": peak_mb() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs=2, default=(500_000, 2_000_000))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone is not None:
        alone(chosen.alone)
        return
    for shuffled in (False, True):
        found = []
        for clips in chosen.clips:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), clips, shuffled=shuffled)
                words = [sys.executable, __file__, "--alone", folder]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
            print(
                f"{'shuffled' if shuffled else 'sorted':8s} {clips:9,d} clips  "
                f"{found[-1]['rate']:10,.0f} a second of CPU  {found[-1]['mb']:6.0f} MB"
            )
        ratio = found[1]["mb"] / max(found[0]["mb"], 1)
        longer = chosen.clips[1] / chosen.clips[0]
        print(f"ratio    {ratio:.2f} of the memory for {longer:g} times as many clips")


if __name__ == "__main__":
    main()
