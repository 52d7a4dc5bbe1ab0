"""Corpus manifests: Parquet files that list clips, read as a stream.

A manifest is one Parquet file or a folder of them, in the order of their names. Of each file only
its length and a digest are kept in memory, so a manifest may list any number of clips.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfshot.config.addresses import is_address
from selfshot.data.guard import StoredClip
from selfshot.data.storage import Storage
from selfshot.errors import UserError
from selfshot.files import digest_pieces

NEEDED = ("clip_id", "uri", "start_s", "end_s")
OPTIONAL = ("offset", "bytes")
"""Columns that embedding reads where they are; `offset` says that a clip lies inside its file."""

FACTS = "corpus.json"
"""Beside the Parquet files: `root`, which URIs are relative to, and what was counted."""

_READ = (*NEEDED, *OPTIONAL)
_TYPES = {
    "clip_id": pa.string(),
    "uri": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "offset": pa.int64(),
    "bytes": pa.int64(),
    "source_id": pa.string(),
    "sha256": pa.string(),
}
_READ_ROWS = 1 << 16
_HASHES_AT_ONCE = 1 << 24
# What a path of an untrusted manifest may not do, and addresses that would reach this machine.
_OUTSIDE = r"(^|/)\.\.(/|$)|^/|^\s*$|::"
_LOCAL_SCHEME = r"^(?i:file|local|dir|zip|tar|simplecache|filecache|blockcache|reference):"

MAX_BYTES = 2**32
"""Of one clip's file that a person asks for."""


@dataclasses.dataclass(frozen=True)
class ManifestFile:
    """One Parquet file of a manifest.

    Attributes:
        name: in its folder.
        rows: how many clips it lists.
        sha256: of its bytes.
    """

    name: str
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A corpus: where its list is, and where its videos are.

    Attributes:
        folder: path or address of the folder of the Parquet files.
        files: of the list.
        root: path or address that URIs are relative to.
    """

    folder: str
    files: tuple[ManifestFile, ...]
    root: str

    @property
    def clips(self) -> int:
        """How many clips there are."""
        return sum(file.rows for file in self.files)


def open_manifest(address: str, root: str | None = None) -> Manifest:
    """A manifest's files, each hashed.

    Args:
        address: a Parquet file, a folder of them, or the address of either.
        root: what URIs are relative to; None: what the manifest says of itself, or its folder.

    Raises:
        UserError: it is no manifest, or lists nothing.
        StorageError: it cannot be read.
    """
    if address.endswith(".parquet"):
        folder, _, only = address.rpartition("/")
        folder, names = folder or ".", [only]
    else:
        folder = address.rstrip("/")
        found = Storage(folder, "--corpus").sizes()
        names = sorted(n for n in found if n.endswith(".parquet") and not n.startswith("."))
    storage = Storage(folder, "--corpus")
    if not names:
        raise UserError(f"{address}: it holds no Parquet file; make one with selfshot corpus build")
    files = tuple(_look(storage, name) for name in names)
    if not any(file.rows for file in files):
        raise UserError(f"{address}: it lists no clip; there is nothing to embed")
    return Manifest(folder, files, root or _root_of(storage))


def _root_of(storage: Storage) -> str:
    """The folder of the videos, as the files beside the list say it; else the list's own."""
    there = storage.sizes()
    named = ((FACTS, "root"), ("benchmark.json", "corpus_root"))
    name, key = next(((n, key) for n, key in named if n in there), ("", ""))
    try:
        root = json.loads(storage.read(name))[key] if name else ""
        if not isinstance(root, str):
            raise TypeError(f"{key}: {root!r} is no text")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{storage.path(name)}: cannot be read as the facts of a corpus ({error!r}); make it "
            "again, or say with --root where the videos are"
        ) from None
    if is_address(root) or root.startswith("/"):
        return str(root)
    return f"{storage.address}/{root}" if root else storage.address


def _look(storage: Storage, name: str) -> ManifestFile:
    where = storage.path(name)
    try:
        with storage.open(name) as file:
            digest = digest_pieces(iter(lambda: file.read(1 << 20), b""))
            file.seek(0)
            parquet = pq.ParquetFile(file)
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (OSError, pa.ArrowException) as error:  # No such file, or damaged Parquet.
        raise UserError(
            f"{where}: cannot be read as a Parquet manifest of clips ({error})"
        ) from None
    missing = [column for column in NEEDED if column not in schema.names]
    if missing:
        raise UserError(f"{where}: columns {missing} are missing (needed: {list(NEEDED)})")
    return ManifestFile(name, rows, digest)


