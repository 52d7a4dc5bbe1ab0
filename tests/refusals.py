"""Errors that a person reads: their setting is checked, and their words are in one golden file.

A sentence that changes is one line of a diff. After a change that is meant, write the file again:

    SELFSHOT_GOLDEN=write pytest tests/unit
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfshot.errors import UserError

GOLDEN = Path(__file__).parent / "contracts" / "messages.txt"
_TMP = re.compile(rf"{re.escape(tempfile.gettempdir())}/pytest-of-[^/]+/pytest-\d+/\w+")
_seen: Counter[str] = Counter()


@contextmanager
def refused(
    setting: str | None = None, kind: type[Exception] = UserError
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect an error with the golden `setting` and words, and that setting if one is named."""
    with pytest.raises(kind) as caught:
        yield caught
    named = getattr(caught.value, "setting", None)
    assert setting is None or named == setting
    test = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)").removeprefix("tests/")
    _seen[test] += 1
    key = f"{test} #{_seen[test]}" if _seen[test] > 1 else test
    words = _TMP.sub("TMP", str(caught.value)).replace(str(Path.cwd()), "CWD")
    raised = f"{named or '-'}: {words}".replace("\n", "⏎")
    golden = dict(line.split("\t") for line in GOLDEN.read_text().splitlines())
    if os.environ.get("SELFSHOT_GOLDEN") == "write":
        golden[key] = raised
        GOLDEN.write_text("".join(f"{one}\t{golden[one]}\n" for one in sorted(golden)))
    assert raised == golden.get(key), "SELFSHOT_GOLDEN=write writes what is raised now"
