"""What is printed of a name: never what would steer a terminal or fail to be written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfshot.config.printable import printable

anything = st.text(st.characters(exclude_categories=[]))


@given(anything)
def test_anything_can_be_written_on_one_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and len(shown) == len(text)
    assert shown.encode() and len(shown.splitlines()) == 1 if shown else text == ""
    assert all(new == old for new, old in zip(shown, text, strict=True) if old.isprintable())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("giant panda", "giant panda"),
        ("Кошка 猫", "Кошка 猫"),
        ("a\x1b[31mred", "a�[31mred"),
        ("two\r\nlines", "two��lines"),
        ("half \ud800", "half �"),
        ("turned\u202ename", "turned�name"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_what_is_kept() -> None:
    assert printable("one\ntwo\x07", kept="\n", instead="") == "one\ntwo"
