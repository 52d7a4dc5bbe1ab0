"""What videos were cut from: two of one source are not told apart by chance of spelling."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfshot.data.ytvis import Video


def fold_source(name: str) -> str:
    """A source's name without what differs by accident: case, outer spaces, the form of accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def sources_of(videos: Mapping[int, Video]) -> dict[int, str]:
    """What each video was cut from; one that does not say is its own source.

    Two entries of the same frames are one source, and so are names that `fold_source` makes one:
    all have the name of the first. A slash keeps a path apart from a name.
    """
    first: dict[str, str] = {}
    found = {}
    for number in sorted(videos):
        video = videos[number]
        name = video.source_id
        if name is None:
            name = f"/{video.file_names[0]}" if video.file_names else f"/video {number}"
        found[number] = first.setdefault(fold_source(name), name)
    return found
