"""Finished stages behind an address, for machines whose output folders are not the same folder.

    <storage>/store/<stage>/<key>.json            written last: the stage is there
    <storage>/store/<stage>/<key>/<upload>/       manifest.json, and part-00000 … with the files
    <storage>/store/<stage>/<key>.partial/        checkpoints and results of what is being made

A part is the files of the manifest one after another, in its order: a benchmark has tens of
thousands of small ones, and as many objects would take minutes. Where a file begins follows from
the sizes in the manifest.

Every upload has a folder of its own, named by its manifest's hash, and <key>.json names one of
them. So two machines that made the same stage cannot mix their files, and the first stays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfshot.data.storage import Storage
from selfshot.files import Message, atomic_folder, digest_bytes, write_atomically
from selfshot.store.folders import is_safe

MANIFEST = "manifest.json"
PART_BYTES = 64 * 2**20
AT_ONCE = 4
READ_ATTEMPTS = 3
_KEY = re.compile(r"[0-9a-f]{16}")
_UPLOAD = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{8})?")


class DamagedError(Exception):
    """What storage holds of a stage is not what its manifest says."""


@dataclasses.dataclass(frozen=True)
class Pointer:
    """What <key>.json says: which upload is the stage, its manifest's hash, and how it is cut."""

    upload: str
    sha256: str
    part_bytes: int


def parts_of(files: Mapping[str, int], part_bytes: int) -> list[list[str]]:
    """Names of the files of each part; a file that is larger than a part has one alone."""
    parts: list[list[str]] = []
    size = part_bytes
    for name, length in files.items():
        if not parts or size + length > part_bytes:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += length
    return parts


