"""Ids in memory and on disk, and subsets that hold each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfshot.retrieval import clip_ids
from selfshot.retrieval.clip_ids import ClipIds, write_ids

NAMES = [f"vídeo/{row:04d}" for row in range(1009)]


@pytest.mark.parametrize("stored", [False, True])
def test_names_and_rows(stored: bool, tmp_path: Path) -> None:
    if stored:
        write_ids(tmp_path, [NAMES[:7], [], NAMES[7:500], NAMES[500:]])
    ids = ClipIds.load(tmp_path) if stored else ClipIds.of(NAMES)
    assert len(ids) == 1009 and list(ids) == NAMES
    rows = np.array([[1008, 0, 7], [6, 499, 500]])
    assert ids.at(rows).tolist() == [[NAMES[row] for row in line] for line in rows]
    assert ids.rows([NAMES[500], NAMES[6], NAMES[500]]).tolist() == [500, 6, 500]
    assert NAMES[3] in ids and "nobody" not in ids and 3 not in ids
    with pytest.raises(ValueError, match=r"2 clips are not in the index, as \['nobody'"):
        ids.rows(["nobody", NAMES[1], "no one"])


def test_ids_that_come_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 clip ids come more than once, as"):
        write_ids(tmp_path, [NAMES, [NAMES[5]]])


def test_ids_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_ids, "_hash", lambda name: np.uint64(len(name) % 3))
    names = ["a", "bbbb", "cc", "dddd", "ccccc"]
    ids = ClipIds.of(names)
    assert ids.rows(names).tolist() == [0, 1, 2, 3, 4]
    assert "eeee" not in ids
    with pytest.raises(ValueError, match="more than once"):
        ClipIds.of([*names, "dddd"])


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**40),
    st.lists(st.sampled_from(NAMES), max_size=31),
)
def test_subsets_are_nested(one: float, other: float, seed: int, more: list[str]) -> None:
    ids = ClipIds.of(NAMES[:211])
    small, large = (set(ids.share(share, seed).tolist()) for share in sorted((one, other)))
    assert small <= large
    # Other clips in the corpus change nothing.
    names = sorted({*NAMES[:211], *more})
    wider = ClipIds.of(names)
    chosen = {names[row] for row in wider.share(one, seed)}
    assert chosen & set(NAMES[:211]) == {NAMES[row] for row in ids.share(one, seed)}


def test_a_share_is_about_as_large_as_it_says() -> None:
    ids = ClipIds.of([f"clip-{row}" for row in range(20_011)])
    for share in (0.0, 0.1, 0.3, 1.0):
        assert len(ids.share(share, 3)) == pytest.approx(20_011 * share, abs=250)
    tenth, other = set(ids.share(0.1, 3).tolist()), set(ids.share(0.1, 4).tolist())
    assert len(tenth & other) == pytest.approx(200, abs=80)
    assert ids.share(1.0, 3).tolist() == list(range(20_011))
    with pytest.raises(ValueError, match=r"share: 1\.2"):
        ids.share(1.2, 3)
