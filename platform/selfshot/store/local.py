"""The store: each stage's result in a folder named by the hash of everything that made it.

    runs/store/<stage>/<key>/           finished: manifest.json lists every file
    runs/store/<stage>/<key>.partial/   being made; kept when a run is killed, and gone on from
    runs/store/<stage>/<key>.damaged-N/ finished once, but files are missing; never deleted
    runs/store/<stage>/<key>.other-N/   made here, while another machine's came to storage first
    runs/store/<stage>/<key>.lock       held (flock) by the process that works on the key

A folder appears under its final name by one rename, after its manifest was written and synced, so
whoever finds it finds all of it. A kill at any moment, kill -9 included, leaves the lock free.

With storage (`selfshot.store.remote`) this folder is a cache of it: what is not here is
fetched before anything is made, and what is finished is sent there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import selfshot
from selfshot.errors import StorageError
from selfshot.files import (
    Message,
    atomic_file,
    digest_bytes,
    digest_file,
    file_lock,
    remove_partial_files,
    rename_folder,
    write_atomically,
)  # fmt: skip
from selfshot.repeating import repeated
from selfshot.store.remote import MANIFEST as MANIFEST
from selfshot.store.remote import SharedStore

Exclusive = Callable[[str], contextlib.AbstractContextManager[Any]]
SCRATCH = "scratch"
HEARTBEAT_S = 2.0
_UNREADABLE = (f"it has no {MANIFEST}", f"its {MANIFEST} cannot be read")


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def stage_key(
    stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """The name of a stage's result: 16 hex digits of a hash.

    Args:
        stage: which stage.
        version: raised when the meaning of the stage's code changes.
        settings: every setting that changes the result, and none that does not, as JSON values.
        inputs: name → key of each stage (or hash of each file) that it reads.
    """
    named = {
        "stage": stage,
        "version": version,
        "settings": dict(settings),
        "inputs": dict(inputs),
    }
    return digest_bytes(canonical_json(named).encode())[:16]


class StageFolder:
    """A stage's result, finished (`done`) or to be made in `path`."""

    def __init__(
        self,
        final: Path,
        facts: dict[str, Any],
        *,
        done: bool,
        on_finish: Callable[[Path], None] = lambda final: None,
    ) -> None:
        self.final, self.facts, self.done = final, facts, done
        self._on_finish = on_finish
        self.key = final.name
        self._seconds_before = 0.0
        self._began = time.monotonic()
        self._beat, self._finishing = threading.Lock(), False

    @property
    def path(self) -> Path:
        """The finished folder, or the one to work in until `finish`."""
        return self.final if self.done else self.final.with_name(f"{self.key}.partial")

    @property
    def scratch(self) -> Path:
        """A folder inside `path` for what need not stay, such as checkpoints."""
        folder = self.path / SCRATCH
        if not self.done:
            folder.mkdir(exist_ok=True)
        return folder

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json of a finished folder."""
        manifest: dict[str, Any] = json.loads((self.final / MANIFEST).read_text())
        return manifest

    @property
    def seconds_before(self) -> float:
        """Time that killed attempts spent on this result."""
        return self._seconds_before

    @property
    def seconds(self) -> float:
        """Time spent on this result so far, killed attempts included."""
        return self._seconds_before + time.monotonic() - self._began

    def finish(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Hash the files, write the manifest, and give the folder its final name."""
        if self.done:
            raise RuntimeError(f"{self.final} is finished already")
        partial = self.path
        with self._beat:  # Time noted meanwhile would keep the folder, and change behind its hash.
            self._finishing = True
            shutil.rmtree(partial / SCRATCH, ignore_errors=True)
        (partial / MANIFEST).unlink(missing_ok=True)
        remove_partial_files(partial)
        manifest = {
            **self.facts,
            "key": self.key,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 3),
            "metrics": dict(metrics or {}),
            "selfshot": selfshot.__version__,
            "git": git_revision(),
            "files": hash_files(partial),
        }
        text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
        write_atomically(partial / MANIFEST, text)
        rename_folder(partial, self.final)
        self.done = True
        self._on_finish(self.final)

    def _start(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._seconds_before = float((self.scratch / "seconds").read_text())
        self._began = time.monotonic()

    def _note_seconds(self) -> None:
        with self._beat, contextlib.suppress(OSError):  # A full disk loses no more than the time.
            if not self._finishing:
                # Not with `write_atomically`, which would make a folder again that was removed.
                with atomic_file(self.path / SCRATCH / "seconds") as new:
                    new.write_text(f"{self.seconds:.3f}")


class Store:
    """All results under one root."""

    def __init__(
        self,
        root: Path,
        on_message: Message | None = None,
        shared: SharedStore | None = None,
    ) -> None:
        """Nothing is looked for yet.

        Args:
            root: the folder, made when needed.
            on_message: receives waits and damage.
            shared: what this folder is a cache of; None: nothing.
        """
        self.root, self.shared = Path(root), shared
        self._say: Message = on_message or (lambda message: None)

    @contextlib.contextmanager
    def stage(
        self,
        stage: str,
        version: int,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        seeds: Sequence[int] = (),
        exclusive: Exclusive = contextlib.nullcontext,
    ) -> Iterator[StageFolder]:
        """Open a result, alone among all processes on it.

        `exclusive` is a lock for machines that share no folder, but storage.

        Example:
            with store.stage("index", 1, settings, {"embeddings": key}) as folder:
                if not folder.done:
                    build(folder.path)
                    folder.finish(metrics={"clips": 3000})
        """
        key = stage_key(stage, version, settings, inputs)
        final = self.root / stage / key
        final.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "stage": stage,
            "version": version,
            "settings": dict(settings),
            "inputs": dict(inputs),
            "seeds": list(seeds),
        }
        with contextlib.ExitStack() as locks:
            lock = final.with_name(f"{key}.lock")
            locks.enter_context(file_lock(lock, self._say, f"{stage}/{key}"))
            here = self._reusable(final)
            if self.shared is not None:
                if here:
                    self._settle(final)
                elif not (here := self.shared.fetch(stage, key, final)):
                    locks.enter_context(exclusive(f"{stage}-{key}"))
                    here = self.shared.fetch(stage, key, final)  # It may have come meanwhile.
            folder = StageFolder(final, facts, done=here, on_finish=self._finished)
            if folder.done:
                yield folder
                return
            folder._start()
            with _heartbeat(folder):
                yield folder

    def find(self, stage: str, key: str) -> Path | None:
        """The folder of a finished stage, fetched if it is only in storage; None: there is none."""
        final = self.root / stage / key
        if final.exists() and damage_of(final) is None:
            return final
        if self.shared is None or self.shared.pointer(stage, key) is None:
            return None
        final.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(final.with_name(f"{key}.lock"), self._say, f"{stage}/{key}"):
            here = self._reusable(final) or self.shared.fetch(stage, key, final)
        return final if here else None

    def find_file(self, stage: str, key: str, name: str) -> Path | None:
        """A file of a finished stage; of one that is only in storage, nothing else is fetched."""
        path = self.root / stage / key / name
        if path.exists():
            return path
        if self.shared is None or path.parent.exists():
            return None
        copy = self.root / stage / f"{key}.files" / name
        if not copy.exists():
            content = self.shared.read_file(stage, key, name)
            if content is None:
                return None
            write_atomically(copy, content)
        return copy

    def overtaken(self, folder: StageFolder) -> bool:
        """Take a stage that failed here while another machine finished it, if there is one."""
        final = folder.final
        if self.shared is None or self.shared.pointer(final.parent.name, final.name) is None:
            return False
        if not folder.done:
            shutil.rmtree(folder.path, ignore_errors=True)
            folder.done = self.shared.fetch(final.parent.name, final.name, final)
        return folder.done

    def _finished(self, final: Path) -> None:
        self._settle(final)
        if self.shared is not None:
            # Checkpoints and the like; if they stay, they are in nobody's way.
            with contextlib.suppress(StorageError):
                place = f"store/{final.parent.name}/{final.name}.partial"
                self.shared.storage.remove_folder(place)

    def _settle(self, final: Path) -> None:
        """Send a finished stage to storage; if another machine was first, take what it made.

        Later stages are keyed by its key, not by its bytes: all machines must read the same ones.
        """
        if self.shared is None:
            return
        stage, key = final.parent.name, final.name
        if self.shared.publish(stage, key, final):
            return
        moved = _quarantine(final, "other")
        self._say(
            f"{stage}/{key}: another machine's result is in storage and is taken; that of this "
            f"one is quarantined as {moved.name}"
        )
        if not self.shared.fetch(stage, key, final):
            # What was first is damaged after all, and so this is the only result.
            moved.rename(final)
            self.shared.publish(stage, key, final)

    def _reusable(self, final: Path) -> bool:
        if not final.exists():
            return False
        damage = damage_of(final)
        if damage is None:
            return True
        moved = _quarantine(final, "damaged")
        self._say(
            f"{final} cannot be reused: {damage}; quarantined as {moved.name}, making it again"
        )
        return False


