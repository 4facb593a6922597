"""The best low-rank approximation of a matrix, for methods that start from one.

    W ~ B A    with B (out, rank) = U S^(1/2) and A (rank, in) = S^(1/2) V^T of the largest singular values

By the Eckart-Young theorem no other B A of this rank is nearer to W. The singular vectors come from a randomised range
finder with power iterations (Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4): all singular values
of a 4096 x 4096 weight take minutes on one core, the first few take seconds. Where rank and oversampling reach the
smaller side, the result is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlassify.seeding import torch_generator

OVERSAMPLING = 16
POWER_ITERATIONS = 8


def leading_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B (out, rank) and A (rank, in) of the best approximation, with equal shares of each singular value.

    Args:
        matrix: (out, in), fp32 or float64.
        rank: at most the smaller side.
    """
    # Not the run's stream: what is found is a property of the matrix, whatever the run's seed is.
    generator = torch_generator(0, "range finder")
    rows, columns = matrix.shape
    width = min(rank + OVERSAMPLING, rows, columns)
    start = torch.empty(columns, width, dtype=matrix.dtype).normal_(generator=generator).to(matrix.device)
    basis = _orthonormal(matrix @ start)
    for _ in range(POWER_ITERATIONS):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = values[:rank].sqrt()
    return (basis @ left[:, :rank]) * root, root[:, None] * right[:rank]


def _orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span."""
    basis: Tensor = torch.linalg.qr(matrix)[0]
    return basis
