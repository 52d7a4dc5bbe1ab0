"""Figure 2 with its meaning: how the score grows with the collection, and how far one may trust it.

Two laws of a score against the number of clips n:

    log-linear              score = a + b · log10 n
    saturating power law    score = c − a · n^−b,  a ≥ 0, c at most 100

They are compared by what they say of sizes that they were not fitted to. Bands and intervals come
from a bootstrap that draws repeats and folds of the queries, each by itself, as repeats use the
same queries; and it draws them for all sizes together, as one fold's scores at two sizes belong to
each other. What lies beyond the largest collection is shown
with the envelope of both laws: the measured sizes alone cannot show which of them goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import curve_fit

LAWS = ("log-linear", "power law")
DRAWS = 400
SHARE = 0.95
EXPONENTS = np.geomspace(0.01, 10.0, 120)

Sizes = Float[np.ndarray, " sizes"]
Scores = Float[np.ndarray, " sizes"]


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        kind: of LAWS.
        parameters: (a, b), or (c, a, b) with n in units of `unit`.
        unit: clips that n is counted in.
    """

    kind: str
    parameters: tuple[float, ...]
    unit: float = 1.0

    def at(self, sizes: np.ndarray) -> np.ndarray:
        """Scores at sizes."""
        n = np.asarray(sizes, dtype=np.float64) / self.unit
        if self.kind == "log-linear":
            a, b = self.parameters
            return a + b * np.log10(n)
        c, a, b = self.parameters
        return c - a * n ** (-b)

    def crossing(self, level: float) -> float | None:
        """The size at which the score reaches a level from below; None if it never does."""
        if self.kind == "log-linear":
            a, b = self.parameters
            exponent = (level - a) / b if b > 0 else math.inf
            return float(self.unit * 10.0**exponent) if exponent < 300 else None
        c, a, b = self.parameters
        if level >= c or a <= 0 or b <= 0:
            return None
        exponent = math.log(a / (c - level)) / b
        return float(self.unit * math.exp(exponent)) if exponent < 600 else None


def fit_log_linear(sizes: Sizes, scores: Scores) -> Law:
    """Least squares of the score on log10 n; needs two sizes."""
    if len(sizes) < 2:
        raise ValueError(f"{len(sizes)} sizes are too few for a line")
    unit = float(sizes.min())
    x = np.log10(sizes / unit)
    b, a = np.polyfit(x, scores, 1)
    return Law("log-linear", (float(a), float(b)), unit)


def fit_power_law(sizes: Sizes, scores: Scores) -> Law:
    """Least squares of c − a · n^−b; needs three sizes."""
    if len(sizes) < 3:
        raise ValueError(f"{len(sizes)} sizes are too few for a power law")
    unit = float(sizes.min())
    n = sizes / unit
    start = _power_laws(n, scores[None])[0]

    def law(n: np.ndarray, c: float, a: float, b: float) -> np.ndarray:
        return c - a * n ** (-b)

    bounds = ([-100.0, 0.0, EXPONENTS[0]], [100.0, np.inf, EXPONENTS[-1]])
    inside = np.clip(start, np.array(bounds[0]) + 1e-9, np.array(bounds[1]) - 1e-9)
    try:
        found, _ = curve_fit(law, n, scores, p0=inside, bounds=bounds, maxfev=2000)
    except RuntimeError:  # it did not settle: the nearest exponent of the grid has to do
        found = start
    errors = [float(np.square(law(n, *one) - scores).sum()) for one in (found, start)]
    best = found if errors[0] <= errors[1] else start
    return Law("power law", tuple(float(p) for p in best), unit)


def _power_laws(
    n: Sizes, curves: Float[np.ndarray, "draws sizes"]
) -> Float[np.ndarray, "draws 3"]:
    """(c, a, b) of many curves: for each exponent of a grid the rest is a line, and solved."""
    best = np.full(len(curves), np.inf)
    found = np.zeros((len(curves), 3))
    for b in EXPONENTS:
        x = n ** (-b)
        centred = x - x.mean()
        a = np.maximum(-(curves * centred).sum(1) / np.square(centred).sum(), 0.0)
        c = curves.mean(1) + a * x.mean()
        high = c > 100.0
        c = np.minimum(c, 100.0)
        through = ((c[:, None] - curves) * x).sum(1) / np.square(x).sum()
        a = np.where(high, np.maximum(through, 0.0), a)
        error = np.square(c[:, None] - a[:, None] * x - curves).sum(1)
        better = error < best
        best = np.where(better, error, best)
        found[better] = np.stack([c, a, np.full(len(a), b)], 1)[better]
    return found


def _fit_many(kind: str, sizes: Sizes, curves: Float[np.ndarray, "draws sizes"]) -> list[Law]:
    """A law for each curve."""
    if kind == "log-linear":
        return [fit_log_linear(sizes, curve) for curve in curves]
    unit = float(sizes.min())
    return [Law(kind, tuple(one), unit) for one in _power_laws(sizes / unit, curves).tolist()]


_FITS: dict[str, Callable[[Sizes, Scores], Law]] = {
    "log-linear": fit_log_linear,
    "power law": fit_power_law,
}


