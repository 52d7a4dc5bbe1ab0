"""What a corpus is made of, one video after another: files, addresses, segments, tar members."""

from __future__ import annotations

import dataclasses
import math
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from selfshot.benchmarks.csv_files import check_columns, csv_rows
from selfshot.config.addresses import is_address
from selfshot.data.storage import Storage
from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.errors import UserError, refuse_outage

_COMPRESSED = (".bz2", ".gz", ".xz", ".zst")
_ARCHIVES = (".tar", *(f".tar{end}" for end in _COMPRESSED), ".tbz2", ".tgz", ".txz", ".zip")

Quarantined = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Item:
    """A video, or a named part of one.

    Attributes:
        uri: path below the root, or an address.
        name: what its clips are named after.
        source: what it was cut from.
        size: bytes, where the listing says so.
        offset: of a tar's member, where it begins in the tar.
        start_s, end_s: of a segment.
    """

    uri: str
    name: str
    source: str
    size: int | None = None
    offset: int | None = None
    start_s: float | None = None
    end_s: float | None = None


def local_root(address: str, setting: str) -> Path | None:
    """The folder that a path stands for; None for an address elsewhere.

    Raises:
        UserError: there is no such folder.
    """
    if is_address(address) and not address.lower().startswith("file://"):
        return None
    root = Path(address[len("file://") :] if is_address(address) else address).resolve()
    if not root.is_dir():
        raise UserError(f"{setting}: {root} is no folder; give the path of one", setting=setting)
    return root


def list_files(
    address: str, suffixes: tuple[str, ...], setting: str, quarantined: Quarantined
) -> Iterator[tuple[str, int | None]]:
    """Path below the root and size of each file of a kind; a folder is listed when it is come to.

    The other files are quarantined at the end, by how their names end.

    Raises:
        UserError: there is no such folder.
        StorageError: it cannot be listed.
    """
    wanted = Wanted(suffixes)
    root = local_root(address, setting)
    if root is not None:
        for uri in walk_files(root, wanted, quarantined):
            yield uri, (root / uri).stat().st_size
        quarantined += wanted.others()
        return
    storage = Storage(address, setting)
    top = storage.root
    waiting = [top]
    while waiting:
        folder = pafs.FileSelector(waiting.pop())
        try:
            infos = storage.tried("listed", partial(storage.filesystem.get_file_info, folder))
        except FileNotFoundError:
            raise UserError(
                f"{setting}: {address} cannot be listed; is it there?", setting=setting
            ) from None
        infos = sorted(infos, key=lambda info: info.path)
        waiting += [info.path for info in reversed(infos) if not info.is_file]
        for info in infos:
            uri = str(PurePosixPath(info.path).relative_to(top or "."))
            if info.is_file and wanted.takes(uri):
                yield uri, info.size
    quarantined += wanted.others()


def of_videos(address: str, quarantined: Quarantined) -> Iterator[Item]:
    """The videos of a folder and of those below it."""
    for uri, size in list_files(address, VIDEO_SUFFIXES, "--videos", quarantined):
        yield Item(uri, stem(uri), stem(uri), size)


def of_uris(path: Path) -> Iterator[Item]:
    """The lines of a text file; empty ones and those that begin with # are passed over.

    Raises:
        UserError: it cannot be read, or lists nothing.
    """
    empty = True
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                uri = line.strip()
                if uri and not uri.startswith("#"):
                    empty = False
                    yield Item(uri, stem(uri), stem(uri))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--uris: {path} cannot be read: {error}", setting="--uris") from None
    if empty:
        raise UserError(
            f"--uris: {path} lists nothing; write a path or an address on each line",
            setting="--uris",
        )


def of_segments(
    path: Path, segment_s: float, root: Path | None, quarantined: Quarantined
) -> Iterator[Item]:
    """The lines of a CSV with columns uri (or clip), start_s and, if wanted, end_s and source.

    No other column is looked at, so no label can get in. Lines whose file is not there are
    quarantined where `root` is a folder.

    Args:
        path: of the CSV.
        segment_s: length of a segment whose line names no end.
        root: folder that the files lie in; None: they are elsewhere.
        quarantined: receives what is left out, with the reason.

    Raises:
        UserError: the CSV cannot be read, lacks a column or a segment, or a time is wrong.
    """
    empty = True
    with csv_rows(path, "--segments") as rows:
        column = "clip" if "clip" in (rows.fieldnames or ()) else "uri"
        check_columns(rows, (column, "start_s"), "--segments", path)
        for row in rows:
            where = f"--segments: {path}, line {rows.line_num}"
            uri = (row[column] or "").strip()
            start_s = _seconds(row["start_s"], where, "start_s")
            text = (row.get("end_s") or "").strip()
            end_s = _seconds(text, where, "end_s") if text else start_s + segment_s
            if not uri:
                raise UserError(
                    f"{where}: an empty {column}; name a file of the corpus", setting="--segments"
                )
            if end_s <= start_s:
                raise UserError(
                    f"{where}: end_s: {end_s:g} is not allowed (more than start_s: {start_s:g})",
                    setting="--segments",
                )
            empty = False
            if root is not None and not is_address(uri) and not (root / uri).is_file():
                quarantined.append((f"segment of line {rows.line_num}", f"no file {uri}"))
                continue
            source = (row.get("source") or "").strip() or stem(uri)
            yield Item(uri, stem(uri), source, start_s=start_s, end_s=end_s)
    if empty:
        raise UserError(
            f"--segments: {path} lists no segment; add a line for each", setting="--segments"
        )


def _seconds(text: str | None, where: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(
            f"{where}: {column}: {text!r} is not allowed (seconds, a number ≥ 0)",
            setting="--segments",
        )
    return value


def of_tars(address: str, quarantined: Quarantined) -> Iterator[Item]:
    """The videos inside the tars of a folder, as WebDataset packs them; nothing is unpacked.

    Raises:
        UserError: there is no such folder.
        StorageError: it cannot be listed, or a tar cannot be read.
    """
    storage = Storage(local_root(address, "--tars") or address, "--tars")
    wanted = Wanted(VIDEO_SUFFIXES)
    for uri, _ in list_files(address, (".tar",), "--tars", quarantined):
        try:
            with storage.open(uri) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isreg() and wanted.takes(member.name):
                        name = f"{stem(uri)}/{stem(member.name)}"
                        yield Item(uri, name, name, member.size, member.offset_data)
        except (tarfile.TarError, FileNotFoundError) as error:
            quarantined.append((f"corpus: {uri}", f"the tar cannot be read to its end: {error}"))
    quarantined += wanted.others()


def stem(uri: str) -> str:
    """A clip's path without its suffix: what it is called where nothing else names it."""
    return str(PurePosixPath(uri).with_suffix(""))


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
    root: Path, wanted: Wanted, quarantined: Quarantined
) -> Iterator[str]:
    """Paths below `root` of every file of a kind, folder by folder."""

    def leave(path: Path, reason: str) -> None:
        name = path.relative_to(root).as_posix().encode(errors="replace").decode()
        quarantined.append((f"corpus: {name}", reason))

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
