"""A folder of unlabelled clips as rows of a corpus manifest."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.errors import UserError, refuse_outage
from selfshot.files import digest_bytes, digest_pieces

PROGRESS_EVERY_S = 10.0
_COMPRESSED = (".bz2", ".gz", ".xz", ".zst")
_ARCHIVES = (".tar", *(f".tar{end}" for end in _COMPRESSED), ".tbz2", ".tgz", ".txz", ".zip")

OnMessage = Callable[[str], None]
Item = TypeVar("Item")
Found = TypeVar("Found")


def in_threads(
    work: Callable[[Item], Found], items: Sequence[Item], what: str, on_message: OnMessage
) -> Iterator[Found]:
    """Results in the order of the items; says how far it is when it takes long."""
    told = time.monotonic()
    with ThreadPoolExecutor(thread_name_prefix="folder") as pool:
        for done, result in enumerate(pool.map(work, items), start=1):
            if time.monotonic() - told > PROGRESS_EVERY_S:
                told = time.monotonic()
                on_message(f"{what}: {done} of {len(items)}")
            yield result


def corpus_rows(
    root: Path,
    labels_csv: Path | None,
    set_aside: list[tuple[str, str]],
    on_message: OnMessage,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the corpus, and the rough label of each clip id (empty where there is none).

    A file that is empty or cannot be read is listed all the same: embedding the corpus tries it
    and says what is wrong with it.

    Args:
        root: folder of the clips.
        labels_csv: with columns clip (a path below the root, with or without its suffix),
            rough_label and, optionally, source.
        set_aside: receives what is no clip of the corpus, with the reason.
        on_message: is told what was found.

    Raises:
        UserError: there is no clip, or the CSV cannot be used.
    """
    root = root.resolve()
    uris = find_clips(root, set_aside)
    if not uris:
        raise no_clip("benchmark.corpus", root)
    hashed = in_threads(
        lambda uri: size_and_digest(root / uri), uris, "corpus clips hashed", on_message
    )
    rows = clip_rows(uris, list(hashed))
    return rows, label_rows(rows, labels_csv, on_message)


def clip_rows(
    uris: Sequence[str], hashed: Sequence[tuple[int | None, str | None]]
) -> list[dict[str, Any]]:
    """A row for each clip, whole, with itself as its source.

    Args:
        uris: of the clips, below their root.
        hashed: size and SHA-256 of each.
    """
    ids = clip_ids(uris)
    return [
        {
            "clip_id": ids[uri],
            "uri": uri,
            "start_s": None,
            "end_s": None,
            "source_id": stem(uri),
            "bytes": size,
            "sha256": digest,
        }
        for uri, (size, digest) in zip(uris, hashed, strict=True)
    ]


def label_rows(
    rows: Sequence[dict[str, Any]], labels_csv: Path | None, on_message: OnMessage
) -> dict[str, str]:
    """The rough label of each clip id; a source that the CSV names becomes the row's.

    Raises:
        UserError: the CSV cannot be used.
    """
    known = {} if labels_csv is None else _read_labels(labels_csv)
    labels: dict[str, str] = {}
    used: set[str] = set()
    for row in rows:
        names = (row["uri"], stem(row["uri"]), row["clip_id"])
        key = next((name for name in names if name in known), row["uri"])
        label, source = known.get(key, ("", ""))
        used.add(key)
        labels[row["clip_id"]] = label
        row["source_id"] = source or row["source_id"]
    size_mb = sum({row["uri"]: row["bytes"] or 0 for row in rows}.values()) / 1e6
    labelled = sum(1 for label in labels.values() if label)
    on_message(
        f"corpus: {len(rows)} clips, {size_mb:.1f} MB, {labelled} with a rough label for diagnosis"
    )
    strangers = [name for name in known if name not in used]
    if strangers:
        on_message(
            f"{labels_csv}: {len(strangers)} rows name no clip of the corpus, such as "
            f"{strangers[0]!r} (a path below the corpus folder, with or without its suffix)"
        )
    return labels


def stem(uri: str) -> str:
    """A clip's path without its suffix: what it is called where nothing else names it."""
    return str(PurePosixPath(uri).with_suffix(""))


def no_clip(setting: str, root: Path | str) -> UserError:
    """That a folder, or an address, holds no clip."""
    return UserError(
        f"{setting}: {root} holds no clip, nor does a folder in it (a file that ends in one of "
        f"{', '.join(VIDEO_SUFFIXES)})",
        setting=setting,
    )


def find_clips(root: Path, set_aside: list[tuple[str, str]]) -> list[str]:
    """Paths below `root` of every clip, sorted; links out of it and other files are set aside."""
    wanted = Wanted(VIDEO_SUFFIXES)
    found = sorted(walk_files(root, wanted, set_aside))
    set_aside += wanted.others()
    return found


