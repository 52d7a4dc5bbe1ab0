"""The whitening of differences against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfshot.ops.whitening import whitening


@pytest.mark.parametrize(("pairs", "dim", "shrinkage"), [(11, 5, 0.0), (3, 7, 0.3), (13, 2, 3.0)])
def test_differences_are_alike_in_all_directions(pairs: int, dim: int, shrinkage: float) -> None:
    generator = torch.Generator().manual_seed(pairs)
    scales = torch.linspace(0.1, 2, dim)
    differences = (torch.randn(pairs, dim, generator=generator) * scales).double()
    found = whitening(differences, shrinkage).numpy()
    moment = np.zeros((dim, dim))
    for row in differences.numpy():
        moment += np.outer(row, row) / pairs
    raised = moment + shrinkage * np.trace(moment) / dim * np.eye(dim)
    product = found @ raised @ found
    np.testing.assert_allclose(product, product[0, 0] * np.eye(dim), atol=1e-9)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert np.linalg.norm(found, 2) == pytest.approx(1)


def test_the_length_of_differences_means_nothing() -> None:
    differences = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whitening(5 * differences, 1.0), whitening(differences, 1.0))


def test_a_large_shrinkage_changes_nothing() -> None:
    differences = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whitening(differences, 1e9), torch.eye(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("pairs", "shrinkage", "message"),
    [
        (0, 1.0, "differences: 0 received"),
        (2, -1.0, "shrinkage: -1.0 must be at least 0"),
        (2, 0.0, "shrinkage: 0.0 is too little"),
    ],
)
def test_what_cannot_be_whitened(pairs: int, shrinkage: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whitening(torch.ones(pairs, 3), shrinkage)
