"""A corpus by itself: clips, or segments of longer videos, in a folder or behind an address.

No label is read into it: of the segments' CSV only the columns that say which part of which file
are looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfshot.benchmarks.corpus import digest_of
from selfshot.benchmarks.finish import written_files
from selfshot.benchmarks.folder_corpus import (
    OnMessage,
    check_columns,
    clip_rows,
    csv_rows,
    find_clips,
    in_threads,
    no_clip,
    size_and_digest,
    stem,
)
from selfshot.benchmarks.manifest import Benchmark, write_corpus
from selfshot.benchmarks.remote import hash_clips, list_clips
from selfshot.benchmarks.split import SPLITS
from selfshot.config.addresses import is_address
from selfshot.data.storage import Storage
from selfshot.data.video import duration_s
from selfshot.errors import UserError
from selfshot.files import digest_file

SLACK_S = 0.5
"""A segment may end this much after its video does: lengths in headers are rounded."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Segment:
    """A line of the CSV.

    Attributes:
        line: its number.
        clip: path of the video, below the corpus folder, with or without its suffix.
        start_s: where it begins.
        end_s: where it ends.
        has_end: whether the line says so, or the setting does.
        source: what the video was cut from, if the line says so.
    """

    line: int
    clip: str
    start_s: float
    end_s: float
    has_end: bool
    source: str


