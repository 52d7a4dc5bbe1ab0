"""A corpus without an experiment: list it, embed it with any encoder, index the embeddings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfshot.config.schema import Experiment
from selfshot.errors import UserError
from selfshot.files import remove_partial_files, rename_folder
from selfshot.studies.progress import Progress

if TYPE_CHECKING:
    from selfshot.distributed.embedding import EmbeddingJob

ITEMS_PER_FILE = 10_000


def embedding_job(
    experiment: Experiment, height: int, width: int, *, retry_quarantined: bool = False
) -> EmbeddingJob:
    """Of an experiment's sections, for frames of a size in pixels."""
    from selfshot.distributed.embedding import EmbeddingJob

    return EmbeddingJob(
        **experiment.embedding.model_dump(),
        **experiment.compute.model_dump(include={"use_gpu", "autoscales", "max_failures"}),
        height=height,
        width=width,
        retry_quarantined=retry_quarantined,
    )


def account(summary: dict[str, Any]) -> str:
    """The sum that must come out."""
    count = summary["salvaged"]
    salvaged = f"; {count} damaged clip{'s are' if count > 1 else ' is'} salvaged" * bool(count)
    return (
        f"{summary['embedded']} embedded + {summary['quarantined']} quarantined "
        f"= {summary['clips']} clips of the manifest{salvaged}"
    )


