"""A folder of one's own clips in place of an experiment's corpus: embedded once, then searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from selfshot.benchmarks.corpus import is_manifest
from selfshot.benchmarks.fingerprint import fingerprint
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
from selfshot.files import file_lock
from selfshot.models.encoders import digest_of
from selfshot.store.local import stage_key
from selfshot.studies.corpus import embed, index
from selfshot.studies.settings import embeddings_settings, index_settings

CORPORA = "corpora"


def own_index(
    experiment: Experiment,
    corpus: Path,
    encoder: Path,
    size: tuple[int, int],
    on_message: Callable[[str], None],
) -> tuple[Path, Manifest]:
    """The index of a folder of clips; made at the first call, and again where a file changed.

    It lies in the experiment's output folder, by a hash of what it is made of. A call after a kill
    goes on with it.

    Args:
        experiment: its sections `embedding`, `index` and `compute` say how.
        corpus: a folder of videos, or of a corpus manifest.
        encoder: folder of the exported Φ.
        size: height and width of a frame that Φ sees.
        on_message: receives that another process makes it.

    Raises:
        UserError: the folder is not there, holds no video, or cannot be embedded.
    """
    if not corpus.is_dir():
        raise UserError(
            f"--corpus: {corpus} is no folder (allowed: a folder of videos, or of a corpus "
            "manifest)",
            setting="--corpus",
        )
    settings = {
        "size": size,
        "clips": fingerprint({}, [corpus.resolve()]),
        "embedding": embeddings_settings(experiment),
        "index": index_settings(experiment),
    }
    key = stage_key("corpus", 1, settings, {"encoder": digest_of(encoder)})
    folder = experiment.output / CORPORA / key
    embeddings, made = folder / "embeddings", folder / "index"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "lock", on_message, str(corpus)):
        if not made.exists():
            embed(
                experiment,
                corpus=str(corpus),
                out=str(embeddings),
                encoder=str(encoder),
                root=None,
                size=size,
                retry_quarantined=False,
            )
            index(experiment, embeddings=embeddings, out=made)
    if is_manifest(corpus):
        return made, open_manifest(str(corpus))
    # The folder may have another name by now.
    return made, open_manifest(str(embeddings / "manifest"), root=str(corpus.resolve()))


def read_found(
    manifest: Manifest,
    clip_ids: Sequence[str],
    num_frames: int,
    size: tuple[int, int],
    time_limit_s: float,
) -> list[UInt8[np.ndarray, "time height width 3"]]:
    """Frames of some clips of a corpus, evenly spaced, in the order of the ids.

    Args:
        manifest: of the corpus.
        clip_ids: of the clips.
        num_frames: of each.
        size: height and width of a frame.
        time_limit_s: of decoding one.

    Raises:
        UserError: one cannot be decoded, though it was embedded.
    """
    rows, root = find_clips(manifest, set(clip_ids)), manifest.root
    clips = [
        stored_clip(root, rows[one], confine=not is_address(root), max_bytes=MAX_BYTES)
        for one in clip_ids
    ]
    found = []
    height, width = size
    with GuardedDecoder(
        decode=FETCH, num_frames=num_frames, height=height, width=width, time_limit_s=time_limit_s
    ) as decoder:
        for clip_id, answer in zip(clip_ids, decoder.decode_many(clips), strict=True):
            if isinstance(answer, Exception):
                raise UserError(
                    f"--corpus: {clip_id}: {answer}; pass it over with --without {clip_id}",
                    setting="--corpus",
                )
            found.append(np.array(answer.frames))  # Its own memory is not to be written to.
    return found
