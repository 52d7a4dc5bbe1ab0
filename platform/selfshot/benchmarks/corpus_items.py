"""What a corpus is made of, one video after another: files, addresses, segments, tar members."""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from selfshot.benchmarks.folder_corpus import Wanted, stem, walk_files
from selfshot.benchmarks.yt8m_segments import iterate_segments
from selfshot.config.addresses import is_address
from selfshot.data.storage import Storage
from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.errors import UserError


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


SetAside = list[tuple[str, str]]


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
    address: str, suffixes: tuple[str, ...], setting: str, set_aside: SetAside
) -> Iterator[tuple[str, int | None]]:
    """Path below the root and size of each file of a kind; a folder is listed when it is come to.

    The other files are set aside at the end, by how their names end.

    Raises:
        UserError: there is no such folder.
        StorageError: it cannot be listed.
    """
    wanted = Wanted(suffixes)
    root = local_root(address, setting)
    if root is not None:
        for uri in walk_files(root, wanted, set_aside):
            yield uri, (root / uri).stat().st_size
        set_aside += wanted.others()
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
    set_aside += wanted.others()


def of_videos(address: str, set_aside: SetAside) -> Iterator[Item]:
    """The videos of a folder and of those below it."""
    for uri, size in list_files(address, VIDEO_SUFFIXES, "--videos", set_aside):
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
        raise UserError(f"--uris: {path} cannot be read: {error}") from None
    if empty:
        raise UserError(f"--uris: {path} lists nothing; write a path or an address on each line")


def of_segments(path: Path, segment_s: float) -> Iterator[Item]:
    """The lines of a CSV with columns uri (or clip), start_s and, if wanted, end_s and source.

    Raises:
        UserError: see `iterate_segments`.
    """
    for segment in iterate_segments(path, segment_s, "--segments"):
        uri, source = segment.clip, segment.source or stem(segment.clip)
        yield Item(uri, stem(uri), source, start_s=segment.start_s, end_s=segment.end_s)


def of_tars(address: str, set_aside: SetAside) -> Iterator[Item]:
    """The videos inside the tars of a folder, as WebDataset packs them; nothing is unpacked.

    Raises:
        UserError: there is no such folder.
        StorageError: it cannot be listed, or a tar cannot be read.
    """
    storage = Storage(local_root(address, "--tars") or address, "--tars")
    wanted = Wanted(VIDEO_SUFFIXES)
    for uri, _ in list_files(address, (".tar",), "--tars", set_aside):
        try:
            with storage.open(uri) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isreg() and wanted.takes(member.name):
                        name = f"{stem(uri)}/{stem(member.name)}"
                        yield Item(uri, name, name, member.size, member.offset_data)
        except (tarfile.TarError, OSError) as error:
            set_aside.append((f"corpus: {uri}", f"the tar cannot be read to its end: {error}"))
    set_aside += wanted.others()
