"""What all unit tests share."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from selfshot.models import precision


@pytest.fixture(autouse=True)
def float32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equations are compared in float32, whatever the processor can; test_precision rounds."""
    if not request.module.__name__.endswith("test_precision"):
        monkeypatch.setattr(precision, "has_bfloat16", lambda: False)


class Failing:
    """A pyarrow filesystem of which some calls raise; reads of its files count as calls."""

    def __init__(self, inner: Any, error: Exception, first: int, times: int) -> None:
        self.inner, self.error, self.calls = inner, error, 0
        self.bad = range(first, first + times)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        return self._counted(method) if callable(method) else method

    def open_input_file(self, path: str) -> Any:
        file = self._counted(self.inner.open_input_file)(path)
        read = self._counted(file.read)
        return SimpleNamespace(read=read, seek=file.seek, size=file.size, close=file.close)

    def _counted(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls in self.bad:
                raise self.error
            return method(*args, **kwargs)

        return call


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Failing]:
    """Makes a storage's filesystem fail: from its call `first` on, so many `times`."""
    monkeypatch.setattr("selfshot.data.storage.FIRST_WAIT_S", 0.0)

    def start(storage: Any, error: Exception, first: int = 1, times: int = 10**6) -> Failing:
        storage.filesystem = failing = Failing(storage.filesystem, error, first, times)
        return failing

    return start
