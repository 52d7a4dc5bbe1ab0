"""Laws on curves that are known: what was put in comes out, and chance is told from it."""

from __future__ import annotations

import numpy as np
import pytest

from selfshot.evaluation.scaling import (
    Law,
    fit_log_linear,
    fit_power_law,
    held_out_error,
    in_words,
    scaling,
)

SIZES = np.array([1_000.0, 3_000, 10_000, 30_000, 100_000, 237_000])


def power(sizes: np.ndarray, c: float, a: float, b: float) -> np.ndarray:
    return c - a * (sizes / 1_000) ** -b


def test_a_line_is_found_again() -> None:
    law = fit_log_linear(SIZES, 12.0 + 7.0 * np.log10(SIZES))
    assert law.at(np.array([1e5])) == pytest.approx([47.0])
    assert law.crossing(47.0) == pytest.approx(1e5)
    assert fit_log_linear(SIZES, np.full(6, 30.0)).crossing(31.0) is None


@pytest.mark.parametrize(
    ("c", "a", "b"), [(60.0, 25.0, 0.3), (55.0, 10.0, 1.1), (90.0, 50.0, 0.15)]
)
def test_a_power_law_is_found_again(c: float, a: float, b: float) -> None:
    law = fit_power_law(SIZES, power(SIZES, c, a, b))
    assert law.at(SIZES) == pytest.approx(power(SIZES, c, a, b), abs=0.05)
    level = float(power(np.array([40_000.0]), c, a, b)[0])
    assert law.crossing(level) == pytest.approx(40_000, rel=0.05)
    assert law.crossing(c + 1.0) is None or law.parameters[0] > c + 1.0


def test_the_unit_changes_nothing() -> None:
    curve = power(SIZES, 60, 25, 0.3)
    for fit in (fit_log_linear, fit_power_law):
        here, there = fit(SIZES, curve), fit(7 * SIZES, curve)
        assert there.at(7 * SIZES) == pytest.approx(here.at(SIZES), abs=0.02)


def test_held_out_error_prefers_the_law_that_made_the_curve() -> None:
    line, bent = 12.0 + 7.0 * np.log10(SIZES), power(SIZES, 55, 20, 0.8)
    assert held_out_error("log-linear", SIZES, line) == pytest.approx(0, abs=1e-6)
    for_line, for_power = (held_out_error(k, SIZES, bent) for k in ("log-linear", "power law"))
    assert for_line is not None and for_power is not None
    assert for_power < 0.1 * for_line
    assert held_out_error("power law", SIZES[:3], bent[:3]) is None


def noisy(curve: np.ndarray, folds: int, spread: float, repeats: int = 1) -> np.ndarray:
    """Folds that are each above or below the curve as a whole, with a little noise."""
    rng = np.random.default_rng(0)
    each = rng.normal(0, spread, (1, 1, folds))
    noise = rng.normal(0, 0.1 * spread, (len(curve), repeats, folds))
    return curve[:, None, None] + each + noise


def test_the_crossing_and_its_interval() -> None:
    curve = power(SIZES, 55, 20, 0.4)
    scores = noisy(curve, 11, 1.0)
    level = power(np.array([60_000.0]), 55, 20, 0.4)[0] + scores.mean(0) - curve.mean()
    found = scaling(SIZES, scores, level=level, draws=100)
    at = found.crossing
    assert found.best == "power law" and at is not None and at.size is not None
    assert at.low is not None and at.high is not None
    assert at.low <= 60_000 <= at.high and at.low <= at.size <= at.high
    assert at.share == 1.0 and not at.beyond
    assert all(found.low <= found.means) and all(found.means <= found.high)
    # Pairing: the level moves with its units, so its interval is narrower than without.
    mixed = np.random.default_rng(1).permutation(level, axis=1)
    loose = scaling(SIZES, scores, level=mixed, draws=100)
    assert loose.crossing is not None and loose.crossing.low is not None
    assert loose.crossing.low < at.low


def test_a_level_that_is_never_reached() -> None:
    scores = noisy(power(SIZES, 50, 20, 1.0), 5, 0.2)
    found = scaling(SIZES, scores, level=np.full((1, 5), 70.0), draws=50)
    assert found.crossing is not None
    if found.best == "power law":
        assert found.crossing.size is None and found.crossing.share < 0.5
        assert "never reaches" in " ".join(in_words(found, "5 shots", "the oracle"))


def test_the_band_widens_beyond_what_was_measured_and_holds_both_laws() -> None:
    found = scaling(SIZES, noisy(power(SIZES, 60, 25, 0.3), 7, 0.5), draws=60, factor=100)
    width = found.grid_high - found.grid_low
    assert found.grid[-1] == pytest.approx(100 * 237_000)
    assert width[-1] > 3 * width[len(width) // 2]
    for law in found.laws.values():
        inside = (law.at(found.grid) >= found.grid_low - 0.5) & (
            law.at(found.grid) <= found.grid_high + 0.5
        )
        assert inside.all()


def test_repeats_of_the_same_queries_do_not_make_one_surer() -> None:
    curve = power(SIZES, 60, 25, 0.3)
    one, five = (scaling(SIZES, noisy(curve, 5, 2.0, repeats=n), draws=200) for n in (1, 5))
    width = [float((found.high - found.low).mean()) for found in (one, five)]
    assert width[1] > 0.8 * width[0]


def test_the_order_of_the_sizes_does_not_matter() -> None:
    scores = noisy(power(SIZES, 60, 25, 0.3), 3, 0.5)
    one, other = scaling(SIZES, scores, draws=20), scaling(SIZES[::-1], scores[::-1], draws=20)
    assert other.means == pytest.approx(one.means)
    assert other.grid_high == pytest.approx(one.grid_high)


def test_too_few_sizes() -> None:
    two = scaling([10, 100], np.array([[[1.0, 2.0]], [[3.0, 5.0]]]), draws=10)
    assert list(two.laws) == ["log-linear"] and two.errors == {"log-linear": None}
    assert "too few sizes" in in_words(two, "1 shot", "the oracle")[0]
    for sizes in ([10], [10, 10]):
        with pytest.raises(ValueError, match="at least two different sizes"):
            scaling(sizes, np.ones((len(sizes), 1, 2)))


def test_a_law_says_what_it_is() -> None:
    assert Law("power law", (50.0, 0.0, 1.0)).crossing(40.0) is None
    assert Law("log-linear", (0.0, 1e-9)).crossing(50.0) is None