def read_rows(manifest: Manifest, file: ManifestFile, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of a file with the columns that embedding needs; absent ones are null.

    Only the row groups that hold them are read.
    """
    with Storage(manifest.folder, "--corpus").open(file.name) as source:
        parquet = pq.ParquetFile(source)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes).tolist()
        first, last = bisect.bisect_right(ends, start), bisect.bisect_left(ends, stop)
        names = [name for name in _READ if name in parquet.schema_arrow.names]
        table = parquet.read_row_groups(list(range(first, last + 1)), columns=names)
        table = table.slice(start - (ends[first] - sizes[first]), stop - start)
    return _typed(table, _READ)


def _typed(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns in our types; those that are not there are null."""
    return pa.table(
        {
            name: table[name].cast(_TYPES[name])
            if name in table.column_names
            else pa.nulls(len(table), _TYPES[name])
            for name in columns
        }
    )


def iterate_rows(
    manifest: Manifest, columns: Sequence[str] = _READ
) -> Iterator[tuple[str, int, pa.Table]]:
    """The whole list in pieces: file name, row of the first clip in it, and the rows."""
    storage = Storage(manifest.folder, "--corpus")
    for file in manifest.files:
        with storage.open(file.name) as source:
            parquet = pq.ParquetFile(source)
            row = 0
            there = [name for name in columns if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(_READ_ROWS, columns=there):
                yield file.name, row, _typed(pa.Table.from_batches([batch]), columns)
                row += len(batch)


def find_clips(manifest: Manifest, clip_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """The rows of clips by their ids, in the list's order; the list is read once, in pieces."""
    wanted = pa.array(sorted(clip_ids), pa.string())
    found: dict[str, dict[str, Any]] = {}
    for _, _, table in iterate_rows(manifest):
        rows = table.filter(pc.is_in(table["clip_id"], wanted)).to_pylist()
        found |= {row["clip_id"]: row for row in rows}
    return found


def stored_clip(root: str, row: Mapping[str, Any], *, confine: bool, max_bytes: int) -> StoredClip:
    """Where the clip of a row lies, for `FETCH`; `confine`: not outside the root."""
    return StoredClip(
        place_of(root, row["uri"]),
        row["start_s"],
        row["end_s"],
        offset=row["offset"],
        length=None if row["offset"] is None else row["bytes"],
        within=root if confine else None,
        max_bytes=max_bytes,
    )


def check_manifest(manifest: Manifest, hashes_at_once: int = _HASHES_AT_ONCE) -> None:
    """Read the list once, and again if it is not sorted, and see that it can be embedded.

    Args:
        manifest: the list.
        hashes_at_once: bound of the memory, 8 bytes each, in which ids are looked for that come
            twice; a longer list that is not sorted is read several times.

    Raises:
        UserError: an id is missing or comes twice, a URI leads out of the corpus, or a clip does
            not end after its start.
    """
    ascending, before = True, ""
    for name, row, table in iterate_rows(manifest):
        _check_rows(f"{manifest.folder}/{name}", row, table)
        ids = table["clip_id"].combine_chunks()
        if not len(ids):
            continue
        if ascending:
            rising = len(ids) < 2 or pc.all(pc.less(ids[:-1], ids[1:])).as_py()
            ascending = rising and before < ids[0].as_py()
            before = ids[-1].as_py()
    if not ascending:
        _check_unique(manifest, hashes_at_once)


def _check_rows(where: str, first: int, table: pa.Table) -> None:
    def refuse(wrong: Any, column: str, allowed: str) -> None:
        bad = pc.fill_null(wrong, True)
        if pc.any(bad).as_py():
            row = pc.index(bad, True).as_py()
            value = table[column][row].as_py()
            raise UserError(
                f"{where}, row {first + row}: {column}: {value!r} is not allowed ({allowed})"
            )

    refuse(pc.equal(table["clip_id"], ""), "clip_id", "a text that names one clip")
    uris = table["uri"]
    outside = pc.match_substring_regex(uris, _OUTSIDE)
    local_scheme = pc.match_substring_regex(uris, _LOCAL_SCHEME)
    refuse(
        pc.or_(outside, local_scheme),
        "uri",
        "a path relative to the corpus, inside it; or an address such as s3://bucket/clip.mp4",
    )
    start = pc.fill_null(table["start_s"], 0.0)
    end = pc.fill_null(table["end_s"], float("inf"))
    refuse(pc.invert(pc.and_(pc.greater_equal(start, 0), pc.less(start, end))), "end_s",
           "seconds after start_s, which is at least 0")  # fmt: skip
    inside = pc.is_valid(table["offset"])
    short = pc.or_kleene(
        pc.less(pc.fill_null(table["offset"], 0), 0), pc.less(pc.fill_null(table["bytes"], -1), 0)
    )
    refuse(pc.and_(inside, short), "bytes", "its length, where offset says where it begins")


def _check_unique(manifest: Manifest, hashes_at_once: int) -> None:
    """Find ids that come twice, with as many hashes in memory as are allowed.

    In each pass the hashes of one residue class are gathered and sorted.
    """
    passes = -(-manifest.clips // hashes_at_once)
    for residue in range(passes):
        parts = []
        for _, _, table in iterate_rows(manifest):
            found = _hashes(table)
            parts.append(found[found % np.uint64(passes) == residue])
        hashes = np.sort(np.concatenate(parts))
        twice = hashes[1:][hashes[1:] == hashes[:-1]]
        if len(twice):
            _name_the_twins(manifest, twice)


def _hashes(table: pa.Table) -> np.ndarray:
    ids = table["clip_id"].to_numpy(zero_copy_only=False).astype(object)
    return pd.util.hash_array(ids, categorize=False)


def _name_the_twins(manifest: Manifest, twice: np.ndarray) -> None:
    """Two ids with one hash may still differ: look at the ids themselves."""
    seen: set[str] = set()
    repeated = []
    for _, _, table in iterate_rows(manifest):
        chosen = np.isin(_hashes(table), twice)
        for clip_id in table["clip_id"].filter(pa.array(chosen)).to_pylist():
            if clip_id in seen:
                repeated.append(clip_id)
            seen.add(clip_id)
    if repeated:
        raise UserError(
            f"{manifest.folder}: {len(repeated)} clip ids come more than once, such as "
            f"{repeated[0]!r}; a clip needs an id of its own"
        )


def place_of(root: str, uri: str) -> str:
    """Where a clip's file is: its own address, or its path below the root."""
    return uri if is_address(uri) else f"{root.rstrip('/')}/{PurePosixPath(uri)}"
