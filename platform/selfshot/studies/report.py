"""An experiment's report: results.json for programs, report.md for a terminal, report.html to read.

The page is one file: pictures are data URIs, styles are inline, nothing is fetched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from selfshot.config.printable import printable
from selfshot.studies import charts, findings
from selfshot.studies.gallery import SHOWN_SCORE, GalleryItem, Support, gallery_view

__all__ = ["GalleryItem", "Support", "write_report"]

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    out_dir: Path,
    *,
    title: str,
    description: str,
    rows: findings.Rows,
    retrieval: Mapping[str, Any],
    benchmark: Mapping[str, Any],
    gallery: Sequence[GalleryItem],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    timings: Sequence[Mapping[str, Any]],
    published: findings.Rows,
    mlflow: Mapping[str, str],
    environment: Mapping[str, str],
) -> None:
    """Writes results.json, report.md and report.html.

    Args:
        out_dir: made if need be.
        title: the experiment's name.
        description: what the experiment is, in a sentence or two; may be empty.
        rows: `{supports, shots, extra, AP50: {mean, std, per_seed}, AP, AP75, AR10}`, in percent,
            optionally with pooled_AP50. Numbers that do not exist are None, NaN or negative.
        retrieval: any of precision_at `{"1": …}`, chance, per_class (all shares in [0, 1]),
            num_queries, excluded_near_duplicates, excluded_same_source, and alternatives
            `{name: {"precision_at": …}}`.
        benchmark: any of name, counts `{what: number}`, classes `{split: [names]}`, chance.
        gallery: queries to draw, in order.
        curves: stage → logged points `{step, loss, …}`.
        timings: `{stage, seconds, status, key}`; status is made, resumed or reused.
        published: the paper's rows `{supports, shots, extra?, AP50}`, shown beside ours.
        mlflow: any of uri, command, experiment, run_id.
        environment: what the run was made with (settings, hashes, seeds, versions).
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    items = gallery_view(gallery)
    view = {
        "title": title,
        "description": description,
        "claim": findings.claim(rows),
        "tiles": _tiles(rows, retrieval),
        "table": _table(rows, published),
        "has_pooled": any(findings.figure(row, "pooled_AP50").mean is not None for row in rows),
        "has_published": bool(published),
        "meanings": findings.MEANINGS,
        "chart": charts.interval_chart(_sorted(rows)),
        "gauges": [
            charts.gauge(findings.gap_share(rows, s, published)) for s in findings.settings(rows)
        ],
        "differences": _differences(rows),
        "retrieval": _retrieval(retrieval, benchmark),
        "benchmark": benchmark,
        "gallery": items,
        "strip": _strip(items),
        "shown_score": SHOWN_SCORE,
        "curves": charts.learning_curves(curves),
        "timings": _timings(timings),
        "mlflow": mlflow,
        "environment": environment,
    }
    results = json.dumps(_plain(list(rows)), indent=2, allow_nan=False) + "\n"
    (out_dir / "results.json").write_text(results, encoding="utf-8")
    (out_dir / "report.md").write_text(_render("report.md.jinja", view), encoding="utf-8")
    (out_dir / "report.html").write_text(_render("report.html.jinja", view), encoding="utf-8")


