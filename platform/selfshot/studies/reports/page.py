"""The pages that people read, each with results.json for programs and report.md for a terminal.

A page is one file: pictures are data URIs, styles are inline, nothing is fetched.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from selfshot.benchmarks.manifest import Benchmark, load_benchmark, read_corpus_labels
from selfshot.config.load import resolved_yaml
from selfshot.config.printable import printable
from selfshot.evaluation.details import DETAILS
from selfshot.evaluation.episodes import row_name
from selfshot.models.device import device_for
from selfshot.retrieval.embeddings import read_embeddings
from selfshot.studies.environment import label_free, networks_told, run_environment
from selfshot.studies.reports import figures, findings, tables
from selfshot.studies.reports.gallery import (
    KIND,
    SHOWN_SCORE,
    GalleryItem,
    build_gallery,
    data_uri,
    fewest_shots,
    gallery_view,
    read_predictions,
    write_attention,
    write_sheet,
    write_videos,
)
from selfshot.studies.reports.tables import Table

if TYPE_CHECKING:
    from selfshot.studies.context import Context

_TEMPLATES = Path(__file__).parent / "templates"
Result = Mapping[str, Any]


def make_page(context: Context, folder: Path) -> None:
    """Write the report of an experiment whose stages are done into `folder`."""
    experiment, folders = context.experiment, context.folders
    benchmark = load_benchmark(folders["benchmark"])
    rows = json.loads((folders["evaluation"] / "results.json").read_text())
    retrieval = json.loads((folders["supports"] / "retrieval.json").read_text())
    gallery = build_gallery(folders, benchmark, rows, experiment)
    examples = min(experiment.report.animations, len(gallery))
    if examples:
        drawn = _write_examples(context, folder, benchmark, rows, gallery[:examples])
        gallery = [*drawn, *gallery[examples:]]
    networks = json.loads((folders["embeddings"] / "summary.json").read_text())["networks"]
    report = Report(
        title=experiment.name,
        description=experiment.description,
        rows=rows,
        retrieval=retrieval["test"],
        benchmark={
            "name": benchmark.name,
            "counts": benchmark.counts,
            "classes": {split: list(names) for split, names in benchmark.classes.items()},
        },
        gallery=gallery,
        curves=_curves(folders),
        timings=context.timings,
        published=tables.published_rows(),
        mlflow=context.tracking,
        environment={
            **run_environment(),
            "pretrained networks": networks_told(networks),
            "labels in retrieval": label_free(networks, experiment.encoder.backbone),
            "stage keys": "\n".join(f"{name}: {key}" for name, key in context.keys.items()),
            "settings": resolved_yaml(experiment),
        },
        details=json.loads((folders["evaluation"] / DETAILS).read_text()),
    )
    write_report(folder, report)
    shutil.copyfile(folders["evaluation"] / DETAILS, folder / DETAILS)
    write_sheet(folder / "gallery.png", gallery)
    figures.draw_corpus(
        folder / "corpus.png",
        *read_embeddings(folders["embeddings"]),
        read_corpus_labels(folders["benchmark"]),
    )


def _curves(folders: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    curves = {}
    for name in ("backbone", "encoder", "vis", "vis_no_fuser"):
        history = folders[name] / "history.jsonl" if name in folders else None
        if history is not None and history.exists():
            points = [json.loads(line) for line in history.read_text().splitlines()]
            curves[name] = [
                {k: v for k, v in point.items() if k != "time" and not k.startswith("lr")}
                for point in points
            ]
    return curves


def _write_examples(
    context: Context,
    folder: Path,
    benchmark: Benchmark,
    rows: Sequence[Mapping[str, Any]],
    gallery: Sequence[GalleryItem],
) -> Sequence[GalleryItem]:
    """Figures 3 and 5 as files, where the table has a row of self-shot supports."""
    folders = context.folders
    row = fewest_shots(rows, KIND)
    if row is None:
        context.progress.note(f"report.animations: the table has no row {KIND}, so none is drawn")
        return gallery
    reader = benchmark.reader(folders["benchmark"])
    predictions = [
        one
        for fold in sorted({item.fold for item in gallery})
        for one in read_predictions(folders["evaluation"], row, fold, reader.annotations)
    ]
    write_videos(folder / "animations", reader, gallery, predictions)
    device = device_for(context.experiment.compute.use_gpu, context.progress.note)
    return write_attention(
        folder / "attention",
        folders["vis"] / "export",
        reader,
        gallery,
        row["shots"] + row["extra"],
        device,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the page of an experiment says.

    Attributes:
        title: the experiment's name.
        description: what the experiment is, in a sentence or two; may be empty.
        rows: `{supports, shots, extra, AP50: {mean, std, per_fold}, AP, AP75, AR10}`, in percent,
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
        details: of each row by its name, as `evaluation.details.row_details` gives them.
    """

    title: str
    description: str
    rows: findings.Rows
    retrieval: Mapping[str, Any]
    benchmark: Mapping[str, Any]
    gallery: Sequence[GalleryItem]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    timings: Sequence[Mapping[str, Any]]
    published: findings.Rows
    mlflow: Mapping[str, str]
    environment: Mapping[str, str]
    details: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def write_report(out_dir: Path, report: Report) -> None:
    """Write results.json, report.md and report.html into a folder, made if need be."""
    rows, published = report.rows, report.published
    out_dir.mkdir(parents=True, exist_ok=True)
    items = gallery_view(report.gallery)
    view = {
        **vars(report),
        "claim": findings.claim(rows),
        "tiles": _tiles(rows, report.retrieval),
        "table": _table(rows, published),
        "has_pooled": any(findings.figure(row, "pooled_AP50").mean is not None for row in rows),
        "has_published": bool(published),
        "meanings": findings.MEANINGS,
        "chart": figures.interval_chart(_sorted(rows)),
        "gauges": [
            figures.gauge(findings.gap_share(rows, s, published)) for s in findings.settings(rows)
        ],
        "differences": _differences(rows),
        "details": _details(rows, report.details),
        "retrieval": _retrieval(report.retrieval, report.benchmark),
        "gallery": items,
        "strip": _strip(items),
        "shown_score": SHOWN_SCORE,
        "curves": figures.learning_curves(report.curves),
        "timings": _timings(report.timings),
    }
    results = json.dumps(_plain(list(rows)), indent=2, allow_nan=False) + "\n"
    (out_dir / "results.json").write_text(results, encoding="utf-8")
    (out_dir / "report.md").write_text(_render("report.md.jinja", view), encoding="utf-8")
    (out_dir / "report.html").write_text(_render("report.html.jinja", view), encoding="utf-8")


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
        published = tables.published_content()["figure02"]
        words, numbers = figures.figure_2(folder, results, published)
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
        "figure": data_uri("png", (folder / "figure.png").read_bytes()) if drawn else "",
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
        return [tables.statistics_table(results)]
    return [tables.paper_table(tables.published_table(table), results)]


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
            "label": figures.label_of(row),
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
            "per_fold": d.per_fold,
            "wins": d.wins,
            "verdict": d.verdict,
        }
        for d in found
    ]


def _details(
    rows: findings.Rows, details: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Tables of the groups of queries, a row of the results each, and of the classes."""
    found = [(row, details[row_name(dict(row))]) for row in _sorted(rows) if details]
    groups = dict.fromkeys(name for _, one in found for name in one["groups"])
    classes = dict.fromkeys(name for _, one in found for name in one["classes"])
    said = [
        {
            "label": figures.label_of(row),
            "shots": findings.shots_label(*findings.setting_of(row)),
            **one,
        }
        for row, one in found
    ]
    return {
        "groups": [
            {
                "name": name,
                "queries": max(one["groups"][name]["queries"] for one in said),
                "rows": [{**one, **one["groups"][name]} for one in said],
            }
            for name in groups
        ],
        "columns": said,
        "classes": [
            {
                "name": name,
                "queries": max(one["classes"][name]["queries"] for one in said),
                "cells": [one["classes"][name]["AP50"] for one in said],
            }
            for name in classes
        ],
    }


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
        "near duplicates excluded": retrieval.get("excluded_near_duplicates"),
        "clips of the query's own source excluded": retrieval.get("excluded_same_source"),
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
