"""Clips behind an address, such as s3://bucket/clips: listed and hashed, never decoded there."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from selfshot.benchmarks.folder_corpus import CLIP_SUFFIXES, OnMessage, in_threads
from selfshot.data.storage import open_filesystem
from selfshot.errors import UserError


@dataclasses.dataclass(frozen=True)
class RemoteClip:
    """A file: its path below the root, where the filesystem has it, its size and its time."""

    uri: str
    path: str
    size: int
    changed: str


def list_clips(address: str) -> tuple[Any, list[RemoteClip]]:
    """The filesystem of an address and its clips, in the order of their names.

    Raises:
        UserError: it cannot be listed.
    """
    filesystem, root = open_filesystem(address, "benchmark.corpus")
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise UserError(
            f"benchmark.corpus: {address} cannot be listed ({error}); is it there, and may it be "
            "read?"
        ) from None
    clips = [
        RemoteClip(
            uri=str(PurePosixPath(info.path).relative_to(root or ".")),
            path=info.path,
            size=info.size,
            changed=str(info.mtime_ns),
        )
        for info in infos
        if info.is_file and info.path.lower().endswith(CLIP_SUFFIXES)
    ]
    return filesystem, sorted(clips, key=lambda clip: clip.uri)


def hash_clips(
    filesystem: Any, clips: list[RemoteClip], on_message: OnMessage
) -> list[tuple[int | None, str | None]]:
    """Size and SHA-256 of each clip, read piece by piece; None where it cannot be read."""

    def look(clip: RemoteClip) -> tuple[int | None, str | None]:
        digest = hashlib.sha256()
        try:
            with filesystem.open_input_stream(clip.path) as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
        except OSError:
            return clip.size, None
        return clip.size, digest.hexdigest()

    return list(in_threads(look, clips, "corpus clips hashed", on_message))
