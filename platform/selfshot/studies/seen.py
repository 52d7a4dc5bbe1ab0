"""The stage `seen`: Φ of labelled clips of the seen classes, for the seen-class penalty."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from selfshot.benchmarks.manifest import load_benchmark
from selfshot.errors import UserError
from selfshot.models.trained_encoder import FrozenEncoder
from selfshot.studies.describing import QUERIES_AT_ONCE

VECTORS_FILE, VIDEOS_FILE = "seen.safetensors", "seen.json"


def embed_seen(
    folder: Path,
    clips_per_class: int,
    *,
    benchmark_folder: Path,
    encoder: FrozenEncoder,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write the vectors of the first support videos of each class of the side `train`.

    Args:
        folder: of the stage.
        clips_per_class: videos of a class at most.
        benchmark_folder: of the benchmark.
        encoder: the trained Φ, on any device.
        on_progress: told how many videos of how many are embedded.

    Returns:
        How many clips of how many classes there are.

    Raises:
        UserError: the benchmark has no support video of a seen class.
    """
    benchmark = load_benchmark(benchmark_folder)
    by_class = {
        name: list(videos[:clips_per_class])
        for name, videos in benchmark.supports["train"].items()
        if videos
    }
    videos = sorted({video for some in by_class.values() for video in some})
    if not videos:
        raise UserError(
            "evaluation.supports: 'seen_penalty' needs labelled videos of seen classes, and the "
            "benchmark has no support video of one; take the row out",
            setting="evaluation.supports",
        )
    reader = benchmark.reader(benchmark_folder)
    vectors = []
    for start in range(0, len(videos), QUERIES_AT_ONCE):
        part = videos[start : start + QUERIES_AT_ONCE]
        vectors.append(encoder.embed(np.stack([reader.frames(video) for video in part])))
        on_progress(min(start + QUERIES_AT_ONCE, len(videos)), len(videos))
    save_file(
        {"vectors": np.ascontiguousarray(np.concatenate(vectors), np.float32)},
        folder / VECTORS_FILE,
    )
    (folder / VIDEOS_FILE).write_text(json.dumps({"videos": videos, "classes": by_class}))
    return {"clips": len(videos), "classes": len(by_class)}


def read_seen(folder: Path) -> Float[np.ndarray, "clips dim"]:
    """The vectors that `embed_seen` wrote.

    Raises:
        UserError: they cannot be read.
    """
    path = folder / VECTORS_FILE
    try:
        return load_file(path)["vectors"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: it cannot be read: {error}; make the stage again") from None
