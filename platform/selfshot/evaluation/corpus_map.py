"""A picture of the corpus: its vectors on their two main axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

MOST_CLASSES = 20
"""Classes that get a colour; matplotlib's largest qualitative map has so many."""


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
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    points, shares = main_axes(vectors)
    names = [labels.get(clip_id, "") for clip_id in clip_ids]
    common = [name for name, _ in Counter(n for n in names if n).most_common(MOST_CLASSES)]
    figure, axes = pyplot.subplots(figsize=(9, 6.5), layout="constrained")
    rest = np.array([name not in common for name in names], dtype=bool)
    if rest.any():
        label = "others" if common else None
        axes.scatter(points[rest, 0], points[rest, 1], s=5, color="0.8", label=label)
    colours = matplotlib.colormaps["tab20"]
    for index, name in enumerate(sorted(common)):
        mine = np.array([other == name for other in names])
        axes.scatter(points[mine, 0], points[mine, 1], s=8, color=colours(index), label=name)
    axes.set_xlabel(f"first axis, {100 * shares[0]:.0f}% of the variance")
    axes.set_ylabel(f"second axis, {100 * shares[1]:.0f}%")
    axes.set_title(f"Φ of {len(names)} corpus clips; classes are for colours alone")
    if common:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
