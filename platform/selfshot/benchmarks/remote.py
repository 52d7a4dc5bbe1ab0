"""Clips behind an address, such as s3://bucket/clips: listed and hashed, never decoded there."""

from __future__ import annotations

import dataclasses

from selfshot.benchmarks.folder_corpus import OnMessage, Wanted, in_threads
from selfshot.data.storage import Storage
from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.files import digest_pieces


@dataclasses.dataclass(frozen=True)
class RemoteClip:
    """A file: its path below the root, its size and its time."""

    uri: str
    size: int
    changed: str


def list_clips(storage: Storage, set_aside: list[tuple[str, str]]) -> list[RemoteClip]:
    """The clips of an address, in the order of their names.

    The other files are set aside, by how their names end.

    Raises:
        StorageError: it cannot be listed.
    """
    wanted = Wanted(VIDEO_SUFFIXES)
    clips = [
        RemoteClip(uri=name, size=info.size, changed=str(info.mtime_ns))
        for name, info in storage.files(deep=True).items()
        if wanted.takes(name)
    ]
    set_aside += wanted.others()
    return sorted(clips, key=lambda clip: clip.uri)


def hash_clips(
    storage: Storage, clips: list[RemoteClip], on_message: OnMessage
) -> list[tuple[int | None, str | None]]:
    """Size and SHA-256 of each clip, read piece by piece; None where it is no longer there.

    Raises:
        StorageError: one cannot be read.
    """

    def look(clip: RemoteClip) -> tuple[int | None, str | None]:
        try:
            return clip.size, digest_pieces(storage.pieces(clip.uri))
        except FileNotFoundError:
            return clip.size, None

    return list(in_threads(look, clips, "corpus clips hashed", on_message))