def build(
    *,
    videos: str | None,
    uris: Path | None,
    segments: Path | None,
    tars: str | None,
    root: str | None,
    out: str,
    clip_s: float | None,
    segment_s: float,
    shots: bool,
    hashed: bool,
    items_per_file: int,
    workers: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write a corpus manifest, or go on with it.

    Args:
        videos, uris, segments, tars: one of them: a folder of videos, a list of addresses, a CSV
            of segments, a folder of tars.
        root: what the paths of a list or CSV start at; None: the folder that the file is in.
        out: folder of the manifest, or its address.
        clip_s: longest clip; None: a video is one clip.
        segment_s: length of a segment whose line names no end.
        shots: whether a clip may not reach over a cut.
        hashed: whether the videos' bytes are hashed.
        items_per_file: videos of one Parquet file.
        workers: how many are looked at together.
        progress: told how far it is.

    Returns:
        what corpus.json holds.

    Raises:
        UserError: there is nothing to list, or it cannot be listed.
    """
    from selfshot.benchmarks import corpus_build, corpus_items

    set_aside: list[tuple[str, str]] = []
    if videos is not None or tars is not None:
        address, setting = (videos, "--videos") if videos is not None else (tars, "--tars")
        assert address is not None
        here = corpus_items.local_root(address, setting)
        root = address if here is None else str(here)
        of = corpus_items.of_videos if videos is not None else corpus_items.of_tars
        items = of(address, set_aside)
        made_from = f"{setting[2:]} {root}"
    else:
        listed = uris or segments
        assert listed is not None
        here = corpus_items.local_root(root or str(listed.absolute().parent), "--root")
        root = str(root if here is None else here)
        made_from = f"{'uris' if uris else 'segments'} {listed}"
        items = (
            corpus_items.of_uris(listed) if uris else corpus_items.of_segments(listed, segment_s)
        )
    facts = corpus_build.build_manifest(
        items,
        root,
        out,
        cutting=corpus_build.Cutting(clip_s=clip_s, shots=shots, hashed=hashed),
        items_per_file=items_per_file,
        workers=workers,
        made_from=made_from,
        on_message=progress.note,
    )
    for what, reason in set_aside[:5]:
        progress.note(f"set aside {what}: {reason}")
    if not facts["clips"]:
        raise UserError(f"--{made_from}: holds no video; nothing was listed")
    progress.note(
        f"{facts['clips']} clips of {facts['items']} videos, {facts['bytes'] / 1e6:.1f} MB, "
        f"{len(set_aside)} set aside, {facts['unread']} cannot be read"
    )
    return facts


def embed(
    experiment: Experiment,
    *,
    corpus: str,
    out: str,
    encoder: str,
    root: str | None,
    size: tuple[int, int] | None,
    retry_quarantined: bool,
) -> dict[str, Any]:
    """Embed a corpus, or go on with it.

    Args:
        experiment: of which only the sections `embedding` and `compute` are read.
        corpus: a manifest: its Parquet file, its folder, or the address of either; or a folder
            of videos, of which a manifest is made in `out`.
        out: folder of the shards, or its address.
        encoder: name of an encoder, or the folder of an exported one.
        root: what the manifest's URIs are relative to; None: as the manifest says.
        size: height and width of a frame; None: those of the encoder.
        retry_quarantined: embed the shards again that hold quarantined clips.

    Returns:
        what summary.json holds.

    Raises:
        UserError: something is not there, or cannot be embedded.
    """
    from selfshot.data.corpus_manifest import open_manifest
    from selfshot.distributed.embedding import embed_corpus
    from selfshot.distributed.session import ray_session
    from selfshot.models.encoders import open_encoder

    progress = Progress(1)
    if _is_folder_of_videos(corpus):
        listed = f"{out.rstrip('/')}/manifest"
        build(
            videos=corpus, uris=None, segments=None, tars=None, root=None, out=listed, clip_s=None,
            segment_s=5.0, shots=False, hashed=True, items_per_file=ITEMS_PER_FILE,
            workers=len(os.sched_getaffinity(0)), progress=progress,
        )  # fmt: skip
        corpus = listed
    manifest = open_manifest(corpus, root)
    opened = open_encoder(encoder)
    height, width = size or (opened.height, opened.width)
    if height is None or width is None:
        raise UserError(
            f"--size: {encoder} does not say the size of its frames; give it, as --size 64x96 "
            "(height × width)"
        )
    progress.note(
        f"{manifest.clips} clips of {len(manifest.files)} manifest files; videos below "
        f"{manifest.root}"
    )
    with ray_session(experiment.compute.address):
        summary = embed_corpus(
            manifest,
            opened.encoder,
            embedding_job(experiment, height, width, retry_quarantined=retry_quarantined),
            settings={"encoder": opened.digest},
            out=out,
            on_progress=progress.embedding,
            on_message=progress.note,
        )
    progress.note(account(summary))
    if summary["quarantined"]:
        progress.note(f"the reasons are in the column error of the shards in {Path(out)}")
    return summary


def _is_folder_of_videos(corpus: str) -> bool:
    folder = Path(corpus)
    return folder.is_dir() and next(folder.glob("*.parquet"), None) is None


def index(experiment: Experiment, *, embeddings: Path, out: Path) -> dict[str, Any]:
    """Index a folder of embeddings, or go on with it.

    It is made in a folder beside `out`, which gets that name when all is there.

    Args:
        experiment: its sections `index` and `compute` say how.
        embeddings: folder of shards.
        out: folder of the index.

    Returns:
        its metadata.

    Raises:
        UserError: there is nothing to index, `out` is there already, or the kind does not fit.
    """
    from selfshot.data.storage import Storage
    from selfshot.distributed.shards import made_with
    from selfshot.retrieval.building import BuildSettings, build_from_embeddings
    from selfshot.retrieval.embeddings import shard_paths

    if not shard_paths(embeddings):
        raise UserError(
            f"--embeddings: {embeddings} has no shard-*.parquet (allowed: a local folder that "
            "selfshot embed wrote)"
        )
    if out.exists():
        raise UserError(f"--out: {out} is there already; take it away or give another folder")
    settings = BuildSettings(
        **experiment.index.model_dump(),
        seed=experiment.seed,
        use_gpu=experiment.compute.use_gpu,
    )
    partial = out.with_name(f"{out.name}.partial")
    said = partial / "settings.json"
    wanted = {
        **experiment.index.model_dump(mode="json"),
        "embeddings": str(embeddings.resolve()),
        "vectors": made_with(Storage(str(embeddings))),
    }
    if partial.exists() and (not said.exists() or json.loads(said.read_text()) != wanted):
        shutil.rmtree(partial)  # Begun with other settings: nothing of it can be gone on with.
    (partial / "scratch").mkdir(parents=True, exist_ok=True)
    if not said.exists():
        said.write_text(json.dumps(wanted))
    progress = Progress(1)
    facts = build_from_embeddings(
        embeddings, partial, partial / "scratch", settings, progress.note
    )
    shutil.rmtree(partial / "scratch")
    remove_partial_files(partial)
    rename_folder(partial, out)
    return facts
