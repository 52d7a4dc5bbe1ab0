"""The clips of a corpus that are nearest to a video or an image of one's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from selfshot.benchmarks.manifest import load_benchmark
from selfshot.config.addresses import is_address
from selfshot.config.schema import Experiment
from selfshot.data.corpus_manifest import (
    MAX_BYTES,
    Manifest,
    find_clips,
    open_manifest,
    stored_clip,
)
from selfshot.data.fetch import FETCH
from selfshot.data.guard import GuardedDecoder
from selfshot.errors import UserError
from selfshot.evaluation.rendering.sheets import Tile, query_sheet
from selfshot.models.device import device_for
from selfshot.models.encoders import open_encoder
from selfshot.retrieval.building import load_index
from selfshot.studies.finished import stage_folders
from selfshot.studies.predicting import read_clips
from selfshot.studies.retrieving import retrieval_stages, retrieve_clips

SETTINGS, RESULTS, SHEET = "settings.json", "results.json", "nearest.png"


@dataclasses.dataclass(frozen=True)
class Hit:
    """A clip that was found.

    Attributes:
        clip_id: of the corpus.
        score: its cosine with the query; of an experiment's retrieval, see `retrieve`.
        uri: of its video, relative to the corpus's root; None where the corpus is not there.
        start_s: where the clip begins in it, in seconds; None: at its start.
        end_s: where it ends; None: at its end.
    """

    clip_id: str
    score: float
    uri: str | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """A query's middle frame, uint8 (H, W, 3), and its nearest clips, best first."""

    name: str
    frame: np.ndarray
    hits: tuple[Hit, ...]


def search_index(
    folder: Path, queries: Sequence[Path], count: int, *, encoder: str, corpus: str | None
) -> tuple[list[Found], Manifest | None]:
    """Search an index that `selfshot index --embeddings` made, by one vector a query (Eq. 3).

    Args:
        folder: of the index.
        queries: videos, images or folders of frames.
        count: clips wanted of each.
        encoder: name or folder of the encoder that embedded the corpus.
        corpus: the manifest; None: the one that `selfshot embed` made beside the vectors, if any.

    Returns:
        what was found, and the manifest of the corpus.

    Raises:
        UserError: there is no index, the encoder is another one, or a query cannot be read.
    """
    try:
        said = json.loads((folder / SETTINGS).read_text())
        vectors: dict[str, Any] = said["vectors"]
        precision = vectors["precision"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"--index: {folder} is no index of selfshot index --embeddings (or of an earlier "
            "version); make it with that command",
            setting="--index",
        ) from None
    opened = open_encoder(encoder, precision)
    if opened.digest != vectors["encoder"]:
        raise UserError(
            f"--encoder: {encoder} ({opened.digest}) did not embed this corpus "
            f"({vectors['encoder']} did); give the encoder that did",
            setting="--encoder",
        )
    index = load_index(folder)
    size = (vectors["height"], vectors["width"])
    names, clips = _read_queries(queries, vectors["num_frames"], size)
    scores, ids = index.search(opened.encoder.embed(clips), min(count, len(index)))
    beside = Path(said["embeddings"]) / "manifest"
    if corpus is None and beside.is_dir():
        corpus = str(beside)
    manifest = None if corpus is None else open_manifest(corpus)
    found = [
        Found(name, clip[len(clip) // 2], tuple(map(Hit, some, map(float, cosines))))
        for name, clip, some, cosines in zip(names, clips, ids.tolist(), scores, strict=True)
    ]
    return placed(found, manifest), manifest


def search_experiment(
    experiment: Experiment, queries: Sequence[Path], count: int, on_message: Callable[[str], None]
) -> tuple[list[Found], Manifest | None]:
    """Search the corpus of an experiment as its stage `supports` does.

    Args:
        experiment: whose encoder and index are made.
        queries: see `search_index`.
        count: see `search_index`.
        on_message: receives the name of the device.

    Returns:
        see `search_index`.

    Raises:
        UserError: a stage is not done, or a query cannot be read.
    """
    folders = stage_folders(experiment, ["benchmark", *retrieval_stages(experiment)])
    benchmark = load_benchmark(folders["benchmark"])
    size = (benchmark.height, benchmark.width)
    names, clips = _read_queries(queries, benchmark.num_frames, size)
    device = device_for(experiment.compute.use_gpu, on_message)
    results = retrieve_clips(experiment, folders, clips, count, device)
    manifest = open_manifest(str(folders["benchmark"] / "corpus.parquet"))
    found = [
        Found(name, clip[len(clip) // 2], tuple(map(Hit, one.clip_ids, one.scores)))
        for name, clip, one in zip(names, clips, results, strict=True)
    ]
    return placed(found, manifest), manifest


def _read_queries(
    paths: Sequence[Path], num_frames: int, size: tuple[int, int]
) -> tuple[list[str], UInt8[np.ndarray, "clips time height width 3"]]:
    """Names and frames; a single image stands still for as long as a clip."""
    clips = read_clips(paths, num_frames, size, "--query")
    frames = [np.resize(clip.frames, (num_frames, *size, 3)) for clip in clips]
    return [clip.name for clip in clips], np.stack(frames)


def placed(found: Sequence[Found], manifest: Manifest | None) -> list[Found]:
    """The same, with where each clip is in the corpus."""
    if manifest is None:
        return list(found)
    rows = find_clips(manifest, {hit.clip_id for one in found for hit in one.hits})

    def place(hit: Hit) -> Hit:
        row = rows.get(hit.clip_id)
        if row is None:
            return hit
        return dataclasses.replace(hit, uri=row["uri"], start_s=row["start_s"], end_s=row["end_s"])

    return [dataclasses.replace(one, hits=tuple(map(place, one.hits))) for one in found]


def write_results(out: Path, found: Sequence[Found], manifest: Manifest | None) -> None:
    """Write results.json and, where the corpus is there, nearest.png: a row a query."""
    out.mkdir(parents=True, exist_ok=True)
    listed = [
        {"query": one.name, "clips": [dataclasses.asdict(hit) for hit in one.hits]} for one in found
    ]
    (out / RESULTS).write_text(json.dumps(listed, indent=1) + "\n")
    if manifest is None:
        return
    frames = _middle_frames(manifest, found)
    rows = [
        (
            Tile(one.frame, one.name[-28:]),
            [
                Tile(frames.get(hit.clip_id), f"{hit.score:.3f}\n{hit.clip_id[-28:]}")
                for hit in one.hits
            ],
        )
        for one in found
    ]
    query_sheet(rows).save(out / SHEET)


def _middle_frames(
    manifest: Manifest, found: Sequence[Found]
) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
    """A frame of each clip that can be read, at the size of the first query's."""
    height, width = found[0].frame.shape[:2]
    root = manifest.root
    rows = find_clips(manifest, {hit.clip_id for one in found for hit in one.hits})
    clips = [
        stored_clip(root, row, confine=not is_address(root), max_bytes=MAX_BYTES)
        for row in rows.values()
    ]
    with GuardedDecoder(decode=FETCH, num_frames=1, height=height, width=width) as decoder:
        answers = zip(rows, decoder.decode_many(clips), strict=True)
        return {
            name: answer.frames[0] for name, answer in answers if not isinstance(answer, Exception)
        }
