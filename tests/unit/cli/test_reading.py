"""How far a reading is: nothing for what is quick, lines in a log, bars on a terminal."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from selfshot.cli import reading
from selfshot.cli.reading import ReadingProgress
from selfshot.data.json_entries import read_json
from selfshot.data.ytvis import load_annotations


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test moves."""
    now = [100.0]
    monkeypatch.setattr(reading.time, "monotonic", lambda: now[0])
    return now


def test_a_quick_reading_says_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ReadingProgress(Path("a/truth.json")) as progress:
        progress.watch("bytes", 10, 30)
        clock[0] += reading.QUIET_ELSEWHERE_S - 0.1
        progress.watch("bytes", 30, 30)
        progress.watch("parsing", 0, 0)
        progress.watch("annotations", 2, 3)
    assert capsys.readouterr() == ("", "")


def test_a_log_has_a_line_for_each_step_and_then_every_ten_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ReadingProgress(Path("a/truth.json")) as progress:
        clock[0] += 3
        progress.watch("bytes", 50_000_000, 200_000_000)
        clock[0] += 3
        progress.watch("bytes", 70_000_000, 200_000_000)
        clock[0] += 8
        progress.watch("bytes", 90_000_000, 200_000_000)
        progress.watch("parsing", 0, 0)
        progress.watch("annotations", 64, 4096)
        progress.watch("annotations", 128, 4096)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "truth.json: reading, 50 of 200 MB",
        "truth.json: reading, 90 of 200 MB",
        "truth.json: parsing",
        "truth.json: annotations, 64 of 4,096",
    ]


def test_the_parsing_of_a_large_file_is_announced(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ReadingProgress(Path("truth.json")) as progress:
        progress.watch("bytes", reading.ANNOUNCED_BYTES, reading.ANNOUNCED_BYTES)
        progress.watch("parsing", 0, 0)
    assert capsys.readouterr().err == "truth.json: parsing\n"


def test_a_terminal_shows_bars(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with ReadingProgress(Path("a/[b]truth.json")) as progress:
        clock[0] += reading.QUIET_ON_TERMINAL_S
        progress.watch("bytes", 150_000_000, 200_000_000)
        progress.watch("parsing", 0, 0)
        progress.watch("annotations", 64, 4096)
    shown = terminal.getvalue()
    assert "[b]truth.json: reading, 150 of 200 MB" in shown
    assert "[b]truth.json: parsing" in shown
    assert "[b]truth.json: annotations, 64 of 4,096" in shown


def test_what_the_readers_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfshot.data.json_entries._CHUNK", 100)
    path = tmp_path / "truth.json"
    videos = [{"id": i, "width": 5, "height": 7, "length": 3} for i in range(130)]
    path.write_text(json.dumps({"videos": videos, "categories": [], "annotations": []}))
    size = path.stat().st_size
    told: list[tuple[str, int, int]] = []
    load_annotations(path, watch=lambda *one: told.append(one))
    assert [one for one in told if one[0] == "bytes"] == [
        ("bytes", min(end, size), size) for end in range(100, size + 100, 100)
    ]
    assert ("parsing", 0, 0) in told
    assert [one for one in told if one[0] == "videos"] == [
        ("videos", done, 130) for done in (0, 64, 128, 130)
    ]
    assert told[-1] == ("annotations", 0, 0)


def test_a_file_is_the_same_in_any_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.json"
    path.write_text(json.dumps(["ä€😀" * 5, 1], ensure_ascii=False), encoding="utf-8")
    for size in (1, 2, 3, 5, 7, 2**22):
        monkeypatch.setattr("selfshot.data.json_entries._CHUNK", size)
        assert read_json(path) == ["ä€😀" * 5, 1]
