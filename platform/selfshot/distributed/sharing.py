"""How nodes whose output folders are not one folder come to each other's files.

A path of the sender that lies in its output folder means the same place in this node's own. A
finished stage that is not there is fetched from storage first; what a worker writes is sent there,
for whoever waits for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from selfshot.data.storage import Storage
from selfshot.distributed.session import current_session
from selfshot.errors import StorageError
from selfshot.files import file_lock
from selfshot.store.folders import RemoteFolder
from selfshot.store.remote import MANIFEST, SharedStore

CACHE = "SELFSHOT_CACHE"
"""In a node's environment: the folder that is this node's output folder, if not the run's."""
NAMESPACE = "selfshot"
TURN_ATTEMPT_S = 1.0

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What a worker needs to know of its run's storage.

    Attributes:
        storage: address.
        output: output folder of the run, which is that of every node without one of its own.
        sender: output folder of the process that sends paths to the worker.
    """

    storage: str
    output: str
    sender: str

    @property
    def folder(self) -> Path:
        """This node's output folder."""
        return Path(os.environ.get(CACHE) or self.output)

    @property
    def here(self) -> Sharing:
        """The same, for paths that this process sends on."""
        return dataclasses.replace(self, sender=str(self.folder.resolve()))

    def local(self, value: Value) -> Value:
        """A JSON value with each path of the sender's output folder made one of this node.

        Finished stages that a path leads into are fetched if they are not here.

        Raises:
            StorageError: one is neither here nor in storage.
        """
        found: Any = value
        if isinstance(value, str):
            relative = self._relative(value)
            if relative is not None:
                self._bring(relative)
                found = str(self.folder / relative)
        elif isinstance(value, Path):
            found = Path(self.local(str(value)))
        elif isinstance(value, dict):
            found = {name: self.local(one) for name, one in value.items()}
        elif isinstance(value, list):
            found = [self.local(one) for one in value]
        return found

    def remote(self, path: Path) -> RemoteFolder:
        """The counterpart of a folder of this process's output folder or of the sender's."""
        relative = self._relative(str(path))
        if relative is None:
            relative = str(path.resolve().relative_to(self.folder.resolve()))
        return RemoteFolder(Storage(self.storage), relative, self.folder / relative)

    def _relative(self, path: str) -> str | None:
        start = f"{self.sender}/"
        return path[len(start) :] if path.startswith(start) else None

    def _bring(self, relative: str) -> None:
        parts = relative.split("/")
        if len(parts) < 3 or parts[0] != "store" or "." in parts[2]:
            return
        stage, key = parts[1:3]
        final = self.folder / "store" / stage / key
        if (final / MANIFEST).exists():
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(final.with_name(f"{key}.lock"), lambda text: None, f"{stage}/{key}"):
            if (final / MANIFEST).exists():
                return
            store = SharedStore(Storage(self.storage))
            if not store.fetch(stage, key, final):
                raise StorageError(
                    f"storage: {store.address(stage, key)} is needed on this node and is not "
                    "there, or not as it was uploaded; run the same command again",
                    setting="storage",
                )


@contextlib.contextmanager
def take_turn(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only one on the running Ray that does what bears this name.

    It is an actor with a name. Ray gives a name once, and ends an actor with the process that made
    it, so a killed holder frees it.
    """
    import ray

    if not ray.is_initialized() or current_session().embedded:
        yield  # One machine: a lock of its files is enough.
        return

    class Turn:
        def ping(self) -> None:
            """Answers once it is there."""

    made: Any = ray.remote(num_cpus=0)(Turn)
    waits = False
    while True:
        try:
            holder = made.options(name=f"turn-{name}", namespace=NAMESPACE).remote()
            break
        except ValueError:  # The name is taken.
            if not waits:
                say(f"{name}: another node works on it; waiting until it ends")
                waits = True
            time.sleep(TURN_ATTEMPT_S)
    try:
        ray.get(holder.ping.remote())
        yield
    finally:
        ray.kill(holder)
