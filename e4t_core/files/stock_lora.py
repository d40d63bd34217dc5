"""A concept's weight changes as a LoRA file that other programs read, with the keys of kohya's trainers.

``lora_unet_`` and diffusers' name of the layer, dots as underscores, then:

* ``.lora_up.weight`` ``(m, r)``, ``.lora_down.weight`` ``(r, n)``, ``.alpha``: the matrix ``alpha / r * up @ down``. Of a kernel
  ``(m, c, k, k)``, up is ``(m, r, 1, 1)`` and down ``(r, c, k, k)``. Ranks differ and all have ONE alpha, the largest rank:
  diffusers 0.42 does not find the alphas of queries, keys and values where a file has several.
* ``.diff`` and ``.diff_b``: what is added to a weight or a bias. ComfyUI reads them; diffusers refuses a file that
  has any.
* ``.lokr_w1`` ``(1, 1)`` and ``.lokr_w2``, of the weight's shape: their Kronecker product, here a number times a matrix, so
  that half precision with a scale stays exact.

The error of a matrix is ``|written - wanted| / |wanted|``, measured on the tensors that are written, and a LoRA's error is the root
mean square of its matrices' errors: each layer counts as much as any other. Absolute sizes would not do: a domain's offset is
some large matrices that move predictions little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rank_choice import Spectrum, choose_ranks, factors
from ..stored_difference import StoredDifference
from ..weight_changes import LowRank, WeightChange

PREFIX = "lora_unet_"
ERROR = 0.2
"""What is asked for by default."""
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
        error: root mean square of the matrices' relative errors, as measured; 0 where nothing is lost.
    """

    tensors: Mapping[str, Tensor]
    rank: int
    error: float

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
        differences: by canonical name; each is asked for twice, with a rank by hand once.
        error: that is aimed at, :data:`LEAST_ERROR` to 1; ranks are chosen so that it takes the fewest numbers.
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
    tensors: dict[str, Tensor] = {}
    steps = len(differences) * (1 if rank else 2)
    ranks = {} if rank else _ranks(differences, error, device, lambda step: told(step, steps))
    alpha = rank or max(ranks.values(), default=0)
    errors = []
    for step, (name, stored) in enumerate(differences.items(), steps - len(differences)):
        told(step, steps)
        value = stored.value()
        if value.ndim > 1:
            found, missed = _pair(value.to(device), rank or ranks[name], alpha)
            tensors |= {f"{layer_key(name)}.{part}": tensor for part, tensor in found.items()}
            errors += [missed] if missed is not None else []
        elif vectors:
            tensors[_vector_key(name)] = value
    return StockLora(tensors, alpha, math.sqrt(sum(errors) / len(errors)) if errors else 0.0)


def _ranks(
    differences: Mapping[str, StoredDifference], error: float, device: torch.device | str, told: Callable[[int], None]
) -> dict[str, int]:
    spectra: dict[str, Spectrum] = {}
    for step, (name, stored) in enumerate(differences.items()):
        told(step)
        if stored.values.ndim > 1:
            spectra[name] = Spectrum.of(stored.value().flatten(1).to(device)).relative()
    count = sum(bool(spectrum.energies.any()) for spectrum in spectra.values())
    return choose_ranks(spectra, (error - ROUNDING) ** 2 * count)


def thin_lora(changes: Sequence[WeightChange]) -> StockLora | None:
    """A LoRA of a concept's own factors, bit for bit; none where it changes anything otherwise than by factors.

    Args:
        changes: of one concept.
    """
    thin = [change for change in changes if isinstance(change, LowRank)]
    if not thin or len(thin) < len(changes):
        return None
    alpha = max(change.rank for change in thin)
    tensors: dict[str, Tensor] = {}
    for change in thin:
        up, down, rank = change.up, change.down, change.rank
        if rank < alpha:
            # Zeros to the common rank keep the factors, and one alpha is all that diffusers reads.
            up = torch.cat([up, up.new_zeros(len(up), alpha - rank)], dim=1)
            down = torch.cat([down, down.new_zeros(alpha - rank, down.shape[1])])
        kernel = change.shape[2:]
        parts = {
            "lora_up.weight": up.reshape(*up.shape, *[1] * len(kernel)),
            "lora_down.weight": down.reshape(alpha, *change.shape[1:]),
            "alpha": torch.tensor(float(alpha)),
        }
        tensors |= {f"{layer_key(change.name)}.{part}": tensor.contiguous().clone() for part, tensor in parts.items()}
    return StockLora(tensors, alpha, 0.0)


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


def _pair(value: Tensor, rank: int, alpha: int) -> tuple[dict[str, Tensor], float | None]:
    """The tensors of one weight by the ends of their keys, and the square of their error; none of a zero matrix."""
    matrix = value.flatten(1)
    whole = _energy(matrix)
    if whole == 0:
        return {}, None
    if rank == 0:
        return {}, 1.0
    up, down = factors(matrix, rank)
    rank = up.shape[1]
    scale = alpha / rank
    up, down = up / math.sqrt(scale), down / math.sqrt(scale)
    half_up, half_down = up.half(), down.half()
    made = scale * (half_up.float() @ half_down.float())
    if _energy(made - scale * (up @ down)) <= ROUNDING**2 * whole:
        up, down = half_up, half_down
    else:
        made = scale * (up @ down)
    missed = _energy(made - matrix) / whole
    up, down = up.contiguous().cpu(), down.contiguous().cpu()
    if value.ndim > 2:
        up, down = up.reshape(*up.shape, *[1] * (value.ndim - 2)), down.reshape(rank, *value.shape[1:])
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(float(alpha))}, missed


def _energy(value: Tensor) -> float:
    return float(value.double().square().sum())