def _render(template: str, view: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    environment.filters["one"] = _one_decimal
    environment.filters["signed"] = lambda value: f"{value:+.1f}".replace("-", "−")
    environment.filters["percent"] = _percent
    environment.filters["short"] = lambda value: f"{value:.3g}"
    environment.filters["duration"] = _duration
    environment.filters["cell"] = _markdown_cell
    return environment.get_template(template).render(view)


def _shown(value: Any) -> Any:
    """Names are those of files; what is marked as HTML is ours."""
    return printable(value, kept="\n") if type(value) is str else value


def _sorted(rows: findings.Rows) -> list[Mapping[str, Any]]:
    """Rows in the table's order, unknown kinds of supports last."""
    order = {kind: index for index, kind in enumerate(findings.LABELS)}
    return sorted(
        rows,
        key=lambda row: (
            order.get(str(row.get("supports")), len(order)),
            findings.setting_of(row),
        ),
    )


def _table(rows: findings.Rows, published: findings.Rows) -> list[dict[str, Any]]:
    """One entry for each row, with the paper's figure at the same supports and shots beside it."""
    paper = {
        (row.get("supports"), findings.setting_of(row)): findings.number(row.get("AP50"))
        for row in published
    }
    return [
        {
            "kind": str(row.get("supports")),
            "label": charts.label_of(row),
            "shots": findings.shots_label(*findings.setting_of(row)),
            "figures": {metric: findings.figure(row, metric) for metric in findings.METRICS},
            "pooled": findings.figure(row, "pooled_AP50"),
            "paper": paper.get((row.get("supports"), findings.setting_of(row))),
        }
        for row in _sorted(rows)
    ]


def _differences(rows: findings.Rows) -> list[dict[str, Any]]:
    found = [d for s in findings.settings(rows) for d in findings.differences(rows, s)]
    return [
        {
            "what": f"{findings.LABELS[d.better]} − {findings.LABELS[d.worse].lower()}",
            "shots": findings.shots_label(d.shots, d.extra),
            "mean": d.mean,
            "std": d.std,
            "per_seed": d.per_seed,
            "wins": d.wins,
            "verdict": d.verdict,
        }
        for d in found
    ]


def _tiles(rows: findings.Rows, retrieval: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few figures at the top, at the smallest number of shots."""
    tiles = []
    for setting in findings.settings(rows)[:1]:
        for kind in ("random", "query_itself", "self_shot", "oracle"):
            cell = findings.figure(findings.find(rows, kind, setting), "AP50")
            if cell.mean is not None:
                deviation = "" if cell.std is None else f"± {cell.std:.1f} · "
                note = f"{deviation}AP50, {findings.shots_label(*setting)}"
                label = findings.LABELS[kind]
                tiles.append(
                    {"kind": kind, "label": label, "value": f"{cell.mean:.1f}", "note": note}
                )
    precision = {k: findings.number(v) for k, v in (retrieval.get("precision_at") or {}).items()}
    known = {k: v for k, v in precision.items() if v is not None}
    if known:
        at = "5" if "5" in known else next(iter(known))
        chance = findings.number(retrieval.get("chance"))
        note = "" if chance is None else f"chance {_percent(chance)}"
        label = f"Right among {at} retrieved" if at != "1" else "Right first clip"
        value = _percent(known[at])
        tiles.append({"kind": "retrieval", "label": label, "value": value, "note": note})
    return tiles


def _strip(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first queries as self-shot supports segment them, for the top of the page."""
    return [
        {"title": item["title"], "picture": prediction["picture"]}
        for item in items
        for prediction in item["predictions"]
        if prediction["kind"] == "self_shot"
    ][:6]


def _retrieval(retrieval: Mapping[str, Any], benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """Precision of the features in use and of the alternatives, with bars by class."""
    features = [("in use", retrieval.get("precision_at") or {})]
    for name, entry in (retrieval.get("alternatives") or {}).items():
        features.append((name, entry.get("precision_at", entry)))
    depths = sorted({str(k) for _, values in features for k in values}, key=lambda k: (len(k), k))
    depths = [depth for depth in depths if depth.isdigit()]
    per_class = [
        {"name": str(name), "value": value, "width": round(100 * min(value, 1.0), 1)}
        for name, raw in (retrieval.get("per_class") or {}).items()
        if (value := findings.number(raw)) is not None
    ]
    chance = findings.number(retrieval.get("chance", benchmark.get("chance")))
    best = findings.number((retrieval.get("precision_at") or {}).get("5"))
    counted = {
        "queries": retrieval.get("num_queries"),
        "near duplicates set aside": retrieval.get("excluded_near_duplicates"),
        "clips of the query's own source set aside": retrieval.get("excluded_same_source"),
    }
    return {
        "depths": depths,
        "features": [
            {"name": name, "cells": [findings.number(values.get(d)) for d in depths]}
            for name, values in features
            if values
        ],
        "per_class": sorted(per_class, key=lambda entry: -float(str(entry["value"]))),
        "chance": chance,
        "times_chance": best / chance if best is not None and chance else None,
        "counted": {name: value for name, value in counted.items() if value is not None},
    }


def _timings(timings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stages with bars in proportion to the longest, and the total by status."""
    stages = [
        {
            "stage": str(entry.get("stage", "")),
            "seconds": findings.number(entry.get("seconds")),
            "status": str(entry.get("status", "")),
            "key": str(entry.get("key", "")),
        }
        for entry in timings
    ]
    longest = max((float(s["seconds"] or 0.0) for s in stages), default=0.0) or 1.0
    for stage in stages:
        stage["width"] = round(100 * float(stage["seconds"] or 0.0) / longest, 1)
    worked = [s for s in stages if s["status"] != "reused"]
    return {
        "stages": stages,
        "total": sum(float(s["seconds"] or 0.0) for s in worked),
        "reused": sum(s["status"] == "reused" for s in stages),
    }


def _plain(value: Any) -> Any:
    """JSON's own types; numbers that JSON cannot hold become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _one_decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{100 * share:.1f}%" if 0 < abs(share) < 0.1 else f"{100 * share:.0f}%"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _markdown_cell(value: object) -> str:
    """Text that can break neither a Markdown table nor the page that shows it."""
    text = " ".join(str(value).split())
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(character, safe)
    return text
