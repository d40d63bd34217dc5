"""The compact body: a few bits, thin factors, and what is refused before anything is built."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from e4t_core.files.compact_body import (
    CODES,
    STEPS,
    CompactDescription,
    CompactSettings,
    Part,
    bytes_of,
    describe,
    description_from_json,
    expected_tensors,
    pack,
    unpack,
)
from e4t_core.low_rank import GAIN, LARGEST_GAIN, quantized_factors, truncated_svd
from e4t_core.quantized import QuantizedRows, pack_codes, packed_size, unpack_codes
from e4t_core.stored_difference import energy_lost
from e4t_core.weight_changes import Full, LowRank, full_differences


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def concept(seed: int = 0) -> dict[str, Tensor]:
    """Differences of the size and kind that a tuning leaves: nearly signs, with few directions behind them."""
    shapes = {"conv.weight": (24, 16, 3, 3), "to_q.weight": (32, 40), "norm.bias": (33,), "out.weight": (2, 9)}
    made = {}
    for index, (name, shape) in enumerate(shapes.items()):
        rows, columns = shape[0], math.prod(shape[1:])
        product = numbers(rows, 4, seed=seed + index) @ numbers(4, columns, seed=seed + 10 + index)
        made[name] = 2e-4 * torch.sign(product + 0.1 * numbers(rows, columns, seed=seed)).reshape(shape)
    return made


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_packed_lowest_bit_first_and_come_back(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (101,), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    stream = [int(code) >> bit & 1 for code in codes for bit in range(bits)]
    stream += [0] * (-len(stream) % 8)
    naive = [sum(bit << place for place, bit in enumerate(stream[i : i + 8])) for i in range(0, len(stream), 8)]
    assert packed.tolist() == naive
    assert len(packed) == packed_size(101, bits)
    assert torch.equal(unpack_codes(packed, 101, bits), codes)


def test_codes_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="101 codes of 3 bits take 38 bytes"):
        unpack_codes(torch.zeros(37, dtype=torch.uint8), 101, 3)


def test_a_number_is_its_code_from_the_middle_times_the_rows_step() -> None:
    rows = QuantizedRows(torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0]], dtype=torch.uint8), torch.tensor([2.0, 0.5]), 2)
    assert rows.values().tolist() == [[-3.0, -1.0, 1.0, 3.0], [0.75, 0.75, -0.75, -0.75]]


# Of a normal number's variance; the least that even levels can lose is a few percent below each (Max 1960).
@pytest.mark.parametrize(("bits", "lost"), [(1, 0.38), (2, 0.13), (3, 0.044), (4, 0.014), (8, 0.0002)])
def test_few_bits_lose_little(bits: int, lost: float) -> None:
    values = numbers(8, 4000) * torch.logspace(-6, 1, 8)[:, None]
    stored = QuantizedRows.of(values, bits)
    assert int(stored.codes.max()) == 2**bits - 1
    for row in range(8):
        assert energy_lost(values[row], stored.values()[row]) < lost


def test_a_row_of_zeros_stays_zero() -> None:
    assert not QuantizedRows.of(torch.zeros(2, 5), 4).values().any()


@pytest.mark.parametrize("shape", [(30, 90), (90, 30)])
def test_the_truncated_svd_is_nearly_the_best(shape: tuple[int, int]) -> None:
    matrix = torch.sign(numbers(shape[0], 3) @ numbers(3, shape[1]) + numbers(*shape))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    best = energy_lost(matrix, (u[:, :5] * s[:5]) @ v[:5])
    up, down = truncated_svd(matrix, 5)
    assert (up.shape, down.shape) == ((shape[0], 5), (5, shape[1]))
    assert energy_lost(matrix, up @ down) <= 1.01 * best
    assert torch.equal(truncated_svd(matrix, 5)[0], up)


def test_factors_that_are_fitted_to_one_another_lose_less_than_rounded_ones() -> None:
    matrix = numbers(60, 6) @ numbers(6, 100, seed=1)
    up, down = truncated_svd(matrix, 6)
    rounded = QuantizedRows.of(up.T, 2).values().T @ QuantizedRows.of(down, 2).values()
    columns, rows = quantized_factors(matrix, 6, 2, gain=0)
    assert energy_lost(matrix, columns.values().T @ rows.values()) < energy_lost(matrix, rounded)


def test_a_concept_comes_back_within_its_rank_and_bits() -> None:
    given = concept()
    encoder = {"final.features": 1e-4 * numbers(6, 2) @ numbers(2, 50), "final.bias": numbers(6)}
    tensors, described = pack(given, encoder, CompactSettings(rank=8, bits=8, vector_bits=8, gain=0, encoder_rank=2))
    body = unpack(tensors, described)
    assert [change.name for change in body.weights] == sorted(given)
    kinds = {change.name: type(change) for change in body.weights}
    assert kinds == {"conv.weight": LowRank, "to_q.weight": LowRank, "norm.bias": Full, "out.weight": Full}
    for name, value in given.items():
        found = body.difference(name)
        assert found.shape == value.shape and found.dtype == torch.float32
        matrix = value.flatten(1) if value.ndim > 1 else value[None]
        s = torch.linalg.svdvals(matrix)
        beyond = float(s[8:].square().sum() / s.square().sum()) if name in ("conv.weight", "to_q.weight") else 0.0
        # Eight bits lose less than a thousandth.
        assert energy_lost(value, found) < 1.02 * beyond + 1e-3
    assert list(body.encoder) == sorted(encoder)
    for name, value in encoder.items():
        assert energy_lost(value, body.encoder[name]) < 1e-3


def test_nothing_is_a_body_too() -> None:
    tensors, described = pack({}, {})
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {CODES: (0,), STEPS: (0,)}
    body = unpack(tensors, described)
    assert (body.weights, body.encoder) == ((), {})


def test_the_description_survives_json_and_says_what_the_tensors_are() -> None:
    tensors, described = pack(concept(), {"final.bias": numbers(6)}, CompactSettings(rank=4, bits=3))
    again = description_from_json(json.loads(json.dumps(described.to_json())))
    assert again == described
    found = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    assert found == expected_tensors(again)
    assert bytes_of(again) == sum(value.numel() * value.element_size() for value in tensors.values())


def test_stable_diffusions_largest_weight_and_all_of_them_are_within_bounds() -> None:
    assert Part((1280, 2560, 3, 3), 16, 4).matrix == (1280, 23040)
    shape = (1280, 1280, 3, 3)
    CompactDescription({f"{n}.weight": Part(shape, 16, 4) for n in range(866_000_000 // math.prod(shape) + 1)}, {})


def test_every_difference_is_asked_for_once_and_told() -> None:
    names: list[str] = []

    class Asked(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            names.append(name)
            return super().__getitem__(name)

    told: list[tuple[int, int]] = []
    given = Asked(concept())
    pack(given, {"final.bias": numbers(6)}, on_part=lambda done, total: told.append((done, total)))
    assert names == sorted(given)
    assert told == [(n, 5) for n in range(1, 6)]


def test_the_order_of_a_description_does_not_matter() -> None:
    tensors, described = pack(concept(), {"final.bias": numbers(6), "first.bias": numbers(5)})
    data = described.to_json()
    other = {table: dict(reversed(parts.items())) for table, parts in data.items()}
    first, second = (unpack(tensors, description_from_json(one)) for one in (data, other))
    for name in concept():
        assert torch.equal(first.difference(name), second.difference(name))
    assert all(torch.equal(value, second.encoder[name]) for name, value in first.encoder.items())


def test_equal_concepts_give_equal_bodies() -> None:
    first, second = pack(concept(), {})[0], pack(concept(), {})[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_matrix_that_would_not_get_smaller_is_kept_whole() -> None:
    parts = describe({"small": (4, 36), "large": (320, 320)}, {}, CompactSettings(rank=8, bits=4)).weights
    assert (parts["small"].rank, parts["large"].rank) == (0, 8)


def test_layers_that_matter_least_have_the_lower_rank() -> None:
    names = ("down.conv1.weight", "down.attn2.to_k.weight", "down.attn1.to_k.weight", "down.ff.net.2.weight")
    settings = CompactSettings(rank=9, minor_rank=2)
    parts = describe(dict.fromkeys(names, (320, 320)), {"x.attn1.y": (320, 320)}, settings)
    assert [parts.weights[name].rank for name in names] == [9, 9, 2, 2]
    assert parts.encoder["x.attn1.y"].rank == settings.encoder_rank
    tensors = {name: numbers(320, 320) for name in names}
    assert pack(tensors, {}, settings)[1].weights == parts.weights


def test_a_difference_that_is_not_finite_is_refused() -> None:
    spoiled = concept() | {"norm.bias": torch.full((33,), torch.nan)}
    with pytest.raises(ValueError, match=r"norm.bias holds NaN"):
        pack(spoiled, {})


GOOD: dict[str, Any] = {"weights": {"to_q.weight": [4, 8, 320, 320]}, "encoder": {"final.bias": [8, 0, 768]}}


@pytest.mark.parametrize(
    "weights",
    [
        {"to_q.weight": [4, 8]},
        {"to_q.weight": [4, 8, 320, 320, 3, 3, 3]},
        {"to_q.weight": [0, 8, 320, 320]},
        {"to_q.weight": [9, 8, 320, 320]},
        {"to_q.weight": [4, -1, 320, 320]},
        {"to_q.weight": [4, 321, 320, 320]},
        {"to_q.weight": [4, 8, 0, 320]},
        {"to_q.weight": [4, 8, -320, 320]},
        {"to_q.weight": [4, 1, 2**20, 2**20]},
        {"to_q.weight": [4, 1, 10**30, 2]},
        {"to_q.weight": [4, 8, 320.0, 320]},
        {"to_q.weight": [4, True, 320, 320]},
        {"to_q.weight": ["4", 8, 320, 320]},
        {"to_q.weight": {"bits": 4}},
        {"to_q.weight": None},
        {"": [4, 8, 320, 320]},
        {"a" * 201: [4, 8, 320, 320]},
        {"to_q\x00.weight": [4, 8, 320, 320]},
        {f"{n}.weight": [1, 1, 2**12, 2**13] for n in range(33)},
        {f"{n}.weight": [1, 0, 2] for n in range(10_001)},
        [],
        None,
    ],
)
@pytest.mark.parametrize("table", ["weights", "encoder"])
def test_hostile_descriptions_are_refused_before_anything_is_built(table: str, weights: Any) -> None:
    with pytest.raises(ValueError):
        description_from_json(GOOD | {table: weights})


@pytest.mark.parametrize("data", [None, [], "x", {}, GOOD | {"more": 1}, {"weights": {}}])
def test_other_json_is_no_description(data: Any) -> None:
    with pytest.raises(ValueError):
        description_from_json(data)


def test_parts_must_be_parts() -> None:
    with pytest.raises(ValueError, match="no part"):
        CompactDescription({"to_q.weight": (4, 8, 320, 320)}, {})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="larger than any weight"):
        Part((2**14, 2**14), 1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (CODES, torch.zeros(3, dtype=torch.uint8)),
        (STEPS, torch.zeros(3)),
        (STEPS, None),
        (CODES, None),
    ],
)
def test_tensors_of_another_size_are_refused(name: str, value: Tensor | None) -> None:
    tensors, described = pack(concept(), {})
    changed = {key: tensor for key, tensor in (tensors | {name: value}).items() if tensor is not None}
    with pytest.raises(ValueError, match=name):
        unpack(changed, described)


@pytest.mark.parametrize("step", [math.nan, math.inf, -1.0, 17.0])
def test_steps_out_of_range_are_refused(step: float) -> None:
    tensors, described = pack(concept(), {})
    tensors[STEPS][3] = step
    with pytest.raises(ValueError, match="steps must be"):
        unpack(tensors, described)


def test_what_a_rank_leaves_out_is_made_up_for_by_size() -> None:
    matrix = torch.sign(numbers(40, 60))
    plain, larger = (quantized_factors(matrix, 8, 8, gain) for gain in (0.0, GAIN))
    first, second = (columns.values().T @ rows.values() for columns, rows in (plain, larger))
    kept = 1 - energy_lost(matrix, first)
    assert 0.3 < kept < 0.7
    torch.testing.assert_close(second, first * min(kept**-GAIN, LARGEST_GAIN), rtol=1e-4, atol=1e-4)


def test_a_full_rank_needs_no_gain() -> None:
    matrix = numbers(5, 30)
    columns, rows = quantized_factors(matrix, 5, 8)
    assert energy_lost(matrix, columns.values().T @ rows.values()) < 1e-3


def test_a_low_rank_change_is_its_product_and_is_not_lost_among_differences() -> None:
    change = LowRank("conv.weight", numbers(4, 2), numbers(2, 18, seed=1), (4, 2, 3, 3))
    naive = sum(torch.outer(change.up[:, r], change.down[r]) for r in range(2)).reshape(4, 2, 3, 3)
    torch.testing.assert_close(change.difference(), naive)
    torch.testing.assert_close(full_differences([change])["conv.weight"].value(), naive, rtol=1e-3, atol=1e-3)
