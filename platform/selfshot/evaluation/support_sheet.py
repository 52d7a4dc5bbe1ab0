"""A picture of queries with the clips that were retrieved for them, to be looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

INCH = 1.6  # of a panel's width
CAPTION = 0.4  # inches above a panel, for two lines
_COLOURS = {True: "#2ea057", False: "#d64541", None: "#969696"}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One clip by its middle frame; `frame` is None where it cannot be read."""

    frame: UInt8[np.ndarray, "height width 3"] | None
    caption: str
    right: bool | None = None


def draw_support_sheet(path: Path, rows: Sequence[tuple[Panel, Sequence[Panel]]]) -> None:
    """Write a PNG: a row a query, the query first, then its supports from the best on.

    A support has a green frame where its class is known to be the query's, a red one where it is
    known to be another, a grey one where it is not known.
    """
    columns = 1 + max((len(supports) for _, supports in rows), default=0)
    shapes = [query.frame.shape for query, _ in rows if query.frame is not None]
    height = INCH * max((shape[0] / shape[1] for shape in shapes), default=1.0) + CAPTION
    figure = Figure(figsize=(INCH * columns, height * max(len(rows), 1)), dpi=110)
    axes = figure.subplots(max(len(rows), 1), columns, squeeze=False)
    for line in axes:
        for axis in line:
            axis.set_axis_off()
    for line, (query, supports) in zip(axes, rows, strict=False):
        for axis, panel in zip(line, (query, *supports), strict=False):
            axis.set_axis_on()
            axis.set_xticks([])
            axis.set_yticks([])
            if panel.frame is not None:
                axis.imshow(panel.frame)
            axis.set_title(panel.caption, fontsize=6, pad=3)
            for spine in axis.spines.values():
                spine.set_edgecolor("black" if panel is query else _COLOURS[panel.right])
                spine.set_linewidth(1 if panel is query else 2.5)
    figure.tight_layout(pad=0.4)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.rename(path)
