"""A concept's weight changes as a LoRA file that other programs read, with the keys of kohya's trainers.

``lora_unet_`` and diffusers' name of the layer, dots as underscores, then:

* ``.lora_up.weight`` ``(m, r)``, ``.lora_down.weight`` ``(r, n)``, ``.alpha``: the matrix ``alpha / r * up @ down``. Of a kernel
  ``(m, c, k, k)``, up is ``(m, r, 1, 1)`` and down ``(r, c, k, k)``. Ranks differ and all have ONE alpha, the largest rank:
  diffusers 0.42 does not find the alphas of queries, keys and values where a file has several.
* ``.diff`` and ``.diff_b``: what is added to a weight or a bias. ComfyUI reads them, and Stable Diffusion WebUI; diffusers
  refuses a file that has any.
* ``.lokr_w1`` ``(1, 1)`` and ``.lokr_w2``, of the weight's shape: their Kronecker product, here a number times a matrix, so
  that half precision with a scale stays exact.

All errors are measured on the tensors that are written: ``sqrt(|written - wanted|^2 / |wanted|^2)`` over all weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..low_rank import Spectrum, choose_ranks, factors
from ..stored_difference import StoredDifference

PREFIX = "lora_unet_"
LEAST_ERROR = 0.01
"""The smallest error that can be asked of low ranks; below it, the exact form is smaller."""
# Rounding to half precision may add this much of a matrix's size to the error; where it would add more, float32 is kept.
ROUNDING = 1e-3

Told = Callable[[int, int], None]
"""Called before each step of the work with its number, from 0, and how many there are; what it raises ends the work."""


@dataclass(frozen=True, eq=False)
class StockLora:
    """A LoRA to be written.

    Attributes:
        tensors: by kohya's keys, on the CPU.
        rank: the largest; 0 without low-rank matrices.
        error: relative error of all weights, vectors included, as measured; 0 where nothing is lost.
        vectors_error: what of it norms and biases make that the LoRA leaves out, likewise; 0 where it holds them.
    """

    tensors: Mapping[str, Tensor]
    rank: int
    error: float
    vectors_error: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def layer_key(name: str) -> str:
    """Kohya's key of the layer of a weight or bias with this canonical name."""
    return PREFIX + name.rpartition(".")[0].replace(".", "_")


@torch.no_grad()
def low_rank_lora(
    differences: Mapping[str, StoredDifference],
    error: float,
    rank: int = 0,
    vectors: bool = True,
    device: torch.device | str = "cpu",
    told: Told = lambda _step, _steps: None,
) -> StockLora:
    """A LoRA of low ranks, made of one weight at a time.

    Args:
        differences: by canonical name; each is asked for twice.
        error: relative error that is aimed at, :data:`LEAST_ERROR` to 1, of all that the LoRA can hold (without vectors: of
            the matrices); ranks are chosen so that it takes the fewest numbers.
        rank: one rank for all matrices, in place of the error; 0: none.
        vectors: hold norms and biases, as ``.diff`` and ``.diff_b``; diffusers then refuses the file.
        device: to compute on, one with float64.
        told: of progress.

    Raises:
        ValueError: the error or the rank is out of range.
    """
    if not LEAST_ERROR <= error <= 1 or rank < 0:
        raise ValueError(
            f"A relative error of {error:g} or a rank of {rank} is out of range: {LEAST_ERROR} to 1, 0 on."
        )
    steps = 2 * len(differences)
    spectra: dict[str, Spectrum] = {}
    tensors: dict[str, Tensor] = {}
    whole = lost = 0.0
    for step, (name, stored) in enumerate(differences.items()):
        told(step, steps)
        value = stored.value()
        energy = _energy(value)
        whole += energy
        if value.ndim > 1:
            spectra[name] = Spectrum.of(value.flatten(1).to(device))
        elif vectors:
            tensors[_vector_key(name)] = value
        else:
            lost += energy
    vectors_lost = lost
    ranks = {name: min(rank, spectrum.rank) for name, spectrum in spectra.items()}
    if not rank:
        ranks = choose_ranks(spectra, (error - ROUNDING) ** 2 * (whole - lost))
    alpha = max(ranks.values(), default=0)
    for step, name in enumerate(differences, len(differences)):
        told(step, steps)
        if name in ranks:
            found, missed = _pair(differences[name].value().to(device), ranks[name], alpha)
            tensors |= {f"{layer_key(name)}.{part}": tensor for part, tensor in found.items()}
            lost += missed
    return StockLora(tensors, alpha, _relative(lost, whole), _relative(vectors_lost, whole))


def exact_lora(differences: Mapping[str, StoredDifference], told: Told = lambda _step, _steps: None) -> StockLora:
    """A LoRA that changes every weight exactly as the differences do; half of the base's size, or more.

    Args:
        differences: by canonical name.
        told: of progress.
    """
    tensors: dict[str, Tensor] = {}
    for step, (name, stored) in enumerate(differences.items()):
        told(step, len(differences))
        if stored.values.ndim < 2:
            tensors[_vector_key(name)] = stored.value()
        elif stored.scale == 1.0:
            tensors[f"{layer_key(name)}.diff"] = stored.values
        else:
            tensors[f"{layer_key(name)}.lokr_w1"] = torch.full((1, 1), stored.scale)
            tensors[f"{layer_key(name)}.lokr_w2"] = stored.values
    return StockLora(tensors, 0, 0.0)


def _vector_key(name: str) -> str:
    return f"{layer_key(name)}.{'diff_b' if name.endswith('.bias') else 'diff'}"


def _pair(value: Tensor, rank: int, alpha: int) -> tuple[dict[str, Tensor], float]:
    """The tensors of one weight by the ends of their keys, and the energy that they miss of it; none at rank 0."""
    matrix = value.flatten(1)
    if rank == 0:
        return {}, _energy(matrix)
    scale = alpha / rank
    up, down = (factor / math.sqrt(scale) for factor in factors(matrix, rank))
    half_up, half_down = up.half(), down.half()
    made = scale * (half_up.float() @ half_down.float())
    if _energy(made - scale * (up @ down)) <= ROUNDING**2 * _energy(matrix):
        up, down = half_up, half_down
    else:
        made = scale * (up @ down)
    missed = _energy(made - matrix)
    up, down = up.contiguous().cpu(), down.contiguous().cpu()
    if value.ndim > 2:
        up, down = up.reshape(*up.shape, *[1] * (value.ndim - 2)), down.reshape(rank, *value.shape[1:])
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(float(alpha))}, missed


def _energy(value: Tensor) -> float:
    return float(value.double().square().sum())


def _relative(lost: float, whole: float) -> float:
    return math.sqrt(lost / whole) if whole else 0.0
