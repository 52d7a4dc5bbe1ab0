"""What stages are keyed by."""

from __future__ import annotations

from typing import Annotated

from selfshot.config.fields import LATER, Section
from selfshot.studies.settings import plain


class _Inner(Section):
    old: int = 2
    new: Annotated[int, LATER] = 3


class _Outer(Section):
    inner: _Inner = _Inner()
    whole: Annotated[_Inner, LATER] = _Inner(old=5)


def test_what_came_later_is_keyed_when_it_is_changed() -> None:
    assert plain(_Outer()) == {"inner": {"old": 2}}
    changed = _Outer(inner=_Inner(new=7), whole=_Inner(old=5, new=4))
    assert plain(changed) == {
        "inner": {"old": 2, "new": 7},
        "whole": {"old": 5, "new": 4},
    }
