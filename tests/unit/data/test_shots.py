"""Cuts between shots: a transcription of the differences, and what is no cut."""

from __future__ import annotations

import numpy as np

from selfshot.data.shots import differences, find_cuts, quarter_histograms


def test_histograms_count_each_quarter_and_channel() -> None:
    frames = np.random.default_rng(5).integers(0, 256, (3, 6, 10, 3), dtype=np.uint8)
    found = quarter_histograms(frames)
    for t in range(3):
        expected = []
        for y in (0, 3):
            for x in (0, 5):
                for channel in range(3):
                    part = frames[t, y : y + 3, x : x + 5, channel]
                    counts, _ = np.histogram(part, bins=8, range=(0, 256))
                    expected.append(counts / (6 * 10 * 3))
        np.testing.assert_allclose(found[t], np.concatenate(expected))
    steps = differences(found)
    np.testing.assert_allclose(steps[1], np.abs(found[2] - found[1]).sum() / 2)
    assert 0 <= steps.min() <= steps.max() <= 1


def test_a_cut_stands_out_from_what_is_around_it() -> None:
    quiet = np.full(40, 0.02)
    cut = quiet.copy()
    cut[17] = 0.7
    assert find_cuts(cut, 0.4).tolist() == [18]
    assert find_cuts(quiet, 0.4).tolist() == []
    shaking = np.full(40, 0.5)
    assert find_cuts(shaking, 0.4).tolist() == []
    cut[17] = 0.3
    assert find_cuts(cut, 0.4).tolist() == []