def build_yt8m_segments(
    folder: Path,
    *,
    corpus: str,
    segments: Path | None,
    segment_s: float,
    seed: int,
    on_message: OnMessage,
) -> Benchmark:
    """Write a corpus manifest into `folder`: corpus.parquet, and a benchmark.json without videos.

    Args:
        folder: where the manifest is written; nothing is copied into it.
        corpus: folder of clips or source videos, or its address.
        segments: CSV with columns clip (or uri), start_s and, if wanted, end_s and source; None:
            every file is a clip as a whole.
        segment_s: length of a segment that names no end.
        seed: noted in the manifest; nothing is drawn.
        on_message: is told what was found.

    Raises:
        UserError: there is no clip, or a segment is not in its video.
    """
    set_aside: list[tuple[str, str]] = []
    rows, root = _files(corpus, set_aside, on_message)
    files = len(rows)
    inputs = {}
    if segments is not None:
        inputs["segments"] = digest_file(segments)
        asked = read_segments(segments, segment_s)
        rows = _cut(rows, asked, root, segments, set_aside, on_message)
    inputs["corpus"] = digest_of(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_corpus(folder, rows)
    known_s = [row["end_s"] - row["start_s"] for row in rows if row["start_s"] is not None]
    counts = {
        "corpus_clips": len(rows),
        "corpus_sources": len({row["source_id"] for row in rows}),
        "corpus_files": files,
        "corpus_seconds": round(sum(known_s)),
        "corpus_bytes": sum({row["uri"]: row["bytes"] or 0 for row in rows}.values()),
    }
    on_message(
        f"corpus: {counts['corpus_clips']} clips of {counts['corpus_sources']} sources, "
        f"{counts['corpus_bytes'] / 1e6:.1f} MB; no label was read"
    )
    benchmark = Benchmark(
        name="corpus",
        kind="yt8m_segments",
        seed=seed,
        height=0,
        width=0,
        num_frames=0,
        classes=dict.fromkeys(SPLITS, ()),
        queries=dict.fromkeys(SPLITS, ()),
        supports={split: {} for split in SPLITS},
        corpus_root=root,
        counts=counts,
        files=written_files(folder),
        inputs=inputs,
        set_aside=tuple(set_aside),
    )
    benchmark.save(folder)
    return benchmark


def read_segments(path: Path, segment_s: float) -> list[Segment]:
    """Lines of a CSV of segment times; columns that are not named above are not looked at.

    Raises:
        UserError: the CSV cannot be read, lacks a column, a time is wrong, or a segment comes
            twice.
    """
    found: list[Segment] = []
    lines: dict[tuple[str, int], int] = {}
    for segment in iterate_segments(path, segment_s, "benchmark.segments"):
        key = (stem(segment.clip), round(1000 * segment.start_s))
        first = lines.setdefault(key, segment.line)
        if first != segment.line:
            raise UserError(
                f"benchmark.segments: {path}, line {segment.line}: {segment.clip} from "
                f"{segment.start_s:g} s comes a second time (first on line {first}); keep one",
                setting="benchmark.segments",
            )
        found.append(segment)
    return found


def iterate_segments(path: Path, segment_s: float, setting: str) -> Iterator[Segment]:
    """The lines one after another, as `read_segments` reads them; twins are not looked for.

    Raises:
        UserError: as `read_segments`.
    """
    empty = True
    with csv_rows(path, setting) as rows:
        clip_column = "clip" if "clip" in (rows.fieldnames or ()) else "uri"
        check_columns(rows, (clip_column, "start_s"), setting, path)
        for row in rows:
            where = f"{setting}: {path}, line {rows.line_num}"
            clip = (row[clip_column] or "").strip()
            start_s = _seconds(row["start_s"], where, "start_s")
            text = (row.get("end_s") or "").strip()
            end_s = _seconds(text, where, "end_s") if text else start_s + segment_s
            if not clip:
                raise UserError(f"{where}: an empty {clip_column}; name a file of the corpus")
            if end_s <= start_s:
                raise UserError(
                    f"{where}: end_s: {end_s:g} is not allowed (more than start_s: {start_s:g})"
                )
            source = (row.get("source") or "").strip()
            empty = False
            yield Segment(rows.line_num, clip, start_s, end_s, bool(text), source)
    if empty:
        raise UserError(f"{setting}: {path} lists no segment; add a line for each", setting=setting)


def _seconds(text: str | None, where: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{where}: {column}: {text!r} is not allowed (seconds, a number ≥ 0)")
    return value


def _files(
    corpus: str, set_aside: list[tuple[str, str]], on_message: OnMessage
) -> tuple[list[Row], str]:
    """A row for each file of the corpus, and what their paths are relative to."""
    address = corpus
    if is_address(corpus) and not corpus.lower().startswith("file://"):
        storage = Storage(corpus, "benchmark.corpus")
        clips = list_clips(storage, set_aside)
        uris = [clip.uri for clip in clips]
        hashed = hash_clips(storage, clips, on_message)
    else:
        root = Path(corpus[len("file://") :] if is_address(corpus) else corpus).resolve()
        if not root.is_dir():
            raise UserError(
                f"benchmark.corpus: {root} is no folder; give the path of one",
                setting="benchmark.corpus",
            )
        address = str(root)
        uris = find_clips(root, set_aside)
        paths = [root / uri for uri in uris]
        hashed = list(in_threads(size_and_digest, paths, "corpus clips hashed", on_message))
    if not uris:
        raise no_clip("benchmark.corpus", corpus)
    return clip_rows(uris, hashed), address


def _cut(
    files: Sequence[Row],
    segments: Sequence[Segment],
    root: str,
    csv_path: Path,
    set_aside: list[tuple[str, str]],
    on_message: OnMessage,
) -> list[Row]:
    """A row for each segment whose file is there.

    Raises:
        UserError: a segment is not in its video, or no file is named at all.
    """
    by_name = {row["uri"]: row for row in files} | {stem(row["uri"]): row for row in files}
    there = [(segment, by_name[segment.clip]) for segment in segments if segment.clip in by_name]
    if not there:
        raise UserError(
            f"benchmark.segments: {csv_path} names no file of {root}, such as "
            f"{files[0]['uri']!r} (a path below it, with or without its suffix)",
            setting="benchmark.segments",
        )
    absent = [segment for segment in segments if segment.clip not in by_name]
    set_aside += [
        (f"segment of line {segment.line}", f"no file {segment.clip}") for segment in absent
    ]
    named = list({row["uri"]: None for _, row in there})
    if len(named) < len(files) or absent:
        on_message(
            f"{csv_path.name}: {len(absent)} segments name a file that is not there, and "
            f"{len(files) - len(named)} files have no segment"
        )
    lengths: dict[str, float | None] = {}
    if is_address(root):
        on_message(f"the lengths of {len(named)} videos elsewhere are not checked")
    else:
        paths = [Path(root, uri) for uri in named]
        looked = in_threads(duration_s, paths, "videos looked at", on_message)
        lengths = dict(zip(named, looked, strict=True))
    rows = []
    for segment, row in there:
        end_s = _end_within(segment, lengths.get(row["uri"]), csv_path)
        rows.append(
            {
                **row,
                "clip_id": f"{row['clip_id']}-{round(1000 * segment.start_s):09d}",
                "start_s": segment.start_s,
                "end_s": end_s,
                "source_id": segment.source or row["source_id"],
            }
        )
    return rows


def _end_within(segment: Segment, length: float | None, csv_path: Path) -> float:
    """Where a segment ends; one whose line names no end may be cut short by its video's.

    Raises:
        UserError: it begins, or was said to end, after the video.
    """
    if length is None:
        return segment.end_s
    where = f"benchmark.segments: {csv_path}, line {segment.line}"
    if segment.start_s >= length:
        raise UserError(
            f"{where}: start_s: {segment.start_s:g} is not allowed ({segment.clip} has "
            f"{length:.2f} s); correct or remove the line"
        )
    if segment.has_end and segment.end_s > length + SLACK_S:
        raise UserError(
            f"{where}: end_s: {segment.end_s:g} is not allowed ({segment.clip} has {length:.2f} s);"
            " correct it, or leave it empty"
        )
    return segment.end_s if segment.has_end else min(segment.end_s, length)
