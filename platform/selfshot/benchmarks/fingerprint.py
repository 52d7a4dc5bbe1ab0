"""What a benchmark is made of, looked at quickly: has anything behind these paths changed?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from selfshot.errors import UserError, refuse_outage
from selfshot.files import digest_file


def fingerprint(files: Mapping[str, Path], roots: Sequence[Path]) -> str:
    """A digest that changes when the inputs do: the texts' bytes, the other files' size and time.

    Args:
        files: texts, by the setting that names them.
        roots: folders of frames, masks or clips.

    Raises:
        UserError: a text cannot be read.
        StorageError: a disk fails.
    """
    digest = hashlib.sha256(b"corpus build")  # Lists of before had other ids.
    for field, path in files.items():
        try:
            digest.update(bytes.fromhex(digest_file(path)))
        except OSError as error:
            raise UserError(
                f"benchmark.{field}: {path}: {error.strerror}", setting=f"benchmark.{field}"
            ) from None
    for root in roots:
        for name, facts in _states(root):
            digest.update(name + b"\0" + facts.encode() + b"\0")
        digest.update(b"\0")
    return digest.hexdigest()


def _states(root: Path) -> Iterator[tuple[bytes, str]]:
    def unreadable(error: OSError) -> None:
        refuse_outage(error, error.filename)

    for parent, folders, names in os.walk(root, onerror=unreadable):
        folders.sort()
        for one in sorted(os.path.join(parent, name) for name in names):
            try:
                state = os.stat(one)
                facts = f"{state.st_size} {state.st_mtime_ns}"
            except OSError as error:
                refuse_outage(error, one)
                facts = "unreadable"
            yield os.fsencode(os.path.relpath(one, root)), facts
