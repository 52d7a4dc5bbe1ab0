"""Batches that are made ahead of the step that takes them, and how they reach the device."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of nested dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


@contextlib.contextmanager
def prefetch(
    make: Callable[[int], Any], steps: range, ahead: int = 2
) -> Iterator[Iterator[tuple[int, Any]]]:
    """(step, `make(step)`) for each step, computed up to `ahead` steps early by one thread.

    One thread, because batches are made in order and mostly by code that releases the GIL
    (resizing, decoding, tensor arithmetic). An exception comes out at its own step. The thread
    ends with the `with` block.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        for step in steps:
            try:
                item = (make(step), None)
            except BaseException as error:  # handed over, not swallowed
                put((None, error))
                return
            if not put(item):
                return

    def batches() -> Iterator[tuple[int, Any]]:
        for step in steps:
            batch, error = ready.get()
            if error is not None:
                raise error
            yield step, batch

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        stopped.set()
        thread.join()


class _Batches(Dataset):
    """`make(step)` of each step, or the exception that it raised."""

    def __init__(self, make: Callable[[int], Any], steps: Sequence[int]) -> None:
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[int, Any, BaseException | None]:
        step = self.steps[index]
        try:
            return step, self.make(step), None
        except BaseException as error:  # handed over as it is: a DataLoader would reword it
            return step, None, error


def _as_it_is(item: Any) -> Any:
    return item


@contextlib.contextmanager
def load_batches(
    make: Callable[[int], Any], steps: range, *, workers: int = 0
) -> Iterator[Iterator[tuple[int, Any]]]:
    """(step, `make(step)`) for each step, made ahead by a thread or by a DataLoader's processes.

    Args:
        make: gives the batch of a step; the same one in whichever process.
        steps: in order.
        workers: processes; `make` is pickled to each. 0: one thread of this process.
    """
    if not workers or not steps:
        with prefetch(make, steps) as batches:
            yield batches
        return
    loader = DataLoader(
        _Batches(make, steps),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        # A fork would copy the locks that the threads of Ray, gRPC and OpenMP hold at that moment.
        multiprocessing_context="spawn",
    )

    def in_order() -> Iterator[tuple[int, Any]]:
        for step, batch, error in loader:
            if error is not None:
                raise error
            yield step, batch

    batches = in_order()
    try:
        yield batches
    finally:
        batches.close()  # type: ignore[attr-defined]
