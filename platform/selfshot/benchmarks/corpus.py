"""The corpus of an annotated benchmark: a folder of clips, or a corpus that was built before."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from selfshot.benchmarks.folder_corpus import (
    OnMessage,
    Wanted,
    corpus_rows,
    label_rows,
    walk_files,
)
from selfshot.benchmarks.manifest import corpus_size, load_benchmark, read_corpus
from selfshot.config.addresses import is_address
from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.data.ytvis import fold_source
from selfshot.errors import UserError
from selfshot.files import digest_pieces

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Unlabelled clips.

    Attributes:
        rows: of the manifest, as `CORPUS_SCHEMA` has them.
        labels: rough label by clip id, for diagnosis; empty text where none is known.
        root: absolute folder that the rows' paths are relative to.
    """

    rows: list[Row]
    labels: dict[str, str]
    root: str

    @property
    def digest(self) -> str:
        """A digest of what the clips are: their names, times and bytes."""
        return digest_of(self.rows)

    def without(
        self,
        sources: Collection[str],
        files: Collection[str],
        set_aside: list[tuple[str, str]],
        on_message: OnMessage,
    ) -> list[Row]:
        """Rows of no source and no file of a val or test query.

        The encoder trains on the corpus, and another query might retrieve such a clip: so it is
        left out here, and not only where its own query is asked.

        Args:
            sources: of those queries.
            files: SHA-256 of each file that those queries are read from.
            set_aside: receives what is left out, with the reason.
            on_message: is told how many there are.

        Raises:
            UserError: none is left.
        """
        kept = []
        folded = set(map(fold_source, sources))
        for row in self.rows:
            if fold_source(row["source_id"]) in folded:
                reason = f"it is of the source of a val or test query, {row['source_id']}"
            elif row["sha256"] in files:
                reason = "it is the very file of a val or test query"
            else:
                kept.append(row)
                continue
            set_aside.append((f"corpus: {row['uri']}", reason))
        if len(kept) < len(self.rows):
            on_message(
                f"corpus: {len(self.rows) - len(kept)} clips are of a val or test query's source "
                "and are left out"
            )
        if not kept:
            raise UserError(
                f"benchmark.corpus: every clip of {self.root} is of the source of a val or test "
                "query; add clips of other videos",
                setting="benchmark.corpus",
            )
        return kept


def digest_of(rows: Collection[Row]) -> str:
    """A digest of corpus rows that does not depend on their order."""
    names = ("clip_id", "uri", "start_s", "end_s", "sha256")
    ordered = sorted(rows, key=lambda row: row["clip_id"])
    lines = ("\0".join(str(row[name]) for name in names) + "\n" for row in ordered)
    return digest_pieces(line.encode() for line in lines)


def gather_corpus(
    folder: Path,
    labels_csv: Path | None,
    set_aside: list[tuple[str, str]],
    on_message: OnMessage,
) -> Corpus:
    """The clips of a folder, or of a manifest folder that `selfshot benchmark build` wrote.

    Args:
        folder: of the clips, or of the manifest.
        labels_csv: see `corpus_rows`.
        set_aside: receives what is no clip of the corpus, with the reason.
        on_message: is told what was found.

    Raises:
        UserError: there is no clip, the CSV cannot be used, or the manifest's clips are elsewhere.
    """
    if not is_manifest(folder):
        rows, labels = corpus_rows(folder, labels_csv, set_aside, on_message)
        return Corpus(rows, labels, str(folder.resolve()))
    root = load_benchmark(folder).corpus_root
    if is_address(root):
        raise UserError(
            f"benchmark.corpus: the clips of {folder} are at {root}, and decoding reads files; "
            "mount it as a folder, and build the corpus from that folder again",
            setting="benchmark.corpus",
        )
    clips = (folder / root).resolve()
    if not clips.is_dir():
        raise UserError(
            f"benchmark.corpus: the clips of {folder} were in {clips}, which is no folder now; put "
            "them back, or build the corpus again",
            setting="benchmark.corpus",
        )
    rows = read_corpus(folder)
    return Corpus(rows, label_rows(rows, labels_csv, on_message), str(clips))


def count_clips(folder: Path, most: int) -> int:
    """How many clips `gather_corpus` would find in a folder, counted up to `most`."""
    if is_manifest(folder):
        return corpus_size(folder)
    found = walk_files(folder.resolve(), Wanted(VIDEO_SUFFIXES), [])
    return sum(1 for _ in itertools.islice(found, most))


def is_manifest(folder: Path) -> bool:
    """Whether a folder holds a corpus manifest, and not the clips themselves."""
    return (folder / "benchmark.json").is_file() and (folder / "corpus.parquet").is_file()
