"""Thin factors of a matrix: ``D ~ up @ down`` with few columns, for differences that are kept small."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantized import QuantizedRows
from .stored_difference import energy_lost

# Passes over the matrix that sharpen the subspace. Differences of a few AdamW steps have no gap after the first singular values.
_ROUNDS = 4
_MORE = 8  # columns that are computed besides those wanted
_REFITS = 2
# What AdamW adds to a weight is nearly a sign, and all of its components push the same way: a truncated difference does less of
# the same. With the share of energy e that is kept, the kept part is made e^-GAIN times as large, at most LARGEST_GAIN. The
# exponent is the one of 0, 2/3 and 3/4 whose pictures of one validation face were most like it.
GAIN, LARGEST_GAIN = 2 / 3, 2.0


@torch.no_grad()
def truncated_svd(matrix: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The ``rank`` largest components of ``(M, N)``: up ``(M, rank)`` and down ``(rank, N)`` of equal size, float32.

    Randomized subspace iteration (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1): a full decomposition of all
    matrices of a UNet would take minutes. Equal inputs give equal factors on a CPU.

    Args:
        rank: at most ``min(M, N)``.
    """
    matrix = matrix.detach().float()
    rows, columns = matrix.shape
    # The product with its own transpose is made of the smaller side.
    if rows > columns:
        up, down = truncated_svd(matrix.T, rank, seed)
        return down.T.contiguous(), up.T.contiguous()
    width = min(rank + _MORE, rows)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn((rows, width), generator=generator).to(matrix.device)
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return (basis @ u[:, :rank]) * root, root[:, None] * v[:rank]


@torch.no_grad()
def quantized_factors(matrix: Tensor, rank: int, bits: int, gain: float = GAIN) -> tuple[QuantizedRows, QuantizedRows]:
    """Factors of a few bits: ``up^T`` ``(rank, M)`` and ``down`` ``(rank, N)``, a step for each component of each.

    Each is fitted, by least squares, to the other as it was rounded: so the second takes up what the first lost.

    Args:
        gain: with the share of energy e that they keep, their product is made ``e^-gain`` times as large; 0: as it fits best.
    """
    up, down = truncated_svd(matrix, rank)
    matrix = matrix.detach().float()
    rows = QuantizedRows.of(down, bits)
    columns = QuantizedRows.of(up.T, bits)
    for _ in range(_REFITS):
        columns = QuantizedRows.of(_fitted(rows.values(), matrix.T), bits)
        rows = QuantizedRows.of(_fitted(columns.values(), matrix), bits)
    return columns, QuantizedRows(rows.codes, rows.steps * _gain(matrix, columns, rows, gain), bits)


def _gain(matrix: Tensor, columns: QuantizedRows, rows: QuantizedRows, exponent: float) -> float:
    kept = 1.0 - energy_lost(matrix, columns.values().T @ rows.values())
    return min(max(kept, 1e-6) ** -exponent, LARGEST_GAIN)


def _fitted(factor: Tensor, matrix: Tensor) -> Tensor:
    """What times ``factor^T`` comes nearest to ``matrix``: ``(F F^T)^-1 F D`` for F ``(rank, M)`` and D ``(M, N)``."""
    gram = factor @ factor.T
    # Rounded components may be nearly the same; a millionth of their size keeps the inverse finite.
    gram.diagonal().add_(1e-6 * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
    return torch.linalg.solve(gram, factor @ matrix)
