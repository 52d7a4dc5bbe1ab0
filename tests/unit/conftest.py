"""What all unit tests share."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
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


class WebServer(http.server.ThreadingHTTPServer):
    """Answers every request alike.

    Attributes:
        content: what is sent.
        etag: its ETag; empty: none is sent.
        refusal, times: the status of the next `times` requests, instead.
        requests: how many have come.
    """

    content, etag = b"", ""
    refusal, times, requests = 503, 0, 0

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WebServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        web, content = self.server, self.server.content
        web.requests += 1
        refused, web.times = web.times > 0, max(0, web.times - 1)
        asked = self.headers.get("Range") if not refused else None
        first, last = 0, len(content) - 1
        if asked:
            first, last = (int(one) for one in asked.removeprefix("bytes=").split("-"))
        part = b"" if refused else content[first : last + 1]
        self.send_response(web.refusal if refused else 206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        if web.etag:
            self.send_header("ETag", web.etag)
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    """A server on this machine."""
    with WebServer(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
