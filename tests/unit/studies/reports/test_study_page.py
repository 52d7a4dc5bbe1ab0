"""A study's report from results that are made up: the figure, the page, what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfshot.studies.reports.figures import axis_figure, corpus_size, curves_of, oracle_level
from selfshot.studies.reports.page import write_study_report

SHARES = (0.02, 0.05, 0.15, 0.4, 1.0)


def result(share: float, repeat: int) -> dict[str, Any]:
    rng = np.random.default_rng([int(100 * share), repeat])

    def row(supports: str, shots: int, mean: float) -> dict[str, Any]:
        folds = (mean + rng.normal(0, 0.5, 3)).tolist()
        score = {"mean": float(np.mean(folds)), "std": 0.5, "per_fold": folds}
        return {"supports": supports, "shots": shots, "extra": 0, "AP50": score}

    clips = 3000 * share
    name = f"corpus_share={share}"
    return {
        "label": f"{name} #{repeat + 1}", "name": name, "case": "", "key": f"{share}-{repeat}",
        "point": {"supports.corpus_share": share}, "settings": {"supports.corpus_share": share},
        "repeat": repeat, "seed": 0, "stages": {"index": "ab"},
        "timings": [{"stage": "supports", "seconds": 2.0, "status": "made"},
                    {"stage": "vis", "seconds": 90.0, "status": "reused"}],
        "metrics": {"index": {"clips": 3000}},
        "rows": [row("self_shot", 1, 30 + 6 * np.log10(clips)),
                 row("self_shot", 5, 34 + 6 * np.log10(clips)), row("oracle", 1, 50.0)],
    }  # fmt: skip


RESULTS = [result(share, repeat) for share in SHARES for repeat in range(3)]


def write(folder: Path, results: list[dict[str, Any]], table: str, **more: Any) -> None:
    settings: dict[str, Any] = {
        "title": "A <study>", "description": "What & why", "unfinished": [],
        "settings": "name: x\n", "environment": {"Python": "3"},
    }  # fmt: skip
    write_study_report(folder, table=table, results=results, **{**settings, **more})


def test_figure_2(tmp_path: Path) -> None:
    write(tmp_path, RESULTS, "figure02")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    numbers = json.loads((tmp_path / "results.json").read_text())["figure"]
    assert set(numbers) == {"1", "5", "oracle_1"}
    assert numbers["5"]["sizes"] == [60, 150, 450, 1200, 3000]
    crossing = numbers["5"]["crossing"]
    # 34 + 6 log10 n reaches 50 at n = 464.
    assert 350 < crossing["size"] < 620 and crossing["low"] < crossing["size"] < crossing["high"]
    page, words = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    for text in (page, words):
        assert "held-out error" in text and "that is an extrapolation" in text
    assert 'src="data:image/png;base64,' in page and "figure.png" in words
    assert "The paper, on its own data" in page


def test_nothing_is_fetched_and_nothing_is_markup(tmp_path: Path) -> None:
    write(tmp_path, RESULTS, "", unfinished=[("<b>one</b>", "it & that")])
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;study&gt;" in page and "<b>one</b>" not in page and "it &amp; that" in page
    assert "http" not in page.replace("http-equiv", "")


def test_one_swept_number_is_a_curve(tmp_path: Path) -> None:
    assert axis_figure(tmp_path, RESULTS)
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.svg"}
    words = [{**one, "point": {"supports.vectors": "global"}} for one in RESULTS]
    assert not axis_figure(tmp_path / "none", words)
    cases = [{**one, "case": "a"} for one in RESULTS]
    assert not axis_figure(tmp_path / "none", cases)


def test_a_paper_table_with_trials_that_are_missing(tmp_path: Path) -> None:
    write(tmp_path, [], "table09", unfinished=[("a trial", "it failed: no luck")])
    text = (tmp_path / "report.md").read_text()
    assert "| neither | – (49.4) | – (52.3) |" in text
    assert "a trial: it failed: no luck" in text and "There is no figure of ours yet." in text
    assert (tmp_path / "table.tex").read_text().startswith("% needs")


def test_curves_take_the_units_that_every_size_has() -> None:
    lame = [dict(one) for one in RESULTS if not (one["repeat"] == 2 and one["key"] == "0.4-2")]
    curve = curves_of(lame)[5]
    assert curve.scores.shape == (5, 2, 3)  # the third repeat lacks a size
    assert curves_of(RESULTS)[5].scores.shape == (5, 3, 3)
    for results, repeats in ((RESULTS, 3), (lame, 2)):
        level = oracle_level(RESULTS, curves_of(results)[5])
        assert level is not None and level.shape == (repeats, 3)
    assert oracle_level(lame[:2], curves_of(RESULTS)[5]) is None
    assert curves_of(RESULTS[:3]) == {}


def test_the_size_of_what_was_searched() -> None:
    assert corpus_size(RESULTS[0]) == pytest.approx(60)
    assert corpus_size({**RESULTS[0], "metrics": {}}) is None


def test_a_trial_that_was_stopped_says_so(tmp_path: Path) -> None:
    write(tmp_path, [{**RESULTS[0], "stopped_at": 30}], "")
    assert "(stopped at 30)" in (tmp_path / "report.md").read_text()