class Wanted:
    """Files of a kind, by how their names end; the others are counted."""

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.suffixes = suffixes
        self._others: dict[str, list[Any]] = {}

    def takes(self, name: str) -> bool:
        """Whether a file's name ends as one of the suffixes, in letters of either case."""
        path = PurePosixPath(name)
        if path.suffix.lower() in self.suffixes:
            return True
        suffix = "".join(path.suffixes[-2:] if ".tar" in path.suffixes else path.suffixes[-1:])
        self._others.setdefault(suffix.lower(), [0, name])[0] += 1
        return False

    def others(self) -> list[tuple[str, str]]:
        """What was not taken: for each ending how many, one of them, and why."""
        read = f"only files that end in {', '.join(self.suffixes)} are read"
        if ".tar" not in self.suffixes:
            archives = "tars are read by selfshot corpus build --tars, other archives are not"
        else:
            archives = "a compressed tar cannot be read in place; decompress it"
        return [
            (
                f"corpus: {count} file{'s' * (count > 1)} {suffix or 'without a suffix'}, such as "
                + name.encode(errors="replace").decode(),
                archives if suffix in _ARCHIVES else read,
            )
            for suffix, (count, name) in sorted(self._others.items())
        ]


def walk_files(
    root: Path, wanted: Wanted, set_aside: list[tuple[str, str]]
) -> Iterator[str]:
    """Paths below `root` of every file of a kind, folder by folder; see `find_clips`."""

    def leave(path: Path, reason: str) -> None:
        name = path.relative_to(root).as_posix().encode(errors="replace").decode()
        set_aside.append((f"corpus: {name}", reason))

    def unreadable(error: OSError) -> None:
        refuse_outage(error, error.filename)
        leave(Path(error.filename), f"the folder cannot be read: {error.strerror}")

    for parent, folders, names in os.walk(root, onerror=unreadable):
        folders.sort()
        for path in sorted(Path(parent, name) for name in folders):
            if path.is_symlink():
                leave(path, "links to folders are not followed")
        for path in sorted(Path(parent, name) for name in names):
            if not wanted.takes(path.relative_to(root).as_posix()):
                continue
            # Not Path.resolve: a ring of links is an error to it.
            target = os.path.realpath(path)
            if not Path(target).is_relative_to(root):
                leave(path, "the link leaves the corpus folder")
            elif not os.path.isfile(target):
                leave(path, "the link leads nowhere" if path.is_symlink() else "it is no file")
            elif not _is_text(str(path)):
                leave(path, "its name is not UTF-8")
            else:
                yield path.relative_to(root).as_posix()


def _is_text(name: str) -> bool:
    """Whether a path can be written to a manifest: bytes that are not UTF-8 are surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def csv_rows(path: Path, setting: str) -> Iterator[csv.DictReader[str]]:
    """The rows of a CSV; blanks after a comma do not count.

    Raises:
        UserError: it cannot be read, at its opening or in the body of the `with`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield csv.DictReader(file, skipinitialspace=True)
    except UnicodeDecodeError:
        raise UserError(
            f"{setting}: {path} is not UTF-8 text; save it as UTF-8", setting=setting
        ) from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{setting}: {path} cannot be read: {error}", setting=setting) from None


def check_columns(
    rows: csv.DictReader[str], wanted: Sequence[str], setting: str, path: Path
) -> None:
    """Refuse a CSV that lacks a column.

    Raises:
        UserError: it does.
    """
    names = list(rows.fieldnames or ())
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(
            f"{setting}: {path} has no column {' and no '.join(missing)} (its first line is "
            f"{','.join(names)!r} and must name {', '.join(wanted)}, with commas between them)",
            setting=setting,
        )


def clip_ids(uris: Sequence[str]) -> dict[str, str]:
    """An id for each clip that is safe as a file name; those that would collide get a digest."""
    plain = {uri: re.sub(r"[^A-Za-z0-9._-]+", "_", stem(uri)) for uri in uris}
    times = Counter(plain.values())
    digests = {uri: digest_bytes(uri.encode())[:12] for uri in uris}
    return {
        uri: name if times[name] == 1 else f"{name}-{digests[uri]}" for uri, name in plain.items()
    }


def size_and_digest(path: Path) -> tuple[int | None, str | None]:
    """Size and SHA-256 of a file, read piece by piece; None where it may not be read.

    Raises:
        StorageError: its disk fails.
    """
    size = None
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size, digest_pieces(iter(lambda: file.read(1 << 20), b""))
    except OSError as error:
        refuse_outage(error, path)
        return size, None


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
