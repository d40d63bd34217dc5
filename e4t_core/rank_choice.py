"""Matrices of low rank: the fewest numbers that keep a set of matrices up to a given error.

The best approximation of a matrix D ``(m, n)`` by rank r keeps the r largest singular values (Eckart and Young 1936); what is
lost is the sum of the other values' squares. It costs ``r (m + n)`` numbers. Over several matrices, a singular value is worth
its square, and costs ``m + n``: those with the most energy per number are kept.

Singular values are square roots of the eigenvalues of the smaller of ``D D^T`` and ``D^T D``, in float64: exact to 1e-6 of the
largest one, and many times faster than an SVD of a wide matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the largest energy: below is what float64 has rounded, and no singular value.
NOISE = 1e-12


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How the energy of a matrix is spread over its singular values.

    Attributes:
        rows, columns: of the matrix.
        energies: squares of the singular values, falling, float64 on the CPU, ``(min(rows, columns),)``.
    """

    rows: int
    columns: int
    energies: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Spectrum:
        """The spectrum of a matrix ``(m, n)``, computed on its device."""
        rows, columns = matrix.shape
        return cls(rows, columns, _clean(torch.linalg.eigvalsh(_gram(matrix)).flip(0)).cpu())

    def relative(self) -> Spectrum:
        """The same, in shares of the matrix's energy; of a zero matrix zeros."""
        whole = self.energies.sum()
        return Spectrum(self.rows, self.columns, self.energies / whole if whole > 0 else self.energies)


def _gram(matrix: Tensor) -> Tensor:
    wide = matrix.double()
    return wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide


def _clean(energies: Tensor) -> Tensor:
    return torch.where(energies > NOISE * energies[:1], energies, 0.0)


@torch.no_grad()
def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best ``up @ down`` of a rank r, ``(m, r)`` and ``(r, n)`` in the matrix's type, equally large.

    Args:
        matrix: ``(m, n)``.
        rank: r at most; it is the matrix's own where that is less.
    """
    energies, vectors = torch.linalg.eigh(_gram(matrix))
    energies = _clean(energies.flip(0))[:rank]
    energies = energies[energies > 0]
    kept = vectors.flip(1)[:, : len(energies)]
    # Each half takes the root of the singular value, so that neither is small for half precision.
    root = energies.sqrt().sqrt()
    other = matrix.double().T @ kept if kept.shape[0] == matrix.shape[0] else matrix.double() @ kept
    own, other = kept * root, other / root
    up, down = (own, other.T) if kept.shape[0] == matrix.shape[0] else (other, own.T)
    return up.to(matrix.dtype), down.to(matrix.dtype)


def choose_ranks(spectra: Mapping[str, Spectrum], loss: float) -> dict[str, int]:
    """Ranks by name, 0 included, so that at most an energy of ``loss`` is lost with nearly the fewest numbers.

    "Nearly": values are whole, so another choice may save less than what one of them costs.

    Args:
        spectra: of the matrices, by name.
        loss: the sum, over all matrices, of the squares of the singular values that may be left out.
    """
    if not spectra:
        return {}
    names = list(spectra)
    energies = torch.cat([spectra[name].energies for name in names])
    counts = torch.tensor([len(spectra[name].energies) for name in names])
    owners = torch.arange(len(names)).repeat_interleave(counts)
    costs = torch.tensor([spectra[name].rows + spectra[name].columns for name in names]).double()[owners]
    order = torch.argsort(energies / costs, descending=True, stable=True)
    worth = energies[order]
    # What would be lost if all from here on were left out.
    lost = worth.flip(0).cumsum(0).flip(0)
    count = int((lost > loss).sum())
    ranks = torch.bincount(owners[order[:count]], minlength=len(names)).tolist()
    slack = loss - (float(lost[count]) if count < len(lost) else 0.0)
    for place in range(count - 1, -1, -1):
        # From the least worth on. A value's smaller brothers have been asked before it.
        energy = float(worth[place])
        if energy <= slack:
            slack -= energy
            ranks[int(owners[order[place]])] -= 1
    return dict(zip(names, ranks, strict=True))
