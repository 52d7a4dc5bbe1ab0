"""Real videos with bytes flipped, cut and swapped, through the job itself: all accounted for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engine_parts import mean_colour

from selfshot.data.corpus_manifest import open_manifest
from selfshot.distributed.embedding import EmbeddingJob, embed_corpus
from selfshot.retrieval.embeddings import read_embeddings, read_quarantine

pytestmark = [
    pytest.mark.usefixtures("ray_running"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

VARIANTS = 216
SEED = 20221


def flip(content: bytearray, rng: np.random.Generator) -> None:
    """Bits of 1 to 64 bytes anywhere."""
    for at in rng.integers(0, len(content), rng.integers(1, 65)):
        content[at] ^= 1 << int(rng.integers(8))


def flip_head(content: bytearray, rng: np.random.Generator) -> None:
    """Bytes of the first kilobyte, where sizes, counts and codecs stand."""
    for at in rng.integers(0, min(1024, len(content)), rng.integers(1, 17)):
        content[at] = int(rng.integers(256))


def flip_tail(content: bytearray, rng: np.random.Generator) -> None:
    """Bytes of the last kilobytes, where many files have their index."""
    for at in rng.integers(max(0, len(content) - 4096), len(content), rng.integers(1, 33)):
        content[at] = int(rng.integers(256))


def cut(content: bytearray, rng: np.random.Generator) -> None:
    """The end is missing."""
    del content[int(rng.integers(1, len(content))) :]


def cut_out(content: bytearray, rng: np.random.Generator) -> None:
    """Some of the middle is missing."""
    start = int(rng.integers(len(content)))
    del content[start : start + int(rng.integers(1, 4096))]


def swap(content: bytearray, rng: np.random.Generator) -> None:
    """Two parts have changed places."""
    length = int(rng.integers(1, min(2048, len(content) // 3)))
    first = int(rng.integers(0, len(content) - 2 * length))
    second = int(rng.integers(first + length, len(content) - length + 1))
    one, other = content[first : first + length], content[second : second + length]
    content[first : first + length], content[second : second + length] = other, one


CHANGES = (flip, flip_head, flip_tail, cut, cut_out, swap)


def test_every_variant_is_embedded_or_quarantined(shared: Path, tmp_path: Path) -> None:
    sources = sorted((shared / "data/corpus_real/clips").glob("*.mp4"))[::48]
    sources += sorted((shared / "data/odd_videos").iterdir())
    sources = [path for path in sources if 5000 < path.stat().st_size < 10**6]
    rng = np.random.default_rng(SEED)
    names = []
    for number in range(VARIANTS):
        change = CHANGES[number % len(CHANGES)]
        source = sources[number // len(CHANGES) % len(sources)]
        content = bytearray(source.read_bytes())
        change(content, rng)
        names.append(f"{number:03d}_{change.__name__}{source.suffix}")
        (tmp_path / names[-1]).write_bytes(content)
    columns = {
        "clip_id": names,
        "uri": names,
        "start_s": pa.nulls(VARIANTS, pa.float64()),
        "end_s": pa.nulls(VARIANTS, pa.float64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
    messages: list[str] = []
    summary = embed_corpus(
        open_manifest(str(tmp_path / "clips.parquet")), mean_colour(tmp_path),
        EmbeddingJob(
            num_frames=3, height=32, width=32, clips_per_batch=8, clips_per_shard=40,
            decode_timeout_s=10.0, decode_memory_mb=2048, max_quarantine_share=1.0,
            concurrency=2,
        ),
        settings={"encoder": "mean colour"}, out=tmp_path / "out", on_message=messages.append,
    )  # fmt: skip
    assert summary["embedded"] + summary["quarantined"] == summary["clips"] == VARIANTS
    ids, vectors = read_embeddings(tmp_path / "out")
    quarantined = read_quarantine(tmp_path / "out")
    assert sorted([*ids, *(clip for clip, _ in quarantined)]) == names
    assert np.isfinite(vectors).all() and all(reason for _, reason in quarantined)
    # Both happen: a test in which nothing broke, or nothing survived, would show little.
    assert summary["embedded"] > 20 and summary["quarantined"] > 20
    assert not messages, "the pipeline had to be built anew"
    print(summary)
    kinds = Counter(reason.partition(":")[0][:60] for _, reason in quarantined)
    for reason, count in kinds.most_common():
        print(f"{count:4d}  {reason}")