class SharedStore:
    """The stages of one address."""

    def __init__(self, storage: Storage, on_message: Message | None = None) -> None:
        """Args: the files, and what receives damage and waits."""
        self.storage = storage
        self._say: Message = on_message or (lambda message: None)
        self._damaged: set[str] = set()

    def address(self, stage: str, key: str) -> str:
        """Of a stage, for people."""
        return self.storage.address_of(_base(stage, key))

    def keys(self, stage: str) -> set[str]:
        """Of the stages of this name that are there."""
        names = self.storage.sizes(f"store/{stage}")
        found = {name[: -len(".json")] for name in names if name.endswith(".json")}
        return {key for key in found if _KEY.fullmatch(key)}

    def pointer(self, stage: str, key: str) -> Pointer | None:
        """Which upload is the stage; None where there is none, or only one that is damaged."""
        try:
            said = json.loads(self.storage.read(f"{_base(stage, key)}.json"))
            pointer = Pointer(str(said["upload"]), str(said["sha256"]), int(said["part_bytes"]))
            sound = _UPLOAD.fullmatch(pointer.upload) is not None and pointer.part_bytes > 0
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            self._say(f"{self.address(stage, key)}.json cannot be read; the stage is made again")
            return None
        return None if f"{stage}/{key}/{pointer.upload}" in self._damaged else pointer

    def manifest(self, stage: str, key: str, pointer: Pointer) -> tuple[bytes, dict[str, Any]]:
        """The manifest of an upload as it is stored, and what it says.

        Raises:
            DamagedError: it is not there, or not the one that was uploaded.
        """
        name = f"{_base(stage, key)}/{pointer.upload}/{MANIFEST}"
        try:
            content = self.storage.read(name)
        except FileNotFoundError:
            raise DamagedError(f"{MANIFEST} is missing") from None
        if digest_bytes(content) != pointer.sha256:
            raise DamagedError(f"{MANIFEST} has changed")
        try:
            said = json.loads(content)
            files = {name: (int(e["bytes"]), str(e["sha256"])) for name, e in said["files"].items()}
            right = said["stage"] == stage and said["key"] == key
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedError(f"{MANIFEST} cannot be read") from None
        if not right:
            raise DamagedError(f"{MANIFEST} is that of another stage")
        wrong = [name for name in files if not is_safe(name) or name == MANIFEST]
        if wrong or any(size < 0 for size, _ in files.values()):
            raise DamagedError(f"{MANIFEST} names what may not be there: {wrong[:1]}")
        return content, said

    def publish(self, stage: str, key: str, folder: Path) -> bool:
        """Upload a finished stage, unless another machine was first.

        Returns:
            whether storage now has these files; False: others, of the machine that was first.
        """
        content = (folder / MANIFEST).read_bytes()
        files: dict[str, Any] = json.loads(content)["files"]
        sha256 = digest_bytes(content)
        if (same := self._compare(stage, key, sha256, files)) is not None:
            return same
        upload = sha256[:16]
        if f"{stage}/{key}/{upload}" in self._damaged:
            upload = f"{upload}-{uuid.uuid4().hex[:8]}"
        base = f"{_base(stage, key)}/{upload}"
        sizes = {name: int(entry["bytes"]) for name, entry in files.items()}
        there = self.storage.sizes(base)

        def send(numbered: tuple[int, list[str]]) -> None:
            number, names = numbered
            name = f"part-{number:05d}"
            # What a killed run has sent is not sent again: a part is whole or not there.
            if there.get(name) != sum(sizes[one] for one in names):
                self.storage.join([folder / one for one in names], f"{base}/{name}")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(send, enumerate(parts_of(sizes, PART_BYTES))))
        self.storage.write(f"{base}/{MANIFEST}", content)
        if (same := self._compare(stage, key, sha256, files)) is not None:
            return same
        said = {"upload": upload, "sha256": sha256, "part_bytes": PART_BYTES}
        self.storage.write(f"{_base(stage, key)}.json", json.dumps(said).encode())
        # Another machine may have written in the same moment: what stands there now counts.
        return self._compare(stage, key, sha256, files) is not False

    def _compare(
        self, stage: str, key: str, sha256: str, files: Mapping[str, Any]
    ) -> bool | None:
        """Whether what is there has the same files; None where nothing sound is there."""
        pointer = self.pointer(stage, key)
        if pointer is None:
            return None
        if pointer.sha256 == sha256:
            return True
        try:
            return bool(self.manifest(stage, key, pointer)[1]["files"] == files)
        except DamagedError as error:
            self._note_damage(stage, key, pointer, error)
            return None

    def fetch(self, stage: str, key: str, final: Path) -> bool:
        """Bring a stage here. The caller holds its lock, and there is no folder of that name yet.

        Returns:
            whether it is here now; False: storage does not have it, or not as its manifest says.
        """
        pointer = self.pointer(stage, key)
        if pointer is None:
            return False
        try:
            with atomic_folder(final, final.with_name(f"{final.name}.fetched")) as partial:
                content, said = self.manifest(stage, key, pointer)
                self._say(f"{stage}/{key} is fetched from {self.storage.address}")
                self._fetch_files(stage, key, pointer, said["files"], partial)
                write_atomically(partial / MANIFEST, content)
        except DamagedError as error:
            self._note_damage(stage, key, pointer, error)
            return False
        return True

    def _note_damage(self, stage: str, key: str, pointer: Pointer, error: Exception) -> None:
        self._damaged.add(f"{stage}/{key}/{pointer.upload}")
        self._say(
            f"{self.address(stage, key)}/{pointer.upload} cannot be used: {error}; it stays "
            "where it is, and the stage is made again"
        )

    def _fetch_files(
        self, stage: str, key: str, pointer: Pointer, files: Mapping[str, Any], folder: Path
    ) -> None:
        for place in {(folder / name).parent for name in files}:
            place.mkdir(parents=True, exist_ok=True)
        sizes = {name: int(entry["bytes"]) for name, entry in files.items()}
        hashes = {name: str(entry["sha256"]) for name, entry in files.items()}

        def bring(numbered: tuple[int, list[str]]) -> None:
            number, names = numbered
            wanted = [(name, sizes[name], hashes[name]) for name in names]
            part = f"{_base(stage, key)}/{pointer.upload}/part-{number:05d}"
            _bring(self.storage, part, wanted, folder)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(bring, enumerate(parts_of(sizes, pointer.part_bytes))))

    def read_file(self, stage: str, key: str, name: str) -> bytes | None:
        """One file of a stage, without the others; None where there is none, or a damaged one."""
        pointer = self.pointer(stage, key)
        if pointer is None:
            return None
        try:
            _, said = self.manifest(stage, key, pointer)
            return self._read_file(f"{_base(stage, key)}/{pointer.upload}", pointer, said, name)
        except DamagedError as error:
            self._note_damage(stage, key, pointer, error)
            return None

    def _read_file(
        self, upload: str, pointer: Pointer, said: Mapping[str, Any], name: str
    ) -> bytes | None:
        sizes = {one: int(entry["bytes"]) for one, entry in said["files"].items()}
        for number, names in enumerate(parts_of(sizes, pointer.part_bytes)):
            if name in names:
                before = sum(sizes[one] for one in names[: names.index(name)])
                part = f"part-{number:05d}"
                try:
                    content = self.storage.read_part(f"{upload}/{part}", before, sizes[name])
                except FileNotFoundError:
                    raise DamagedError(f"{part} is missing") from None
                if digest_bytes(content) != said["files"][name]["sha256"]:
                    raise DamagedError(f"{name} has changed (its SHA-256 is not the manifest's)")
                return content
        return None


def _base(stage: str, key: str) -> str:
    return f"store/{stage}/{key}"


def _bring(
    storage: Storage, part: str, wanted: Sequence[tuple[str, int, str]], folder: Path
) -> None:
    """The files of one part, each with its hash checked.

    Raises:
        DamagedError: the part is not what was uploaded, however often it is read.
    """
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            _cut(storage.pieces(part), wanted, folder)
            return
        except FileNotFoundError:
            raise DamagedError(f"{part.rpartition('/')[2]} is missing") from None
        except DamagedError:
            # A connection that broke looks the same as a part that has changed.
            if attempt == READ_ATTEMPTS:
                raise


def _cut(pieces: Iterator[bytes], wanted: Sequence[tuple[str, int, str]], folder: Path) -> None:
    """Cut a part into its files."""
    held = memoryview(b"")
    for name, size, sha256 in wanted:
        digest, left = hashlib.sha256(), size
        with (folder / name).open("wb") as file:
            while left:
                if not held:
                    held = memoryview(next(pieces, b""))
                    if not held:
                        raise DamagedError(f"{name} ends too early")
                piece, held = held[:left], held[left:]
                file.write(piece)
                digest.update(piece)
                left -= len(piece)
        if digest.hexdigest() != sha256:
            raise DamagedError(f"{name} has changed (its SHA-256 is not the manifest's)")
