"""Signals of a command, sent to a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

STOPPED = "stopped; run the same command to go on\n"
COMMAND = """
import ctypes, os, signal, sys, time
from selfshot.cli.app import app, main

@app.command("wait")
def wait(hurry: bool = False) -> None:
    try:
        print("waits", flush=True)
        time.sleep(60)
    finally:
        print("cleans up", flush=True)
        if hurry:
            sum(range(10**12))  # C code that looks at no signal.

class Last:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

@app.command("destroy")
def destroy() -> None:
    print("waits", flush=True)
    Last()
    time.sleep(60)

@app.command("embedded")
def embedded() -> None:
    run = ctypes.pythonapi.PyRun_String
    run.restype = ctypes.py_object
    run.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.py_object, ctypes.py_object]
    run(b"print('waits', flush=True); time.sleep(60)", 257, globals(), globals())

@app.command("import")
def import_slowly() -> None:
    import slow
    time.sleep(60)

sys.exit(main(sys.argv[1:]))
"""


def start(
    *words: str,
    command: str = "wait",
    ignored: bool = False,
    program: Sequence[str] = (),
    folder: Path | None = None,
) -> subprocess.Popen[str]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, *(program or ("-c", COMMAND)), command, *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_ends_it_in_order(number: signal.Signals) -> None:
    process = start()
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (128 + number, "cleans up\n", STOPPED)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ends_it_at_once(number: signal.Signals) -> None:
    process = start("--hurry")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None and process.stdout.readline() == "cleans up\n"
    process.send_signal(number)
    assert process.communicate() == ("", "")
    assert process.returncode == -number


def test_what_nohup_ignores_stays_ignored() -> None:
    process = start(ignored=True)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGTERM, STOPPED)


def test_one_that_comes_in_a_destructor_is_not_lost() -> None:
    process = start(command="destroy")
    assert process.communicate(timeout=30) == ("", STOPPED)
    assert process.returncode == 128 + signal.SIGTERM


def test_one_that_comes_in_python_run_by_c_has_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(COMMAND)
    process = start(command="embedded", program=("-m", "program"), folder=tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", STOPPED)
    assert process.returncode == 128 + signal.SIGINT


def test_one_that_comes_in_an_import_comes_after_it(tmp_path: Path) -> None:
    """C++ libraries import Python's modules, and end the process if they cannot."""
    (tmp_path / "slow.py").write_text("import time\nprint('waits', flush=True)\n"
                                      "time.sleep(1)\nprint('imported', flush=True)\n")  # fmt: skip
    process = start(command="import", folder=tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30) == ("imported\n", STOPPED)
    assert process.returncode == 128 + signal.SIGTERM
