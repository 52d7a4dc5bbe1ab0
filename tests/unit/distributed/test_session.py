"""How a session ends."""

from __future__ import annotations

import gc
import weakref

import pytest
import ray

from selfshot.distributed import session


class Holder:
    """Something that only a collection of garbage frees."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_of_rays_is_left_to_be_collected_while_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray ends the process if another thread drops a reference just then."""
    seen = []
    held = Holder()
    gc.collect()  # It is old now: only a full collection finds it.
    left = weakref.ref(held)
    del held

    def shutdown() -> None:
        seen.append((left() is None, gc.isenabled()))
        raise RuntimeError("it fails")

    monkeypatch.setattr(ray, "shutdown", shutdown)
    with pytest.raises(RuntimeError, match="it fails"):
        session._shut_down()
    assert seen == [(True, False)]
    assert gc.isenabled()
