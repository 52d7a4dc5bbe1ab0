"""Figures of the reports.

Of an experiment: charts inside its page, as numbers of which the template makes SVGs (positions are
percentages, so that one stretches to any width while its dots, lines and text keep their size), and
the map of its corpus. Of a study, as PNG and SVG: a curve with its band, or Figure 2 with its laws.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from selfshot.evaluation.scaling import Scaling, in_words, scaling
from selfshot.studies.reports import findings

Result = Mapping[str, Any]
COLOURS = ("#1f6f8b", "#c2571a", "#5b8c2a", "#7a4fa3")
MOST_CLASSES = 20
"""Classes that get a colour; matplotlib's largest qualitative map has so many."""
_MOST_POINTS = 300


def interval_chart(rows: findings.Rows) -> dict[str, Any]:
    """AP50 of every row as a mean, its deviation and the folds behind it."""
    figures = [(row, findings.figure(row, "AP50")) for row in rows]
    known = [(row, f) for row, f in figures if f.mean is not None]
    reach = [0.0]
    for _, cell in known:
        reach += [(cell.mean or 0.0) + (cell.std or 0.0)]
        reach += [value for value in cell.per_fold if value is not None]
    top = min(max(math.ceil((max(reach) + 1) / 10) * 10, 20), 100)
    step = 10 if top <= 60 else 20

    def at(value: float) -> float:
        return round(100 * min(max(value, 0.0), top) / top, 2)

    lines = []
    for row, cell in known:
        assert cell.mean is not None
        lines.append(
            {
                "kind": str(row.get("supports")),
                "label": label_of(row),
                "shots": findings.shots_label(*findings.setting_of(row)),
                "mean": cell.mean,
                "std": cell.std,
                "x": at(cell.mean),
                "low": at(cell.mean - cell.std) if cell.std is not None else None,
                "high": at(cell.mean + cell.std) if cell.std is not None else None,
                "folds": [at(value) for value in cell.per_fold if value is not None],
            }
        )
    ticks = [{"value": value, "x": at(value)} for value in range(0, top + 1, step)]
    return {"lines": lines, "ticks": ticks}


def label_of(row: Mapping[str, Any]) -> str:
    """What a row's supports are called, or their own name where it is not one of ours."""
    kind = str(row.get("supports"))
    return findings.LABELS.get(kind, kind)


def gauge(gap: findings.GapShare) -> dict[str, Any]:
    """A bar from the random row (0%) to the oracle (100%); shares outside stop at the ends."""
    published = gap.published

    def clamp(value: float) -> float:
        return round(100 * min(max(value, 0.0), 1.0), 1)

    return {
        "gap": gap,
        "shots": findings.shots_label(gap.shots, gap.extra),
        "fill": None if gap.share is None else clamp(gap.share),
        "published": None if published is None else clamp(published),
    }


