import math
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from e4t_core.stored_difference import LOST, SMALLEST_SCALE, StoredDifference, energy_lost
from e4t_core.weight_changes import Full, Scaled, full_differences, shared_differences, shared_factors


def drawn(size: float, shape: tuple[int, ...] = (64, 48), seed: int = 0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1e-7, 1e-6, 2.4e-5, 1e-3, 1.0, 1e3, 1e8, 1e30])
def test_half_precision_loses_a_millionth_of_the_energy_at_most(size: float) -> None:
    difference = drawn(size)
    stored = StoredDifference.of(difference)
    assert stored.values.dtype == torch.float16 and stored.values.nbytes == difference.nbytes // 2
    assert math.frexp(stored.scale)[0] == 0.5, "not a power of two"
    assert stored.value().dtype == torch.float32 and stored.value().shape == difference.shape
    assert energy_lost(difference, stored.value()) < 1e-6 < LOST


def test_numbers_of_very_different_size_in_one_tensor_lose_nothing_either() -> None:
    difference = drawn(1.0) * torch.logspace(-12, 3, 48)
    stored = StoredDifference.of(difference)
    assert stored.values.dtype == torch.float16
    assert energy_lost(difference, stored.value()) < 1e-6


@pytest.mark.parametrize("largest", [32767.9, 32768.0, 65519.0, 65520.0, 3.4e38])
def test_no_number_is_rounded_to_infinity(largest: float) -> None:
    difference = torch.tensor([largest, -largest, 0.0])
    assert torch.allclose(StoredDifference.of(difference).value(), difference, rtol=2.0**-11)


@pytest.mark.parametrize("size", [1e-11, 1e-20, 1e-40])
def test_what_half_precision_would_lose_stays_in_float32_bit_for_bit(size: float) -> None:
    difference = drawn(size)
    stored = StoredDifference.of(difference)
    assert stored.values.dtype == torch.float32 and stored.scale == 1.0
    assert torch.equal(stored.value(), difference)


def test_a_zero_difference_is_stored_as_such() -> None:
    stored = StoredDifference.of(torch.zeros(3, 2))
    assert torch.equal(stored.value(), torch.zeros(3, 2)) and stored.values.dtype == torch.float16


def test_the_share_of_lost_energy_is_right_for_numbers_whose_squares_float32_cannot_hold() -> None:
    for size in (1.0, 1e-30, 1e30):
        wanted = drawn(size)
        assert energy_lost(wanted, 0.9 * wanted) == pytest.approx(0.01, rel=1e-4)
        assert energy_lost(wanted, torch.zeros_like(wanted)) == pytest.approx(1.0)
    assert energy_lost(torch.zeros(2), torch.zeros(2)) == 0.0


def test_differences_of_networks_have_one_scale_and_larger_ones_their_own() -> None:
    assert {StoredDifference.of(drawn(size)).scale for size in (1e-8, 2.4e-5, 1e-2, 1.0)} == {SMALLEST_SCALE}
    assert StoredDifference.of(drawn(1e3)).scale > SMALLEST_SCALE


@pytest.mark.parametrize("strength", [1.0, 0.7, -1.3, 0.05])
def test_a_scale_in_a_strength_is_the_same_product_bit_for_bit(strength: float) -> None:
    stored = StoredDifference.of(drawn(2.4e-5))
    assert torch.equal((strength * stored.scale) * stored.values.float(), strength * stored.value())
    # Where the factor is rounded to float16 first (2**-11 of it), and the product as well: float16's last place below 2**-14.
    in_half = (torch.tensor(strength * stored.scale).half() * stored.values).float()
    exact = strength * stored.value()
    assert ((in_half - exact).abs() <= 2.0**-10 * exact.abs() + 2.0**-24).all()


def test_a_change_holds_its_tensor_once_and_gives_float32() -> None:
    difference = drawn(1e-3).bfloat16().requires_grad_().T
    change = Full.of("conv_in.weight", difference)
    assert torch.equal(change.difference(), difference.detach().float()), "bfloat16's 8 bits fit into float16's 11"
    assert not change.stored.values.requires_grad
    found = full_differences([change, Scaled("other.weight", torch.ones(2, 1), torch.ones(2, 1), "domain")])
    assert found["conv_in.weight"] is change.stored and len(found) == 1


class Asked(Mapping[str, Tensor]):
    """Weights that are computed when they are asked for; counts how often."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights, self.asked = weights, list[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.weights[name].clone()

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all weights were asked for")

    def __len__(self) -> int:
        return len(self.weights)


def test_products_are_stored_and_ask_for_one_weight_at_a_time_and_for_no_other() -> None:
    weights = {name: drawn(0.05, (16, 8), seed) for seed, name in enumerate(("a", "b", "c"))}
    factors = {name: (drawn(0.1, (16, 3), 5), drawn(0.5, (8, 3), 6)) for name in ("a", "c")}
    factors["b"] = (torch.zeros(16, 3), torch.ones(8, 3))
    changes = [Scaled(name, p, q, "domain") for name, (p, q) in factors.items()]
    base = Asked(weights)
    found = shared_differences(base, shared_factors(changes))
    assert sorted(base.asked) == ["a", "b", "c"]
    assert found.keys() == {"a", "c"}, "a zero matrix is left out"
    for name, stored in found.items():
        p, q = factors[name]
        assert stored.values.dtype == torch.float16
        assert energy_lost(weights[name] * (p @ q.T), stored.value()) < 1e-6
