"""Cells, deviations and the three forms in which a table is written."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from selfshot.studies.reports.tables import (
    Cell,
    PublishedTable,
    Table,
    cell_of,
    latex_text,
    paper_table,
    sweep_table,
    to_csv,
    to_latex,
    to_markdown,
)


def result(case: str, repeat: int, *means: float, **settings: Any) -> dict[str, Any]:
    rows = [
        {"supports": kind, "shots": 1, "extra": 0,
         "AP50": {"mean": mean, "std": 1.0, "per_fold": [mean - 2, mean + 2, -1]}}
        for kind, mean in zip(("random", "oracle"), means, strict=False)
    ]  # fmt: skip
    return {"name": case or str(settings), "case": case, "settings": settings, "repeat": repeat,
            "rows": rows}  # fmt: skip


def test_one_trial_deviates_over_its_folds() -> None:
    cell = cell_of([result("a", 0, 30.0)], {"case": "a", "supports": "random", "shots": 1})
    assert (cell.mean, cell.values, cell.over) == (30.0, (28.0, 32.0), "folds")
    assert cell.std == pytest.approx(2 * 2**0.5)


def test_repeats_deviate_by_their_means() -> None:
    results = [result("a", n, mean) for n, mean in enumerate((30.0, 33.0, 39.0))]
    cell = cell_of([*results, result("b", 0, 99.0)], {"case": "a", "supports": "random"})
    assert cell.mean == pytest.approx(34.0) and cell.over == "repeats"
    assert cell.std == pytest.approx(21**0.5)


def test_repeats_that_are_one_trial_count_once() -> None:
    same = [{**result("a", n, 30.0), "key": "k"} for n in range(3)]
    cell = cell_of(same, {"case": "a", "supports": "random"})
    assert (cell.mean, cell.values, cell.over) == (30.0, (28.0, 32.0), "folds")


def test_repeats_that_change_nothing_count_once() -> None:
    """Other subsets of the corpus leave labelled supports as they are."""
    same = [{**result("a", n, 20.0 + n, 30.0), "key": str(n)} for n in range(3)]
    cell = cell_of(same, {"case": "a", "supports": "oracle"})
    assert (cell.mean, cell.values, cell.over) == (30.0, (28.0, 32.0), "folds")
    assert cell_of(same, {"case": "a", "supports": "random"}).over == "repeats"


def test_settings_choose_a_trial() -> None:
    results = [result("", 0, 1.0, **{"vis.d": True}), result("", 0, 2.0, **{"vis.d": False})]
    at = {"settings": {"vis.d": False}, "supports": "random"}
    assert cell_of(results, at).mean == 2.0
    assert cell_of(results, {**at, "settings": {"vis.e": 1}}) == Cell(None)
    with pytest.raises(ValueError, match="differ"):
        cell_of(results, {"supports": "random"})


def test_what_has_no_ground_truth_is_a_dash() -> None:
    assert cell_of([result("a", 0, -1.0)], {"case": "a", "supports": "random"}) == Cell(None)


def form() -> PublishedTable:
    return PublishedTable(
        "t", "Title", "Data", {"one_shot": {"shots": 1}, "five | shots": {"shots": 5}},
        {"a & b": {"case": "a", "supports": "oracle"}, "≥ 2": {"case": "b", "supports": "oracle"}},
        ((50.0, None), (12.5, 13.5)),
    )  # fmt: skip


def test_the_forms() -> None:
    table = paper_table(form(), [result("a", 0, 1.0, 45.0)])
    assert "The paper's figures are those of Data." in table.note
    lines = to_markdown(table).splitlines()
    assert lines[0] == "|  | one_shot | five \\| shots |"
    assert lines[2] == "| a & b | 45.0 ± 2.8 (50.0) | – |"
    assert lines[3] == "| ≥ 2 | – (12.5) | – (13.5) |"
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["published"] for row in rows] == ["50.0", "", "12.5", "13.5"]
    assert rows[0]["mean"] == "45.0000" and rows[0]["n"] == "2" and rows[1]["mean"] == ""
    latex = to_latex(table)
    assert r"a \& b & 45.0 $\pm$ 2.8 \textcolor{gray}{(50.0)} & -- \\" in latex
    assert r"one\_shot" in latex and r"$\geq$ 2" in latex
    assert latex.count("{") == latex.count("}")


def test_latex_reads_no_command() -> None:
    assert latex_text(r"\input{a}_$") == r"\textbackslash{}input\{a\}\_\$"


def test_a_sweep_without_a_form() -> None:
    results = [result("a", 0, 1.0, 2.0), result("a", 1, 3.0, 4.0), result("b", 0, 5.0, 6.0)]
    table = sweep_table("s", results)
    assert table.columns == ("random 1", "oracle 1")
    assert [(label, [cell.mean for cell in cells]) for label, cells in table.rows] == [
        ("a", [2.0, 3.0]), ("b", [5.0, 6.0])
    ]  # fmt: skip
    assert not table.has_published


def test_a_sweep_that_ends_with_supports_shows_the_retrieval() -> None:
    results = [{"name": "a", "case": "a", "settings": {}, "repeat": 0,
                "retrieval": {"test": {"precision_at": {"1": 0.5, "5": 0.25}}}}]  # fmt: skip
    table = sweep_table("s", results)
    assert table.columns == ("precision@1", "precision@5")
    assert [cell.mean for cell in table.rows[0][1]] == [50.0, 25.0]


def test_an_empty_sweep() -> None:
    assert to_markdown(sweep_table("s", [])) == "|  |\n| --- |\n"
    assert Table("t", "", (), ()).has_published is False
