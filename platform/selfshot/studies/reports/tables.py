"""A study's tables: which trials belong in a cell, what they say together, and the paper's own."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from selfshot.benchmarks.published import published_benchmarks
from selfshot.benchmarks.statistics import ROWS
from selfshot.config.document import read_yaml

PUBLISHED = Path(__file__).parents[1] / "published.yaml"
SELECTORS = ("case", "settings", "supports", "shots", "extra", "bin", "oracle", "self_shot")

Selector = dict[str, Any]


Result = Mapping[str, Any]


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
    content: dict[str, Any] = read_yaml(
        PUBLISHED.read_text(encoding="utf-8"), PUBLISHED.name
    )
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


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of ours and the paper's.

    Attributes:
        mean: ours, in percent; None where no trial has it.
        std: deviation over repeats, or over folds where there is one; None where it is not known.
        values: what the mean is of.
        over: `repeats` or `folds`.
        published: the paper's; None where it has none.
    """

    mean: float | None
    std: float | None = None
    values: tuple[float, ...] = ()
    over: str = ""
    published: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """What is written as Markdown, CSV and LaTeX."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""

    @property
    def has_published(self) -> bool:
        """Whether the paper has any of its figures."""
        return any(cell.published is not None for _, cells in self.rows for cell in cells)


def paper_table(published: PublishedTable, results: Sequence[Result]) -> Table:
    """A study's results in the form of one of the paper's tables.

    Args:
        published: the form, and the paper's numbers.
        results: of the finished trials.
    """
    rows = []
    for (label, row), values in zip(published.rows.items(), published.values, strict=True):
        cells = tuple(
            dataclasses.replace(cell_of(results, {**column, **row}), published=value)
            for column, value in zip(published.columns.values(), values, strict=True)
        )
        rows.append((label, cells))
    note = f"The paper's figures are those of {published.dataset}. {published.note}".strip()
    return Table(
        published.title, published.corner, tuple(published.columns), tuple(rows), note
    )


def statistics_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Table 6: a column for each trial, with the paper's figure where the paper has its kind."""
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


def sweep_table(title: str, results: Sequence[Result]) -> Table:
    """Every point of a sweep in a row: AP50 of each kind of support, or else the retrieval."""
    names = list(dict.fromkeys(str(result["name"]) for result in results))
    columns: dict[str, Selector] = {}
    for result in results:
        for row in result.get("rows", ()):
            at = {key: row[key] for key in ("supports", "shots", "extra")}
            columns.setdefault(_column_label(at), at)
    if not columns:
        for result in results:
            for k in result.get("retrieval", {}).get("test", {}).get("precision_at", {}):
                columns.setdefault(f"precision@{k}", {"precision": k})
    rows = []
    for name in names:
        own = [result for result in results if result["name"] == name]
        rows.append((name, tuple(cell_of(own, at) for at in columns.values())))
    return Table(title, "", tuple(columns), tuple(rows))


def _column_label(at: Selector) -> str:
    if not at["shots"]:
        return str(at["supports"])
    extra = f"+({at['extra']})" if at["extra"] else ""
    return f"{at['supports']} {at['shots']}{extra}"


def cell_of(results: Sequence[Result], at: Selector) -> Cell:
    """What the trials that a selector means say together.

    One trial, or repeats that agree in every fold: the mean and the deviation over the folds of
    the queries. Other repeats: those over the repeats, each of which counts with the mean over
    its folds.

    Raises:
        ValueError: the selector means trials that differ in more than the repeat.
    """
    # Repeats may be one trial, as those of a subset that holds everything: it counts once.
    meant = {
        (result["name"], result.get("key", number)): result
        for number, result in enumerate(results)
        if _is_meant(result, at)
    }
    found = [
        (result, value)
        for result in meant.values()
        if (value := _value(result, at)) is not None
    ]
    if not found:
        return Cell(None)
    if len({str(result["name"]) for result, _ in found}) > 1:
        names = sorted({str(result["name"]) for result, _ in found})
        raise ValueError(f"{dict(at)} means the trials {', '.join(names)}, which differ")
    # What no repeat changes, as labelled supports in other subsets of the corpus, is one result.
    if len({(mean, tuple(folds)) for _, (mean, folds) in found}) == 1:
        mean, folds = found[0][1]
        std = statistics.stdev(folds) if len(folds) > 1 else None
        return Cell(mean, std, tuple(folds), "folds")
    values = tuple(mean for _, (mean, _) in found)
    return Cell(statistics.fmean(values), statistics.stdev(values), values, "repeats")


