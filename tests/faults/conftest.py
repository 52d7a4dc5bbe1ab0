"""The faulty file system in this process and in those that it starts, and the count at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "filesystem")]

from faulty import PLAN, Plan  # noqa: E402
from tally import TALLY  # noqa: E402


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """Which calls fail; made before Ray starts, whose workers inherit the environment."""
    folder = tmp_path_factory.mktemp("plan")
    paths = [str(HERE / "filesystem"), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(PLAN, str(folder))
        # Ray's workers find it by its entry point; here fsspec may be imported already.
        patched.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        fsspec.register_implementation("faulty", "faulty.FaultyFileSystem", clobber=True)
        plan = Plan(folder)
        plan.begin()
        yield plan


@pytest.fixture(scope="session")
def ray_running(plan: Plan) -> Iterator[None]:
    from selfshot.distributed.session import ray_session

    with ray_session():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.runs:
        terminalreporter.write_line(TALLY.words())
