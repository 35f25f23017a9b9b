"""Singular values of changes of weights: every way to them gives the same."""

from __future__ import annotations

import pytest
import torch

from lycoris import lowrank
from lycoris.lowrank import Rule


def test_leading_values_are_near_the_best() -> None:
    """A slowly falling spectrum is the hard case of the random start."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(side, 300))[0] for side in (400, 900))
    matrix = (u * torch.arange(1, 301).float() ** -0.3) @ v.T
    for turned in (matrix, matrix.T):
        up, down = lowrank.leading(turned, 20).kept(Rule("dim", 20))
        best = torch.linalg.svdvals(matrix.double())[20:].square().sum().sqrt()
        assert 1 <= float((turned - up @ down).double().norm() / best) < 1.002
    assert len(lowrank.leading(matrix, 150).values) == 400, "all of them: little would be saved"


@pytest.mark.parametrize("shape", [(5, 9), (200, 300), (300, 200)])
def test_decompositions_agree(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(shape[0], 3), torch.randn(3, shape[1])
    values = torch.linalg.svdvals((a @ b).double())[:3]
    for found in (lowrank.of_matrix(a @ b), lowrank.of_product(a, b)):
        assert torch.allclose(found.values[:3], values, rtol=1e-5)
        up, down = found.kept(Rule("lossless"))
        assert up.shape[1] == 3 and torch.allclose(up @ down, a @ b, atol=1e-4)
    zero = lowrank.of_matrix(torch.zeros(shape)).kept(Rule("sv_fro", value=0.9))
    assert zero[0].shape[1] == 1 and not zero[0].isnan().any() and not zero[1].isnan().any()


def test_kronecker_products() -> None:
    torch.manual_seed(0)
    small, large = torch.randn(3, 4), torch.randn(5, 7)
    product = torch.kron(small, large)
    found = lowrank.of_kronecker(small, large)
    assert torch.allclose(found.values, torch.linalg.svdvals(product.double()))
    up, down = found.kept(Rule("dim", 15))
    assert torch.allclose(up @ down, product, atol=1e-5)
    w1, w2 = lowrank.nearest_kronecker(product, (3, 5), (4, 7))
    assert torch.allclose(torch.kron(w1, w2), product, atol=1e-5)
