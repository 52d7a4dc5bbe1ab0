"""Where a frame lies: below the frames' root, whatever an annotation file says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from selfshot.data.json_entries import short
from selfshot.data.video import VIDEO_SUFFIXES
from selfshot.errors import UserError


def resolve_frame(root: Path | str, file_name: str) -> Path:
    """The path of a frame below the frames' root.

    Raises:
        UserError: the name is empty, absolute, or steps out of the root.
    """
    try:
        return Path(root) / inside(file_name)
    except ValueError as error:
        raise UserError(f"{root}: file_name: {error}") from None


def inside(file_name: object) -> str:
    """The name itself, refused with a ValueError if it could lead out of a folder."""
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise ValueError(f"{short(file_name)} is not allowed (a path below the frames' root)")
    try:
        os.fsencode(file_name)
    except UnicodeEncodeError:
        raise ValueError(f"{short(file_name)} is no name that a file can have") from None
    for form in (PurePosixPath(file_name), PureWindowsPath(file_name)):
        if form.is_absolute() or form.drive or form.root or ".." in form.parts:
            raise ValueError(
                f"{short(file_name)} leaves the frames' root (give a path below it, without ..)"
            )
    return file_name


def is_one_video(file_names: Sequence[str]) -> bool:
    """Whether the names are that of one video file, rather than of images."""
    suffixes = [PurePosixPath(name).suffix.lower() for name in file_names[:2]]
    return len(suffixes) == 1 and suffixes[0] in VIDEO_SUFFIXES