def _is_meant(result: Result, at: Selector) -> bool:
    if at.get("case") and result["case"] and result["case"] != at["case"]:
        return False
    if at.get("case") and not result["case"]:
        return False
    return all(result["settings"].get(k) == v for k, v in at.get("settings", {}).items())


def _value(result: Result, at: Selector) -> tuple[float, list[float]] | None:
    """A trial's mean and its figures by fold, in percent."""
    if "precision" in at:
        share = result.get("retrieval", {}).get("test", {}).get("precision_at", {})
        return (100 * share[at["precision"]], []) if at["precision"] in share else None
    row = next((row for row in result.get("rows", ()) if _is_row(row, at)), None)
    if row is None:
        return None
    if "bin" in at:
        kind, _, label = at["bin"].partition("/")
        share = row.get("breakdown", {}).get(kind, {}).get(label, {}).get("AP50", -1)
        return (share, []) if share >= 0 else None
    figure = row[at.get("metric", "AP50")]
    if figure["mean"] is None or figure["mean"] < 0:
        return None
    return figure["mean"], [one for one in figure["per_fold"] if one is not None and one >= 0]


def _is_row(row: Mapping[str, Any], at: Selector) -> bool:
    if "oracle" in at:
        return semi_shot_row(row) == (at["oracle"], at["self_shot"])
    wanted = {
        "supports": at.get("supports"), "shots": at.get("shots"), "extra": at.get("extra", 0)
    }  # fmt: skip
    return all(row[key] == value for key, value in wanted.items() if value is not None)


def semi_shot_row(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """How many (oracle, self-shot) supports a row has; None if it has others."""
    if row["supports"] == "semi_shot":
        return row["shots"], row["extra"]
    if row["extra"]:
        return None
    return {"oracle": (row["shots"], 0), "self_shot": (0, row["shots"])}.get(row["supports"])


def shown(cell: Cell, plus_minus: str = "±") -> str:
    """Ours with its deviation; a dash where there is none."""
    if cell.mean is None:
        return "–"
    deviation = "" if cell.std is None else f" {plus_minus} {cell.std:.1f}"
    return f"{cell.mean:.1f}{deviation}"


def to_markdown(table: Table) -> str:
    """The table with the paper's figure in brackets beside each of ours."""
    lines = [
        "| " + " | ".join([_plain(table.corner), *map(_plain, table.columns)]) + " |",
        "| --- |" + " ---: |" * len(table.columns),
    ]
    for label, cells in table.rows:
        texts = [
            shown(cell) + ("" if cell.published is None else f" ({cell.published:.1f})")
            for cell in cells
        ]
        lines.append("| " + " | ".join([_plain(label), *texts]) + " |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def to_csv(table: Table) -> str:
    """One line for each cell: row, column, mean, std, n, over, published."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "column", "mean", "std", "n", "over", "published"])
    for label, cells in table.rows:
        for column, cell in zip(table.columns, cells, strict=True):
            known = cell.mean is not None
            writer.writerow(
                [
                    label,
                    column,
                    f"{cell.mean:.4f}" if known else "",
                    "" if cell.std is None else f"{cell.std:.4f}",
                    len(cell.values) if known else 0,
                    cell.over,
                    "" if cell.published is None else cell.published,
                ]
            )
    return out.getvalue()


_LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
          "≥": r"$\geq$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "±": r"$\pm$"}  # fmt: skip


def latex_text(text: str) -> str:
    """Text in which LaTeX reads nothing as a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """A tabular with booktabs rules; the paper's figures are grey, in brackets."""
    lines = [
        "% needs \\usepackage{booktabs,xcolor}",
        "\\begin{tabular}{l" + "r" * len(table.columns) + "}",
        "\\toprule",
        " & ".join(map(latex_text, [table.corner, *table.columns])) + r" \\",
        "\\midrule",
    ]
    for label, cells in table.rows:
        texts = []
        for cell in cells:
            text = shown(cell, r"$\pm$").replace("–", "--")
            if cell.published is not None:
                text += rf" \textcolor{{gray}}{{({cell.published:.1f})}}"
            texts.append(text)
        lines.append(" & ".join([latex_text(label), *texts]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"
