"""Table 6 of a study: the figures of each trial's benchmark beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfshot.benchmarks.published import published_benchmarks
from selfshot.benchmarks.statistics import ROWS
from selfshot.studies.tables import Cell, Table


def statistics_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """A column for each trial, with the paper's figure where its kind is one of the paper's."""
    published = published_benchmarks()
    columns, found = [], []
    for result in results:
        benchmark = result["benchmark"]
        known = published.get(benchmark["kind"])
        case = f"{result['name']}: " if result["case"] else ""
        columns.append(case + benchmark["name"])
        found.append((benchmark["statistics"] or {}, known.table_6 if known else {}))
    rows = tuple(
        (
            words,
            tuple(
                Cell(
                    None if ours.get(row) is None else float(ours[row]),
                    published=None if theirs.get(row) is None else float(theirs[row]),
                )
                for ours, theirs in found
            ),
        )
        for row, words in ROWS.items()
    )
    return Table("Table 6: statistics of the benchmarks", "", tuple(columns), rows)