def held_out_error(kind: str, sizes: Sizes, scores: Scores) -> float | None:
    """Root mean square of what a law says of each size when fitted to all others.

    None where too few sizes are left to fit it to.
    """
    least = 3 if kind == "log-linear" else 4
    if len(sizes) < least:
        return None
    errors = []
    for left_out in range(len(sizes)):
        kept = np.arange(len(sizes)) != left_out
        law = _FITS[kind](sizes[kept], scores[kept])
        errors.append(float(law.at(sizes[left_out : left_out + 1])[0] - scores[left_out]))
    return float(np.sqrt(np.mean(np.square(errors))))


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where a curve reaches a level.

    Attributes:
        size: by the law fitted to the means; None if that never reaches it.
        low, high: of the middle 95% of the draws; None for never.
        share: of the draws that reach it at all.
        beyond: whether `size` lies outside of the measured sizes.
    """

    size: float | None
    low: float | None
    high: float | None
    share: float
    beyond: bool


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What one curve of Figure 2 says.

    Attributes:
        sizes: clips, rising.
        means: at each size.
        low, high: 95% band of the means, by bootstrap.
        laws: both, fitted to the means; the power law only for three sizes or more.
        errors: held-out error of each, where it can be had.
        best: the law with the smaller one.
        grid: sizes at which the band of the laws is given, into what was not measured.
        grid_low, grid_high: the envelope of both laws' 95% bands.
        crossing: with the level, if one was given.
    """

    sizes: np.ndarray
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    laws: dict[str, Law]
    errors: dict[str, float | None]
    best: str
    grid: np.ndarray
    grid_low: np.ndarray
    grid_high: np.ndarray
    crossing: Crossing | None


def scaling(
    sizes: Sequence[float],
    scores: Float[np.ndarray, "sizes repeats folds"],
    *,
    level: Float[np.ndarray, "repeats folds"] | None = None,
    factor: float = 10.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> Scaling:
    """Fit both laws to a curve, and say how sure one can be.

    Args:
        sizes: of the collection, all different.
        scores: in percent, of each repeat and fold at each size.
        level: in percent, of each repeat and fold: what the curve is to reach, such as 1-shot
            oracle supports on the same queries.
        factor: how far beyond the largest size the band goes.
        draws: of the bootstrap.
        seed: of the draws.
    """
    order = np.argsort(sizes)
    n = np.asarray(sizes, dtype=np.float64)[order]
    matrix = np.asarray(scores, dtype=np.float64)[order]
    if len(set(n.tolist())) < len(n) or len(n) < 2:
        raise ValueError(f"{list(sizes)} are not at least two different sizes")
    kinds = [kind for kind in LAWS if kind == "log-linear" or len(n) >= 3]
    means = matrix.mean((1, 2))
    laws = {kind: _FITS[kind](n, means) for kind in kinds}
    errors = {kind: held_out_error(kind, n, means) for kind in kinds}
    known = {kind: error for kind, error in errors.items() if error is not None}
    best = min(known, key=lambda kind: known[kind]) if known else kinds[0]
    grid = np.geomspace(n[0], n[-1] * factor, 60)

    rng = np.random.default_rng(seed)
    repeats, folds = (rng.integers(0, n, (draws, n)) for n in matrix.shape[1:])
    rows, columns = repeats[:, :, None], folds[:, None, :]
    drawn = matrix[:, rows, columns].mean((2, 3)).T  # draws × sizes
    levels = None
    if level is not None:
        levels = np.asarray(level, dtype=np.float64)[rows, columns].mean((1, 2))
    fitted = {kind: _fit_many(kind, n, drawn) for kind in kinds}
    tail = 100 * (1 - SHARE) / 2
    bands = [
        np.percentile([law.at(grid) for law in fitted[kind]], [tail, 100 - tail], axis=0)
        for kind in kinds
    ]
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    crossing = None
    if level is not None and levels is not None:
        reached = [
            law.crossing(float(one)) or math.inf
            for law, one in zip(fitted[best], levels, strict=True)
        ]
        size = laws[best].crossing(float(np.mean(level)))
        ordered = np.sort(reached)
        ends = [ordered[round(q / 100 * (len(ordered) - 1))] for q in (tail, 100 - tail)]
        crossing = Crossing(
            size,
            low=None if math.isinf(ends[0]) else float(ends[0]),
            high=None if math.isinf(ends[1]) else float(ends[1]),
            share=float(np.mean(np.isfinite(reached))),
            beyond=size is None or not n[0] <= size <= n[-1],
        )
    return Scaling(
        n, means, low, high, laws, errors, best, grid,
        np.min([band[0] for band in bands], axis=0), np.max([band[1] for band in bands], axis=0),
        crossing,
    )  # fmt: skip


def in_words(found: Scaling, what: str, level: str) -> list[str]:
    """What a curve says, in sentences, with no more certainty than there is."""
    law = found.laws[found.best]
    if found.best == "log-linear":
        fitted = f"{law.parameters[1]:+.1f} points for ten times as many clips"
    else:
        fitted = f"a ceiling of {law.parameters[0]:.1f}, exponent {law.parameters[2]:.2f}"
    compared = ", ".join(
        f"{kind} {error:.2f}" for kind, error in found.errors.items() if error is not None
    )
    lines = [
        f"{what}: the {found.best} fits best ({fitted}); held-out error in points: "
        f"{compared or 'too few sizes to compare laws'}."
    ]
    at = found.crossing
    if at is not None:
        interval = " to ".join(
            "never" if end is None else f"{end:,.0f}" for end in (at.low, at.high)
        )
        drawn = f"{100 * at.share:.0f}% of the draws reach it"
        if at.size is None:
            lines.append(f"{what}: by that law it never reaches {level} ({drawn}).")
        else:
            where = ", which is outside of what was measured" if at.beyond else ""
            lines.append(
                f"{what}: it reaches {level} at about {at.size:,.0f} clips{where} "
                f"(95%: {interval}; {drawn})."
            )
    end = f"{found.grid[-1]:,.0f}"
    lines.append(
        f"{what}: at {end} clips the laws allow {found.grid_low[-1]:.1f} to "
        f"{min(100.0, found.grid_high[-1]):.1f}; that is an extrapolation."
    )
    return lines