def learning_curves(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """For each stage its loss, then its other series; what is not finite is left out."""
    stages = []
    for stage, points in curves.items():
        names = sorted({name for point in points for name in point if name != "step"})
        names.sort(key=lambda name: name != "loss")
        series = [_line(name, points) for name in names]
        drawn = [line for line in series if line is not None]
        if drawn:
            stages.append({"stage": stage, "main": drawn[0], "others": drawn[1:7]})
    return stages


def _line(name: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One series in a box of 100 × 100, y downwards; None when it has no point."""
    pairs = []
    for index, point in enumerate(points):
        try:
            value, step = float(point.get(name, math.nan)), float(point.get("step", index))
        except (TypeError, ValueError):
            continue  # a word or None among the numbers of a log
        if math.isfinite(value) and math.isfinite(step):
            pairs.append((step, value))
    if not pairs:
        return None
    pairs.sort()
    every = math.ceil(len(pairs) / _MOST_POINTS)
    kept = pairs[::every] if pairs[-1] in pairs[::every] else [*pairs[::every], pairs[-1]]
    first, last = pairs[0][0], pairs[-1][0]
    values = [value for _, value in pairs]
    low, high = min(values), max(values)
    # A quantity that stays ≥ 0 is drawn from 0 when that costs at most half of the height.
    if 0 < low < high / 2:
        low = 0.0
    width, height = (last - first) or 1.0, (high - low) or 1.0
    path = " ".join(
        f"{100 * (step - first) / width:.2f},{100 - 100 * (value - low) / height:.2f}"
        for step, value in kept
    )
    return {
        "name": name,
        "path": path,
        "low": low,
        "high": high,
        "first": values[0],
        "last": values[-1],
        "last_step": int(last),
    }


def main_axes(
    vectors: Float[np.ndarray, "clips dim"],
) -> tuple[Float[np.ndarray, "clips 2"], tuple[float, float]]:
    """Coordinates on the two axes of the largest variance, and the shares of it that they have.

    An axis points to where its largest weight is positive, so that the picture does not depend
    on the solver.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    values, axes = values[::-1], axes[:, ::-1]
    axes = axes[:, :2] * np.sign(axes[np.abs(axes[:, :2]).argmax(0), [0, 1]])
    total = max(float(values.sum()), 1e-12)
    return centred @ axes, (float(values[0]) / total, float(values[1]) / total)


def draw_corpus(
    path: Path,
    clip_ids: Sequence[str],
    vectors: Float[np.ndarray, "clips dim"],
    labels: Mapping[str, str],
) -> None:
    """Write a PNG: a dot a clip, coloured by its class where one is known.

    Args:
        path: of the picture.
        clip_ids: of the vectors.
        vectors: of the corpus.
        labels: known classes by clip, for colours only.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    points, shares = main_axes(vectors)
    names = [labels.get(clip_id, "") for clip_id in clip_ids]
    common = [name for name, _ in Counter(n for n in names if n).most_common(MOST_CLASSES)]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.add_subplot()
    rest = np.array([name not in common for name in names], dtype=bool)
    if rest.any():
        label = "others" if common else None
        axes.scatter(points[rest, 0], points[rest, 1], s=5, color="0.8", label=label)
    colours = colormaps["tab20"]
    for index, name in enumerate(sorted(common)):
        mine = np.array([other == name for other in names])
        axes.scatter(points[mine, 0], points[mine, 1], s=8, color=colours(index), label=name)
    axes.set_xlabel(f"first axis, {100 * shares[0]:.0f}% of the variance")
    axes.set_ylabel(f"second axis, {100 * shares[1]:.0f}%")
    axes.set_title(f"Φ of {len(names)} corpus clips; classes are for colours alone")
    if common:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Scores of one row of the table at every size of the collection.

    Attributes:
        label: such as `self_shot, 5 shots`.
        sizes: clips.
        scores: by size, repeat and fold.
        repeats, folds: which those are.
    """

    label: str
    sizes: tuple[float, ...]
    scores: np.ndarray
    repeats: tuple[int, ...]
    folds: tuple[int, ...]


def corpus_size(result: Result) -> float | None:
    """How many clips a trial searched; None where it does not say."""
    clips = result.get("metrics", {}).get("index", {}).get("clips")
    if clips is None:
        return None
    share = result["settings"].get("supports.corpus_share", 1.0)
    return float(clips) * float(share)


def curves_of(results: Sequence[Result], supports: str = "self_shot") -> dict[int, Curve]:
    """A curve for each number of shots, of the repeats that every size has whole."""
    by_shots: dict[int, dict[float, dict[tuple[int, int], float]]] = {}
    for result in results:
        size = corpus_size(result)
        for row in result.get("rows", ()) if size is not None else ():
            if row["supports"] != supports or row["extra"]:
                continue
            units = by_shots.setdefault(row["shots"], {}).setdefault(float(size or 0), {})
            for fold, value in enumerate(row["AP50"]["per_fold"]):
                if value is not None and value >= 0:
                    units[result["repeat"], fold] = value
    curves = {}
    for shots, by_size in by_shots.items():
        common = set.intersection(*(set(units) for units in by_size.values()))
        folds = tuple(sorted({fold for _, fold in common}))
        # A repeat that lacks a fold at some size would weigh folds unevenly.
        whole = {r for r, _ in common if all((r, fold) in common for fold in folds)}
        repeats = tuple(sorted(whole))
        if len(by_size) < 2 or not repeats:
            continue
        sizes = tuple(sorted(by_size))
        scores = np.array(
            [[[by_size[size][r, f] for f in folds] for r in repeats] for size in sizes]
        )
        label = f"{supports.replace('_', '-')}, {shots} shot{'s' if shots > 1 else ''}"
        curves[shots] = Curve(label, sizes, scores, repeats, folds)
    return curves


def oracle_level(results: Sequence[Result], curve: Curve) -> np.ndarray | None:
    """AP50 with one labelled support of each repeat and fold of a curve, whatever its size."""
    units: dict[tuple[int, int], float] = {}
    for result in results:
        for row in result.get("rows", ()):
            if row["supports"] == "oracle" and row["shots"] == 1 and not row["extra"]:
                for fold, value in enumerate(row["AP50"]["per_fold"]):
                    if value is not None and value >= 0:
                        units[result["repeat"], fold] = value
    if not all((r, f) in units for r in curve.repeats for f in curve.folds):
        return None
    return np.array([[units[r, f] for f in curve.folds] for r in curve.repeats])


def figure_2(
    folder: Path, results: Sequence[Result], published: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Draw Figure 2 as figure.png and figure.svg.

    Args:
        folder: to draw in.
        results: of the finished trials.
        published: what the paper says of its own figure.

    Returns:
        What it says, in sentences, and its numbers.
    """
    curves = curves_of(results)
    if not curves:
        return ["Fewer than two sizes of the collection are done: there is no curve yet."], {}
    axes, save = _axes("clips in the unlabelled collection", "AP50")
    axes.set_xscale("log")
    words: list[str] = []
    numbers: dict[str, Any] = {}
    level_of_all: np.ndarray | None = None
    basis = ""
    for colour, (shots, curve) in zip(COLOURS, sorted(curves.items()), strict=False):
        level = oracle_level(results, curve)
        level_of_all = level if level is not None else level_of_all
        found = scaling(curve.sizes, curve.scores, level=level)
        _draw(axes, curve.label, found, colour)
        words += in_words(found, curve.label, "what one labelled support gives")
        basis = f"{len(curve.repeats)} repeats and {len(curve.folds)} folds"
        numbers[str(shots)] = _numbers(found)
    if level_of_all is not None:
        mean = float(level_of_all.mean())
        axes.axhline(mean, color="#444444", linestyle="--", linewidth=1, label="oracle, 1 shot")
        numbers["oracle_1"] = mean
    axes.legend(framealpha=0.9, edgecolor="none", loc="lower right", fontsize=8)
    save(folder)
    words.append(f"The curves are of the {basis} that every size has.")
    words.append(
        f"The paper, on its own data: 5 shots pass 1 oracle shot at about "
        f"{published['crossing']:,} clips, and end at {published['self_shot']['5']} with "
        f"{published['clips']:,}."
    )
    return words, numbers


def _draw(axes: Any, label: str, found: Scaling, colour: str) -> None:
    axes.fill_between(found.grid, found.grid_low, found.grid_high, color=colour, alpha=0.12, lw=0)
    measured = found.grid <= found.sizes[-1]
    best = found.laws[found.best].at(found.grid)
    axes.plot(found.grid[measured], best[measured], color=colour, lw=1.2)
    axes.plot(found.grid[~measured], best[~measured], color=colour, lw=1.2, ls=":")
    errors = np.clip(
        np.stack([found.means - found.low, found.high - found.means]), 0, None
    )
    axes.errorbar(
        found.sizes, found.means, yerr=errors, fmt="o", ms=4, color=colour, capsize=2, label=label
    )
    if found.crossing is not None and found.crossing.size is not None and not found.crossing.beyond:
        axes.axvline(found.crossing.size, color=colour, lw=0.8, ls=":")


def _numbers(found: Scaling) -> dict[str, Any]:
    return {
        "sizes": found.sizes.tolist(),
        "means": found.means.tolist(),
        "low": found.low.tolist(),
        "high": found.high.tolist(),
        "laws": {kind: list(law.parameters) for kind, law in found.laws.items()},
        "held_out_error": found.errors,
        "best": found.best,
        "crossing": None if found.crossing is None else dataclasses.asdict(found.crossing),
        "extrapolation": {
            "clips": float(found.grid[-1]),
            "low": float(found.grid_low[-1]),
            "high": float(found.grid_high[-1]),
        },
    }


def axis_figure(folder: Path, results: Sequence[Result]) -> bool:
    """Draw AP50 over the one swept number, if the sweep has just one; returns whether it did."""
    keys = {key for result in results for key in result.get("point", {})}
    if len(keys) != 1 or any(result["case"] for result in results):
        return False
    (key,) = keys
    lines: dict[str, dict[float, list[float]]] = {}
    for result in results:
        value = result["point"][key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        for row in result.get("rows", ()):
            if row["AP50"]["mean"] is not None and row["AP50"]["mean"] >= 0:
                name = f"{row['supports']} {row['shots'] or ''}".strip()
                name += f"+({row['extra']})" if row["extra"] else ""
                known = lines.setdefault(name, {}).setdefault(float(value), [])
                known.append(row["AP50"]["mean"])
    if not lines or len({x for line in lines.values() for x in line}) < 2:
        return False
    axes, save = _axes(key, "AP50")
    for name, line in lines.items():
        xs = sorted(line)
        means = [float(np.mean(line[x])) for x in xs]
        spread = [float(np.std(line[x], ddof=1)) if len(line[x]) > 1 else 0.0 for x in xs]
        axes.errorbar(xs, means, yerr=spread, marker="o", ms=3, lw=1, capsize=2, label=name)
    axes.legend(frameon=False, fontsize=7)
    save(folder)
    return True


def _axes(x: str, y: str) -> tuple[Any, Any]:
    """Axes to draw on, and what saves them; no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, lw=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

    def save(folder: Path) -> None:
        for ending, canvas in (("png", FigureCanvasAgg), ("svg", FigureCanvasSVG)):
            partial = folder / f".figure.{ending}"
            figure.set_dpi(160)
            getattr(canvas(figure), f"print_{ending}")(str(partial))
            partial.replace(folder / f"figure.{ending}")

    return axes, save
