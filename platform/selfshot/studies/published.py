"""The paper's results as data: its tables' rows and columns, and which of ours belong there."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

from selfshot.config.document import read_document

PUBLISHED = Path(__file__).parent / "published.yaml"
SELECTORS = ("case", "settings", "supports", "shots", "extra", "bin", "oracle", "self_shot")

Selector = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """One of the paper's tables.

    Attributes:
        name: such as table08.
        title: its number and what it is about.
        dataset: on which the paper measured it.
        columns: label → which results belong to it.
        rows: label → the same.
        values: the paper's numbers by row and column; None where it has none.
        corner: what stands above the rows' labels.
        note: what a reader must know.
    """

    name: str
    title: str
    dataset: str
    columns: dict[str, Selector]
    rows: dict[str, Selector]
    values: tuple[tuple[float | None, ...], ...]
    corner: str = ""
    note: str = ""


@cache
def published_content() -> dict[str, Any]:
    """The whole file."""
    content: dict[str, Any] = read_document(
        PUBLISHED.read_text(encoding="utf-8"), PUBLISHED.name
    ).data
    return content


def published_table(name: str) -> PublishedTable:
    """One table, by its name in the settings."""
    content = published_content()
    entry = content[name]
    return PublishedTable(
        name=name,
        title=entry["title"],
        dataset=entry["dataset"],
        columns=entry["columns"],
        rows={label: row["at"] for label, row in entry["rows"].items()},
        values=tuple(tuple(row["values"]) for row in entry["rows"].values()),
        corner=entry.get("corner", ""),
        note=entry.get("note", ""),
    )


def published_rows() -> list[dict[str, Any]]:
    """The rows that one experiment can have, as its report compares them: supports and shots."""
    rows: dict[tuple[str, int, int], float] = {}
    for name, case in (("table01", "rank"), ("table03", "whole"), ("table13", None)):
        table = published_table(name)
        for row, values in zip(table.rows.values(), table.values, strict=True):
            for column, value in zip(table.columns.values(), values, strict=True):
                at = {**column, **row}
                if value is not None and at.get("case") == case:
                    key = (at["supports"], at.get("shots", 0), at.get("extra", 0))
                    rows.setdefault(key, value)
    # The whole query is the nearest that one experiment has to a random stretch of it.
    rows["query_itself", 1, 0] = rows["temporal_crops", 1, 0]
    table = published_table("table05")
    for row, values in zip(table.rows.values(), table.values, strict=True):
        for column, value in zip(table.columns.values(), values, strict=True):
            if value is not None and column["oracle"] and row["self_shot"]:
                rows["semi_shot", column["oracle"], row["self_shot"]] = value
    return [
        {"supports": supports, "shots": shots, "extra": extra, "AP50": value}
        for (supports, shots, extra), value in rows.items()
    ]
