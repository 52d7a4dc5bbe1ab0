"""Storage that is away, as the engine's workers meet it."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_parts import mean_colour

from selfshot.data.corpus_manifest import open_manifest
from selfshot.distributed.embedding import EmbeddingJob, embed_corpus
from selfshot.errors import StorageError

pytestmark = pytest.mark.usefixtures("ray_running")


def test_clips_of_storage_that_is_away_are_not_quarantined(
    small_corpus: Path, tmp_path: Path
) -> None:
    address = "webhdfs://127.0.0.1:9/videos"  # Nothing listens there.
    manifest = open_manifest(str(small_corpus / "clips.parquet"), root=address)
    with pytest.raises(StorageError, match=r"webhdfs://127\.0\.0\.1:9.*cannot be read") as caught:
        embed_corpus(
            manifest, mean_colour(small_corpus / "encoder"),
            EmbeddingJob(
                num_frames=3, height=32, width=48, clips_per_batch=2, clips_per_shard=4,
                decode_timeout_s=60, decode_memory_mb=512, max_quarantine_share=1.0,
            ),
            settings={"encoder": "mean"}, out=str(tmp_path / "out"),
        )  # fmt: skip
    assert type(caught.value) is StorageError
    assert not list(tmp_path.glob("out/shard-*"))
