"""The tables that `selfshot evaluate` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfshot.config.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

    from selfshot.data.ytvis import Quarantined

LISTED = 20
"""Entries that were quarantined are printed up to here; the JSON has all."""

_PROPERTIES = {
    "instances": "instances in the video",
    "classes": "classes in the video",
    "length": "length of the video",
    "area": "area of the instance",
    "absence": "absence of the instance",
}


def print_tables(scores: dict[str, Any], categories: dict[int, str]) -> None:
    """Print the figures, and the breakdown and intervals where there are any."""
    from rich.console import Console

    console = Console()
    console.print(_figures(scores, categories))
    _warn_without_pixels(**scores["ground_truth"])
    if "breakdown" in scores:
        console.print(_breakdown(scores["breakdown"]))
    if "bootstrap" in scores:
        console.print(_intervals(scores["bootstrap"]))


def _warn_without_pixels(instances: int, without_pixels: Sequence[int]) -> None:
    """Name the instances that no result can find; the reference evaluator counts them, too."""
    if without_pixels:
        some = ", ".join(map(str, without_pixels[:5])) + ", …" * (len(without_pixels) > 5)
        print(
            f"{len(without_pixels)} of {instances} annotated instances have no pixel in any frame "
            f"(annotation {some}): no result can find them, and they count as missed, as in the "
            "YouTube-VIS evaluator"
        )


def print_quarantined(quarantined: Sequence[tuple[Path, Quarantined]]) -> None:
    """Say how many entries were quarantined, and list the first of them."""
    print(f"quarantined: {len(quarantined)} {'entry' if len(quarantined) == 1 else 'entries'}")
    for path, one in quarantined[:LISTED]:
        print(printable(f"  {path}: {one.entry}: {one.reason}"))
    if len(quarantined) > LISTED:
        print(f"  … and {len(quarantined) - LISTED} more, which --json lists")


def _percent(value: float | None) -> str:
    """A figure; the evaluator writes -1 for one without ground truth."""
    return "–" if value is None or value == -1 else f"{100 * value:.1f}"


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _figures(scores: dict[str, Any], categories: dict[int, str]) -> Table:
    from rich.text import Text

    table = _table("Video AP, percent", ["figure"], ["value"])
    for name, value in scores.items():
        if not isinstance(value, dict):
            table.add_row(Text(name), _percent(value))
    for category, value in scores["AP50_per_category"].items():
        # The one category of a class-agnostic score has no name.
        name = printable(categories.get(category, "of any category"))
        table.add_row(Text(f"AP50 {name}"), _percent(value))
    return table


def _breakdown(found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    table = _table("By difficulty, percent", ["by", ""], ["AP50", "AP", "tracks", "videos"])
    for name, bins in found.items():
        for place, (label, figures) in enumerate(bins.items()):
            table.add_row(
                _PROPERTIES[name] if place == 0 else "",
                label,
                _percent(figures["AP50"]),
                _percent(figures["AP"]),
                str(figures["tracks"]),
                str(figures.get("videos", "")),
                end_section=place == len(bins) - 1,
            )
    return table


def _intervals(found: dict[str, Any]) -> Table:
    table = _table(
        f"95% intervals over {found['resamples']} draws of the videos, percent",
        ["figure"],
        ["value", "from", "to", "bias", "above 0"],
    )
    rows = [(name, found[name]) for name in ("AP50", "AP")]
    if "difference" in found:
        rows += [(f"{name} of --compare", found["other"][name]) for name in ("AP50", "AP")]
        rows += [(f"{name} difference", found["difference"][name]) for name in ("AP50", "AP")]
    for label, figures in rows:
        signed = "above" in figures
        above = figures.get("above")
        table.add_row(
            label,
            *(
                _signed(figures[key]) if signed else _percent(figures[key])
                for key in ("value", "low", "high")
            ),
            _signed(figures["bias"]),
            "" if above is None else f"{100 * above:.1f}",
        )
    return table


def _signed(value: float | None) -> str:
    """A difference, which may be -1 as any other number."""
    return "–" if value is None else f"{100 * value:+.1f}"
