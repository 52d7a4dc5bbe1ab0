"""CSV files that a person writes: opened, and refused with the place of what is wrong."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from selfshot.errors import UserError


@contextlib.contextmanager
def csv_rows(path: Path, setting: str) -> Iterator[csv.DictReader[str]]:
    """The rows of a CSV; blanks after a comma do not count.

    Raises:
        UserError: it cannot be read, at its opening or in the body of the `with`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield csv.DictReader(file, skipinitialspace=True)
    except UnicodeDecodeError:
        raise UserError(
            f"{setting}: {path} is not UTF-8 text; save it as UTF-8", setting=setting
        ) from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{setting}: {path} cannot be read: {error}", setting=setting) from None


def check_columns(
    rows: csv.DictReader[str], wanted: Sequence[str], setting: str, path: Path
) -> None:
    """Refuse a CSV that lacks a column.

    Raises:
        UserError: it does.
    """
    names = list(rows.fieldnames or ())
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(
            f"{setting}: {path} has no column {' and no '.join(missing)} (its first line is "
            f"{','.join(names)!r} and must name {', '.join(wanted)}, with commas between them)",
            setting=setting,
        )
