"""A local S3-compatible server in a process of its own, and a bucket in it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

BUCKET = "selfshot-tests"


@contextlib.contextmanager
def s3_server(log: Path, host: str = "127.0.0.1") -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start one with an empty bucket; the environment says where it is and who may enter.

    Yields:
        the process, and the bucket's address.
    """
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(server, f"http://{host}:{port}/moto-api/", log)
        request = urllib.request.Request(f"http://{host}:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield server, f"s3://{BUCKET}/runs"
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"the server did not answer: {log.read_text(errors='replace')}")
