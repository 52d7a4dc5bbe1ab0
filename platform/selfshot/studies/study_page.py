"""A study's report: its table as Markdown, CSV and LaTeX, its figure, and a page of both."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from selfshot.studies import figures, tables
from selfshot.studies.published import published_content, published_table
from selfshot.studies.tables import Table

_TEMPLATES = Path(__file__).parent / "templates"
Result = Mapping[str, Any]


def write_study_report(
    folder: Path,
    *,
    title: str,
    description: str,
    table: str,
    results: Sequence[Result],
    unfinished: Sequence[tuple[str, str]],
    settings: str,
    environment: Mapping[str, str],
) -> list[Table]:
    """Write report.md, report.html, table.md / .csv / .tex, results.json and the figure.

    Args:
        folder: made if need be.
        title: the study's name.
        description: what it is.
        table: the paper's table or figure whose form is taken; empty: every point in a row.
        results: of the finished trials.
        unfinished: label of each other trial, and why it is not there.
        settings: the resolved YAML.
        environment: what it was made with.

    Returns:
        the tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = _tables(title, table, results)
    words: list[str] = []
    numbers: dict[str, Any] = {}
    drawn = False
    if table == "figure02":
        words, numbers = figures.figure_2(folder, results, published_content()["figure02"])
        drawn = bool(numbers)
    elif not table:
        drawn = figures.axis_figure(folder, results)
    over = {cell.over for one in made for _, cells in one.rows for cell in cells if cell.over}
    meaning = _deviation(over, any(one.has_published for one in made))
    titled = (f"{one.title}\n\n{tables.to_markdown(one)}" for one in made)
    (folder / "table.md").write_text("\n".join(titled), encoding="utf-8")
    (folder / "table.csv").write_text("\n".join(map(tables.to_csv, made)), encoding="utf-8")
    (folder / "table.tex").write_text("\n".join(map(tables.to_latex, made)), encoding="utf-8")
    summary = {
        "study": title,
        "table": table,
        "figure": numbers,
        "trials": [dict(result) for result in results],
        "unfinished": [list(one) for one in unfinished],
    }
    (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    view = {
        "title": title,
        "description": description,
        "tables": [(one, tables.to_markdown(one)) for one in made],
        "shown": tables.shown,
        "meaning": meaning,
        "words": words,
        "figure": _data_uri(folder / "figure.png") if drawn else "",
        "trials": [
            {
                "label": result["label"]
                + (f" (stopped at {result['stopped_at']})" if "stopped_at" in result else ""),
                "key": result["key"],
                "seconds": sum(
                    entry["seconds"]
                    for entry in result.get("timings", ())
                    if entry["status"] != "reused"
                ),
                "stages": result["stages"],
            }
            for result in results
        ],
        "unfinished": list(unfinished),
        "settings": settings,
        "environment": dict(environment),
    }
    (folder / "report.md").write_text(_render("study.md.jinja", view), encoding="utf-8")
    (folder / "report.html").write_text(_render("study.html.jinja", view), encoding="utf-8")
    return made


def _tables(title: str, table: str, results: Sequence[Result]) -> list[Table]:
    """The paper's tables of that name: its own, and its continuation on another dataset."""
    if not table or table == "figure02":
        return [tables.sweep_table(title, results)]
    if table == "table06":
        from selfshot.studies.statistics import statistics_table

        return [statistics_table(results)]
    return [tables.paper_table(published_table(table), results)]


def _deviation(over: set[str], published: bool) -> str:
    """What ± means in these tables."""
    meanings = {
        "repeats": "repetitions of the whole trial with other seeds",
        "folds": "folds of the test queries, of one trained model",
    }
    known = [meanings[one] for one in sorted(over)]
    if not known:
        return "There is no figure of ours yet."
    text = "± is the deviation over " + ", or over ".join(known)
    brackets = " The paper's figures are in brackets; it gives no deviation." if published else ""
    return f"{text}.{brackets}"


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _render(template: str, view: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(view)
