"""The corpus of an annotated benchmark: a folder of clips, or what `selfshot corpus build` wrote.

A folder is listed by the same builder first. The list is read and written as a stream.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfshot.benchmarks.annotated import OnMessage
from selfshot.benchmarks.corpus_build import build_manifest
from selfshot.benchmarks.corpus_items import Wanted, of_videos, stem, walk_files
from selfshot.benchmarks.csv_files import check_columns, csv_rows
from selfshot.benchmarks.manifest import CORPUS_SCHEMA, write_corpus_labels
from selfshot.config.addresses import is_address
from selfshot.data.corpus_manifest import (
    Manifest,
    check_manifest,
    iterate_rows,
    open_manifest,
    place_of,
)
from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.data.ytvis import fold_source
from selfshot.errors import UserError

SETTING = "benchmark.corpus"
LISTED = "listed"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What was written of a corpus.

    Attributes:
        root: absolute folder that the rows' paths are relative to.
        digest: of the names, times and bytes of all clips.
        clips: how many there are.
        left_out: how many are of the source or the file of a val or test query.
        classes: how many rough labels there are.
    """

    root: str
    digest: str
    clips: int
    left_out: int
    classes: int


def gather_corpus(
    corpus: Path,
    folder: Path,
    *,
    corpus_labels: Path | None,
    sources: Collection[str],
    files: Collection[str],
    quarantined: list[tuple[str, str]],
    on_message: OnMessage,
) -> Corpus:
    """Write `corpus.parquet`, and `corpus_labels.csv` where labels are given, into `folder`.

    No clip of a source or a file of a val or test query is in it: the encoder trains on the
    corpus, and another query might retrieve such a clip.

    Args:
        corpus: folder of clips, or of a manifest.
        folder: of the benchmark.
        corpus_labels: CSV with columns clip (a path below the corpus's root, with or without its
            suffix, or a clip's id), rough_label and, optionally, source; for diagnosis.
        sources: of the val and test queries.
        files: SHA-256 of each file that those queries are read from.
        quarantined: receives what is no clip of the corpus, with the reason.
        on_message: receives what was found.

    Raises:
        UserError: there is no clip, none is left, the CSV cannot be used, or the clips of a
            manifest are elsewhere.
    """
    listed = folder / LISTED
    manifest = _manifest(corpus, listed, quarantined, on_message)
    known = {} if corpus_labels is None else _read_labels(corpus_labels)
    folded = set(map(fold_source, sources))
    labels: dict[str, str] = {}
    used: set[str] = set()
    digest = hashlib.sha256()
    clips = left_out = size = 0
    with pq.ParquetWriter(folder / "corpus.parquet", CORPUS_SCHEMA) as writer:
        for _, _, table in iterate_rows(manifest, (*CORPUS_SCHEMA.names, "offset")):
            kept: list[dict[str, Any]] = []
            for row in table.to_pylist():
                if row["offset"] is not None or is_address(place_of(manifest.root, row["uri"])):
                    raise UserError(
                        f"{SETTING}: {row['uri']} of {corpus} is inside a tar or at an address, "
                        "and training reads files; unpack or mount it, and list that folder",
                        setting=SETTING,
                    )
                facts = (row[name] for name in ("clip_id", "uri", "start_s", "end_s", "sha256"))
                digest.update(("\0".join(map(str, facts)) + "\n").encode())
                names = (row["uri"], stem(row["uri"]), row["clip_id"])
                key = next((name for name in names if name in known), row["uri"])
                label, source = known.get(key, ("", ""))
                row["source_id"] = source or row["source_id"] or stem(row["uri"])
                used.add(key)
                if fold_source(row["source_id"]) in folded:
                    reason = f"it is of the source of a val or test query, {row['source_id']}"
                elif row["sha256"] in files:
                    reason = "it is the very file of a val or test query"
                else:
                    kept.append({name: row[name] for name in CORPUS_SCHEMA.names})
                    size += row["bytes"] or 0
                    if label:
                        labels[row["clip_id"]] = label
                    continue
                quarantined.append((f"corpus: {row['uri']}", reason))
                left_out += 1
            clips += len(kept)
            writer.write_table(pa.Table.from_pylist(kept, CORPUS_SCHEMA))
    if corpus_labels is not None:
        write_corpus_labels(folder, labels)
    on_message(
        f"corpus: {clips} clips, {size / 1e6:.1f} MB, {len(labels)} with a rough label for "
        "diagnosis"
    )
    if left_out:
        on_message(f"corpus: {left_out} clips are of a val or test query's source and left out")
    strangers = [name for name in known if name not in used]
    if strangers:
        on_message(
            f"{corpus_labels}: {len(strangers)} rows name no clip of the corpus, such as "
            f"{strangers[0]!r} (a path below the corpus folder, with or without its suffix)"
        )
    if not clips:
        raise UserError(
            f"{SETTING}: every clip of {manifest.root} is of the source of a val or test query; "
            "add clips of other videos",
            setting=SETTING,
        )
    if listed.exists():
        shutil.rmtree(listed)
    return Corpus(manifest.root, digest.hexdigest(), clips, left_out, len({*labels.values()}))


