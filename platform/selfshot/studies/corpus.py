"""A corpus without an experiment: list it, embed it with any encoder, index the embeddings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfshot.config.schema import Experiment
from selfshot.errors import UserError
from selfshot.files import remove_partial_files, rename_folder
from selfshot.studies.progress import Progress

if TYPE_CHECKING:
    from selfshot.distributed.embedding import EmbeddingJob
    from selfshot.models.encoders import Encoder


def embedding_job(
    experiment: Experiment, height: int, width: int, *, retry_quarantined: bool = False
) -> EmbeddingJob:
    """Of an experiment's sections, for frames of a size in pixels."""
    from selfshot.distributed.embedding import EmbeddingJob

    return EmbeddingJob(
        **experiment.embedding.model_dump(exclude={"precision"}),
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
    kind: str,
    where: str,
    *,
    out: str,
    progress: Progress,
    root: str | None = None,
    segment_s: float = 5.0,
    **how: Any,
) -> dict[str, Any]:
    """Write a corpus manifest, or go on with it.

    Args:
        kind: `videos` or `tars`: of a folder of them; `uris`: of a list of addresses; `segments`:
            of a CSV of segments.
        where: that folder, its address, or that file.
        out: folder of the manifest, or its address.
        progress: receives how far it is.
        root: what the paths of a list or CSV start at; None: the folder that the file is in.
        segment_s: length of a segment whose line names no end.
        **how: cutting, items_per_file and workers, as `build_manifest` takes them.

    Returns:
        what corpus.json holds.

    Raises:
        UserError: there is nothing to list, or it cannot be listed.
    """
    from selfshot.benchmarks import corpus_build, corpus_items

    quarantined: list[tuple[str, str]] = []
    folder = where if kind in ("videos", "tars") else root or str(Path(where).absolute().parent)
    setting = f"--{kind}" if kind in ("videos", "tars") else "--root"
    here = corpus_items.local_root(folder, setting)
    items = {
        "videos": lambda: corpus_items.of_videos(where, quarantined),
        "tars": lambda: corpus_items.of_tars(where, quarantined),
        "uris": lambda: corpus_items.of_uris(Path(where)),
        "segments": lambda: corpus_items.of_segments(Path(where), segment_s, here, quarantined),
    }[kind]()
    folder = folder if here is None else str(here)
    made_from = f"{kind} {folder if kind in ('videos', 'tars') else where}"
    facts = corpus_build.build_manifest(
        items, folder, out, made_from=made_from, on_message=progress.note, **how
    )
    for what, reason in quarantined[:5]:
        progress.note(f"quarantined {what}: {reason}")
    if not facts["clips"]:
        raise UserError(f"--{made_from}: holds no video; nothing was listed", setting=f"--{kind}")
    progress.note(
        f"{facts['clips']} clips of {facts['items']} videos, {facts['bytes'] / 1e6:.1f} MB, "
        f"{len(quarantined)} quarantined, {facts['unread']} cannot be read"
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
    from selfshot.benchmarks.corpus import is_manifest
    from selfshot.data.corpus_manifest import open_manifest
    from selfshot.distributed.embedding import embed_corpus
    from selfshot.distributed.session import ray_session
    from selfshot.models.encoders import open_encoder
    from selfshot.studies.settings import precision_of_vectors

    progress = Progress(1)
    if Path(corpus).is_dir() and not is_manifest(Path(corpus)):
        listed = f"{out.rstrip('/')}/manifest"
        build("videos", corpus, out=listed, progress=progress)
        corpus = listed
    manifest = open_manifest(corpus, root)
    precision = precision_of_vectors(experiment)
    opened = open_encoder(encoder, precision)
    tell_licences(opened.encoder, progress)
    height, width = size or (opened.height, opened.width)
    if height is None or width is None:
        raise UserError(
            f"--size: {encoder} does not say the size of its frames; give it, as --size 64x96 "
            "(height × width)",
            setting="--size",
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
            settings={"encoder": opened.digest, "precision": precision},
            out=out,
            on_progress=progress.embedding,
            on_message=progress.note,
        )
    progress.note(account(summary))
    if summary["quarantined"]:
        progress.note(f"the reasons are in the column error of the shards in {Path(out)}")
    return summary


def tell_licences(encoder: Encoder, progress: Progress) -> None:
    """Warn of pretrained networks whose licence may forbid what is done with them."""
    from selfshot.models.pretrained_files import licence_warning

    for facts in getattr(encoder, "networks", ()):
        warning = licence_warning(facts)
        if warning is not None:
            progress.note(warning)


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
            "selfshot embed wrote)",
            setting="--embeddings",
        )
    if out.exists():
        raise UserError(
            f"--out: {out} is there already; take it away or give another folder", setting="--out"
        )
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
    facts = build_from_embeddings(embeddings, partial, partial / "scratch", settings, progress.note)
    shutil.rmtree(partial / "scratch")
    remove_partial_files(partial)
    rename_folder(partial, out)
    return facts
