"""Ctrl-C, SIGTERM and a closed terminal: the first ends a command in order, a second at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 0.02


@contextlib.contextmanager
def stopping() -> Iterator[list[int]]:
    """Turn the first stop into a KeyboardInterrupt in the main thread.

    A second one is the kernel's: it ends the process even in the middle of a library's C++ code,
    and the processes that Ray started end with it. A stop that is ignored (`nohup`) stays ignored.
    Where Python cannot raise (a destructor, a callback of a weak reference) or should not (a module
    that is being imported: C++ libraries end the process if their own imports fail), it is raised a
    moment later.

    Yields:
        the number of the signal that came, once it has.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Only the main thread may have handlers.
        return
    before = {one: signal.getsignal(one) for one in STOPS}
    ours = [one for one in STOPS if before[one] is not signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for one in ours:
            signal.signal(one, signal.SIG_DFL)
        interrupt(number, frame)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            interrupt_later()
        else:
            raise KeyboardInterrupt

    def interrupt_later() -> None:
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)

    hook = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if received and issubclass(lost.exc_type, KeyboardInterrupt):
            interrupt_later()  # Raised in here it would be lost as well.
        else:
            hook(lost)

    sys.unraisablehook = unraisable
    for one in ours:
        signal.signal(one, stop)
    try:
        yield received
    finally:
        sys.unraisablehook = hook
        if received:
            signal.setitimer(signal.ITIMER_REAL, 0)
        # After a stop the process ends, and whoever is in a hurry need not wait for that either.
        if not received:
            for one in ours:
                signal.signal(one, before[one])


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in a frame or one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