def _quarantine(final: Path, why: str) -> Path:
    number = 1
    while (moved := final.with_name(f"{final.name}.{why}-{number}")).exists():
        number += 1
    final.rename(moved)
    return moved


@contextlib.contextmanager
def _heartbeat(folder: StageFolder) -> Iterator[None]:
    """Note the time spent every few seconds, for a killed process cannot."""
    try:
        with repeated(folder._note_seconds, HEARTBEAT_S, "store"):
            yield
    finally:
        if not folder.done:
            folder._note_seconds()


def damage_of(folder: Path) -> str | None:
    """Why a finished folder cannot be reused, by its manifest and its files' sizes; or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {name: int(entry["bytes"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return _UNREADABLE[0]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return _UNREADABLE[1]
    found = dict(_walk(folder))
    for name, size in files.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != size:
            return f"{name} has {found[name]} bytes, not {size}"
    return None


def verify(folder: Path) -> list[str]:
    """Hash every file of a finished folder again.

    Returns:
        one line for each file that is missing, changed, or not in the manifest.
    """
    damage = damage_of(folder)
    if damage is not None and damage in _UNREADABLE:
        return [damage]
    listed: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())["files"]
    found = hash_files(folder)
    lines = [f"{name} is missing" for name in listed if name not in found]
    lines += [f"{name} is not in the manifest" for name in found if name not in listed]
    both = [name for name in listed if name in found]
    lines += [f"{name} has changed" for name in both if found[name] != listed[name]]
    return sorted(lines)


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder, manifest apart, sorted by name."""
    entries = sorted(entry for entry in _walk(folder) if entry[0] != MANIFEST)

    def digests(part: Sequence[tuple[str, int]]) -> list[str]:
        return [digest_file(folder / name) for name, _ in part]

    with ThreadPoolExecutor(4) as pool:
        # Many files a task: handing over 40,000 single files costs more than hashing them.
        slices = (entries[start : start + 256] for start in range(0, len(entries), 256))
        parts = pool.map(digests, slices)
        flat = [digest for part in parts for digest in part]
    return {
        name: {"bytes": size, "sha256": digest}
        for (name, size), digest in zip(entries, flat, strict=True)
    }


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.stat().st_size


@functools.cache
def git_revision() -> str | None:
    """The commit of the checkout that this package runs from, `-dirty` if files differ from it."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
