"""How a session ends."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import ray

from refusals import refused
from selfshot.cli.stopping import stopping
from selfshot.distributed import session
from selfshot.distributed.session import _own_handlers


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

    def shutdown(*, wait_for_processes: bool) -> None:
        seen.append((left() is None, gc.isenabled()))
        raise RuntimeError("it fails")

    monkeypatch.setattr(ray, "shutdown", shutdown)
    with pytest.raises(RuntimeError, match="it fails"):
        session._shut_down()
    assert seen == [(True, False)]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("given", "variable", "joined"),
    [
        (None, None, (None, "compute.address")),
        (None, "", (None, "compute.address")),
        (None, "local", (None, "RAY_ADDRESS")),
        ("local", "10.0.0.5:6379", (None, "compute.address")),
        ("10.0.0.6:6379", "10.0.0.5:6379", ("10.0.0.6:6379", "compute.address")),
        ("auto", None, ("auto", "compute.address")),
        ("auto", "10.0.0.5:6379", ("10.0.0.5:6379", "RAY_ADDRESS")),
        (None, "auto", ("auto", "RAY_ADDRESS")),
    ],
)
def test_who_says_which_cluster_is_joined(
    monkeypatch: pytest.MonkeyPatch, given: str | None, variable: str | None, joined: object
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert session.cluster_address(given) == joined


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1", "127.0.0.1:1", "a:b"])
def test_an_address_that_is_wrong_is_blamed_on_who_gave_it(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    # Other tests of this process may have left Ray running, and that one would be taken.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with refused("compute.address"), session.ray_session(address):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    for given in (None, "auto"):
        with refused("RAY_ADDRESS"), session.ray_session(given):
            pass


def test_the_folder_of_an_embedded_ray_is_its_owners_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = Path("/tmp") / f"t{os.getpid()}"
    monkeypatch.setenv("RAY_TMPDIR", str(base))
    base.mkdir()
    killed, empty, foreign = (base / f"{session.TEMP_PREFIX}{name}" for name in "kef")
    (killed / "session_1").mkdir(parents=True)
    empty.mkdir()
    foreign.symlink_to(tmp_path)
    (tmp_path / "kept").touch()
    try:
        with session._temp_dir() as folder, session._temp_dir() as other:
            assert folder != other and folder.parent == base
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "session_2").mkdir()
            with session._temp_dir():
                assert (folder / "session_2").exists() and not killed.exists()
            assert len(str(folder)) <= session.LONGEST_TEMP_DIR
        assert sorted(base.iterdir()) == [empty, foreign] and (tmp_path / "kept").exists()
    finally:
        foreign.unlink()
        empty.rmdir()
        base.rmdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    with session._temp_dir() as folder:
        assert folder.parent == Path("/tmp")


def test_a_stop_while_ray_starts_ends_the_program_in_order_once_ray_has_started() -> None:
    """Another thread takes the signal; Ray's own handler would end the program with status 15."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    started = False
    try:
        with pytest.raises(KeyboardInterrupt), stopping() as received:
            with _own_handlers(signal.SIGTERM):
                ray._private.utils.set_sigterm_handler(lambda number, frame: sys.exit(number))
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
                started = True
            pytest.fail("the stop was lost")
    finally:
        done.set()
        other.join()
    assert (started, received) == (True, [signal.SIGTERM])
