"""Rows that were predicted before: found whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from selfshot.evaluation.kept_rows import LEFT_S, KeptRows

ROW = {"supports": "oracle", "shots": 1, "extra": 0}


@pytest.fixture
def kept(tmp_path: Path) -> tuple[KeptRows, str]:
    """A folder with one row in it, and the row's key."""
    rows = KeptRows(tmp_path / "rows", {"vis": "a", "fold": 2})
    (tmp_path / "made.json").write_text('[{"score": 0.5}]')
    key = rows.key(ROW, [["3:cat", [7], 1.0]])
    rows.keep(key, {"AP50": 61.0}, tmp_path / "made.json")
    return rows, key


def test_a_row_is_found_with_its_file(kept: tuple[KeptRows, str], tmp_path: Path) -> None:
    rows, key = kept
    assert rows.find(key, tmp_path / "again.json") == {"AP50": 61.0}
    assert (tmp_path / "again.json").read_text() == '[{"score": 0.5}]'
    assert rows.find("0" * 32, tmp_path / "other.json") is None
    assert not (tmp_path / "other.json").exists()


def test_the_key_is_of_all_that_a_row_depends_on(kept: tuple[KeptRows, str]) -> None:
    rows, key = kept
    asked = [["3:cat", [7], 1.0]]
    assert rows.key(ROW, asked) == key
    others = {
        rows.key(ROW | {"shots": 5}, asked),
        rows.key(ROW, [["3:cat", [8], 1.0]]),
        KeptRows(None, {"vis": "b", "fold": 2}).key(ROW, asked),
    }
    assert len(others) == 3 and key not in others


@pytest.mark.parametrize("damage", ["predictions", "scores", "gone"])
def test_a_damaged_row_is_not_there(
    kept: tuple[KeptRows, str], tmp_path: Path, damage: str
) -> None:
    rows, key = kept
    path = tmp_path / "rows" / f"{key}{'.predictions' if damage != 'scores' else ''}.json"
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(path.read_text()[:-3])
    assert rows.find(key, tmp_path / "again.json") is None
    assert not (tmp_path / "again.json").exists()


def test_what_a_killed_process_left_is_swept(kept: tuple[KeptRows, str], tmp_path: Path) -> None:
    rows, key = kept
    old, fresh = (tmp_path / "rows" / f".{name}.json.17.partial" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.write_text("[")
    long_ago = time.time() - LEFT_S - 60
    os.utime(old, (long_ago, long_ago))
    rows.keep(key, {"AP50": 61.0}, tmp_path / "made.json")
    assert not old.exists() and fresh.exists()


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "made.json").write_text("[]")
    rows = KeptRows(None, {})
    rows.keep(rows.key(ROW, []), {}, tmp_path / "made.json")
    assert rows.find(rows.key(ROW, []), tmp_path / "again.json") is None
    assert [path.name for path in tmp_path.iterdir()] == ["made.json"]
