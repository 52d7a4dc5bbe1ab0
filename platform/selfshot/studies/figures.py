"""A study's figure as PNG and SVG: a curve with its band, or Figure 2 with its laws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfshot.studies.scaling import Scaling, in_words, scaling

Result = Mapping[str, Any]
COLOURS = ("#1f6f8b", "#c2571a", "#5b8c2a", "#7a4fa3")


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
            for fold, value in enumerate(row["AP50"]["per_seed"]):
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
                for fold, value in enumerate(row["AP50"]["per_seed"]):
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