def _manifest(
    corpus: Path, listed: Path, quarantined: list[tuple[str, str]], on_message: OnMessage
) -> Manifest:
    """The list of the clips: the folder's own, or one that is made in `listed`."""
    if is_manifest(corpus):
        manifest = open_manifest(str(corpus))
        check_manifest(manifest)
    else:
        root = str(corpus.resolve())
        facts = build_manifest(
            of_videos(root, quarantined),
            root,
            str(listed),
            made_from=f"videos {root}",
            on_message=on_message,
        )
        if not facts["clips"]:
            raise no_clip(corpus)
        manifest = open_manifest(str(listed))
    if is_address(manifest.root):
        return manifest
    if not Path(manifest.root).is_dir():
        raise UserError(
            f"{SETTING}: the clips of {corpus} were in {manifest.root}, which is no folder now; "
            "put them back, or build the corpus again",
            setting=SETTING,
        )
    return dataclasses.replace(manifest, root=str(Path(manifest.root).resolve()))


def no_clip(corpus: Path) -> UserError:
    """That a folder holds no clip."""
    return UserError(
        f"{SETTING}: {corpus} holds no clip, nor does a folder in it (a file that ends in one of "
        f"{', '.join(VIDEO_SUFFIXES)})",
        setting=SETTING,
    )


def count_clips(corpus: Path, most: int) -> int:
    """How many clips `gather_corpus` would find, those of a folder counted up to `most`."""
    if is_manifest(corpus):
        return sum(pq.read_metadata(path).num_rows for path in corpus.glob("*.parquet"))
    found = walk_files(corpus.resolve(), Wanted(VIDEO_SUFFIXES), [])
    return sum(1 for _ in itertools.islice(found, most))


def is_manifest(corpus: Path) -> bool:
    """Whether a folder holds a corpus manifest, and not the clips themselves."""
    return corpus.is_dir() and next(corpus.glob("*.parquet"), None) is not None


def rough_labels(path: Path) -> set[str]:
    """The rough labels that a CSV of clips has.

    Raises:
        UserError: as `gather_corpus` does of `corpus_labels`.
    """
    return {label for label, _ in _read_labels(path).values() if label}


def _read_labels(path: Path) -> dict[str, tuple[str, str]]:
    """Rough label and source by the clip's name.

    Raises:
        UserError: the CSV cannot be read, lacks a column or names a clip twice.
    """
    found: dict[str, tuple[str, str]] = {}
    setting = "benchmark.corpus_labels"
    with csv_rows(path, setting) as rows:
        check_columns(rows, ("clip", "rough_label"), setting, path)
        for row in rows:
            clip = (row["clip"] or "").strip()
            if clip in found:
                raise UserError(
                    f"{setting}: {path}, line {rows.line_num}: {clip!r} comes a second time; keep "
                    "one row a clip",
                    setting=setting,
                )
            source = (row.get("source") or "").strip()
            found[clip] = ((row["rough_label"] or "").strip(), source)
    return found
