"""A concept's differences as a stock LoRA: what it adds to the weights, how large its error is, and how few numbers it takes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from e4t_core.files.stock_lora import exact_lora, low_rank_lora
from e4t_core.rank_choice import Spectrum, choose_ranks, factors
from e4t_core.stored_difference import StoredDifference
from e4t_core.weight_changes import Full, Scaled, TotalDifferences

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
KERNEL = "down_blocks.0.resnets.0.conv1.weight"
POINT = "down_blocks.0.attentions.0.proj_in.weight"
NORM, BIAS = "conv_norm_out.weight", "conv_norm_out.bias"
SHAPES = {LINEAR: (20, 30), KERNEL: (16, 8, 3, 3), POINT: (12, 12, 1, 1), NORM: (16,), BIAS: (16,)}


def draw(shape: tuple[int, ...], seed: int, decay: float = 0.7) -> Tensor:
    """A difference whose singular values fall; of the size that tuning gives."""
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 1:
        return 2e-4 * torch.randn(shape, generator=generator)
    rows, columns = shape[0], math.prod(shape[1:])
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator)).Q
    return (left * 5e-3 * decay ** torch.arange(rank)) @ right.T.reshape(rank, -1).contiguous().reshape(rank, columns)


def differences(decay: float = 0.7) -> dict[str, StoredDifference]:
    return {
        name: StoredDifference.of(draw(shape, seed, decay).reshape(shape))
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


def added(tensors: dict[str, Tensor], name: str) -> Tensor:
    """What the file adds to a weight, by the formulas that its readers use."""
    layer = "lora_unet_" + name.rpartition(".")[0].replace(".", "_")
    shape = SHAPES[name]
    if name.endswith(".bias"):
        return tensors.get(f"{layer}.diff_b", torch.zeros(shape)).float()
    if f"{layer}.diff" in tensors:
        return tensors[f"{layer}.diff"].float()
    if f"{layer}.lokr_w1" in tensors:
        first, second = tensors[f"{layer}.lokr_w1"], tensors[f"{layer}.lokr_w2"].float()
        return torch.kron(first.reshape(1, 1, *[1] * (second.ndim - 2)), second).reshape(shape)
    if f"{layer}.lora_up.weight" not in tensors:
        return torch.zeros(shape)
    up, down = (tensors[f"{layer}.lora_{part}.weight"].float() for part in ("up", "down"))
    scale = float(tensors[f"{layer}.alpha"]) / down.shape[0]
    # A kernel's LoRA is two convolutions, one behind the other: c -> r with the kernel, r -> m with one pixel.
    return scale * torch.einsum("mr,r...->m...", up.flatten(1), down)


def relative_error(tensors: dict[str, Tensor], wanted: dict[str, StoredDifference]) -> float:
    """The root mean square of the matrices' relative errors."""
    matrices = {name: d.value() for name, d in wanted.items() if d.values.ndim > 1}
    errors = [float((added(tensors, name) - value).norm() / value.norm()) for name, value in matrices.items()]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


@pytest.mark.parametrize("error", [0.01, 0.05, 0.3, 1.0])
def test_the_error_is_the_one_that_was_asked_for_and_the_one_that_is_told(error: float) -> None:
    wanted = differences()
    found = low_rank_lora(wanted, error)
    assert found.error == pytest.approx(relative_error(found.tensors, wanted), rel=1e-4)
    # One singular value less would be too many lost.
    assert error / 2 < found.error <= error
    # Half precision is enough for all of it.
    assert {t.dtype for k, t in found.tensors.items() if ".lora_" in k} <= {torch.float16}


def test_a_layer_counts_as_much_as_another_whatever_the_sizes_of_their_differences() -> None:
    wanted = differences()
    larger = wanted | {LINEAR: StoredDifference.of(1000 * wanted[LINEAR].value())}
    one, other = low_rank_lora(wanted, 0.1).tensors, low_rank_lora(larger, 0.1).tensors
    assert {key: tensor.shape for key, tensor in one.items()} == {key: tensor.shape for key, tensor in other.items()}


def test_norms_and_biases_are_held_whole_or_left_out() -> None:
    wanted = differences()
    for vectors in (True, False):
        found = low_rank_lora(wanted, 0.1, vectors=vectors).tensors
        for name in (NORM, BIAS):
            assert torch.equal(added(found, name), wanted[name].value() if vectors else torch.zeros(16))
        assert any(".diff" in key for key in found) == vectors


def test_what_falls_in_convolutions_is_what_the_matrix_adds() -> None:
    wanted = differences()
    found = low_rank_lora(wanted, 0.05).tensors
    for name in (KERNEL, POINT):
        layer = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        up, down = (found[f"{layer}.lora_{part}.weight"].float() for part in ("up", "down"))
        assert up.shape[2:] == (1, 1) and down.shape[1:] == SHAPES[name][1:]
        picture = torch.randn(2, SHAPES[name][1], 5, 5, generator=torch.Generator().manual_seed(0))
        padding = SHAPES[name][-1] // 2
        in_two = torch.nn.functional.conv2d(torch.nn.functional.conv2d(picture, down, padding=padding), up)
        scale = float(found[f"{layer}.alpha"]) / down.shape[0]
        at_once = torch.nn.functional.conv2d(picture, added(found, name), padding=padding)
        assert torch.allclose(scale * in_two, at_once, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 100])
def test_one_rank_by_hand_is_the_best_of_that_rank(rank: int) -> None:
    wanted = differences()
    found = low_rank_lora(wanted, 0.01, rank)
    for name in (LINEAR, KERNEL, POINT):
        layer = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        matrix = wanted[name].value().flatten(1)
        kept = min(rank, int(torch.linalg.matrix_rank(matrix, rtol=1e-6)))
        assert found.tensors[f"{layer}.lora_down.weight"].shape[0] == kept
        values = torch.linalg.svdvals(matrix.double())
        missed = (added(found.tensors, name).flatten(1) - matrix).norm()
        assert float(missed) == pytest.approx(float(values[kept:].norm()), rel=0.01, abs=1e-3 * float(values.norm()))


def test_all_layers_have_one_alpha_whatever_their_ranks() -> None:
    found = low_rank_lora(differences(), 0.05)
    assert {float(tensor) for key, tensor in found.tensors.items() if key.endswith(".alpha")} == {float(found.rank)}
    assert len({tensor.shape[0] for key, tensor in found.tensors.items() if key.endswith("down.weight")}) > 1


def test_the_exact_form_adds_the_same_bits() -> None:
    wanted = differences()
    found = exact_lora(wanted)
    assert found.error == 0
    for name, difference in wanted.items():
        assert torch.equal(added(found.tensors, name), difference.value())
    # Matrices stay as small as the concept keeps them.
    matrices = sum(2 * math.prod(shape) for shape in SHAPES.values() if len(shape) > 1)
    assert found.size < matrices + 300


def test_a_domain_s_offset_and_the_concept_s_own_difference_are_added_up() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    p, q = 0.01 * torch.randn(20, 1, generator=generator), torch.randn(30, 1, generator=generator)
    own = differences()
    total = TotalDifferences([Scaled(LINEAR, p, q, "a"), *(Full(n, d) for n, d in own.items())], base)
    assert list(total) == list(own)
    offset = StoredDifference.of(base[LINEAR] * (p @ q.T)).value()
    assert torch.equal(total[LINEAR].value(), offset + own[LINEAR].value())
    assert total[KERNEL] is own[KERNEL]
    assert torch.equal(added(exact_lora(total).tensors, LINEAR), total[LINEAR].value())
    alone = TotalDifferences([Scaled(LINEAR, p, q, "a")], base)
    assert torch.equal(alone[LINEAR].value(), offset)
    nothing = TotalDifferences([Scaled(LINEAR, torch.zeros_like(p), q, "a")], base)
    assert not nothing[LINEAR].value().any() and nothing[LINEAR].value().shape == (20, 30)


def spectra(seed: int) -> dict[str, Spectrum]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 5, (3, 2), generator=generator).tolist()
    return {
        str(number): Spectrum(rows, columns, torch.rand(min(rows, columns), generator=generator).double().sort(descending=True)[0])
        for number, (rows, columns) in enumerate(sizes)
    }  # fmt: skip


def numbers(spectra: dict[str, Spectrum], ranks: dict[str, int]) -> int:
    return sum(rank * (spectra[name].rows + spectra[name].columns) for name, rank in ranks.items())


def lost(spectra: dict[str, Spectrum], ranks: dict[str, int]) -> float:
    return sum(float(spectra[name].energies[rank:].sum()) for name, rank in ranks.items())


@pytest.mark.parametrize("seed", range(40))
def test_ranks_are_the_fewest_numbers_up_to_what_one_singular_value_costs(seed: int) -> None:
    given = spectra(seed)
    whole = lost(given, dict.fromkeys(given, 0))
    for share in (0.0, 0.05, 0.3, 0.9, 1.1):
        ranks = choose_ranks(given, share * whole)
        assert lost(given, ranks) <= share * whole + 1e-12
        # No rank can be lower.
        for name in (n for n, rank in ranks.items() if rank):
            assert lost(given, ranks | {name: ranks[name] - 1}) > share * whole - 1e-12
        every = itertools.product(*(range(len(s.energies) + 1) for s in given.values()))
        best = min(
            numbers(given, found)
            for found in (dict(zip(given, ranks, strict=True)) for ranks in every)
            if lost(given, found) <= share * whole + 1e-12
        )
        assert best <= numbers(given, ranks) <= best + max(s.rows + s.columns for s in given.values()) - 1


def test_equal_singular_values_are_shared_out_without_a_rank_too_many() -> None:
    flat = {str(n): Spectrum(4, 4, torch.ones(4).double()) for n in range(3)}
    ranks = choose_ranks(flat, 6.0)
    assert sum(ranks.values()) == 6
    assert choose_ranks({}, 1.0) == {}
    assert choose_ranks({"a": Spectrum(3, 3, torch.zeros(3).double())}, 0.0) == {"a": 0}


def test_a_spectrum_is_that_of_the_svd_also_of_matrices_of_low_rank() -> None:
    for shape in ((5, 9), (9, 5), (6, 6)):
        matrix = torch.randn(shape[0], 3, generator=torch.Generator().manual_seed(1)) @ torch.randn(3, shape[1])
        found = Spectrum.of(matrix)
        assert int((found.energies > 0).sum()) == 3
        assert torch.allclose(found.energies[:3].sqrt(), torch.linalg.svdvals(matrix.double())[:3], rtol=1e-6)
        up, down = factors(matrix, 100)
        assert up.shape[1] == 3
        assert torch.allclose(up @ down, matrix, atol=1e-5)
        assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-4)


def test_differences_too_small_for_half_precision_are_kept_in_float32() -> None:
    tiny = {LINEAR: StoredDifference(1e-13 * torch.randn(20, 30, generator=torch.Generator().manual_seed(0)), 1.0)}
    found = low_rank_lora(tiny, 0.05)
    assert found.tensors["lora_unet_" + LINEAR[:-7].replace(".", "_") + ".lora_up.weight"].dtype == torch.float32
    assert found.error <= 0.05


def test_a_concept_that_changes_nothing_gives_an_empty_file() -> None:
    nothing = {LINEAR: StoredDifference.of(torch.zeros(20, 30))}
    assert low_rank_lora(nothing, 0.05).tensors == {} and low_rank_lora(nothing, 0.05).error == 0


@pytest.mark.parametrize(("error", "rank"), [(0.0, 0), (1.5, 0), (float("nan"), 0), (0.1, -1)])
def test_what_is_out_of_range_is_refused(error: float, rank: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        low_rank_lora(differences(), error, rank)


def test_progress_goes_once_through_all_and_an_error_from_it_ends_the_work() -> None:
    told: list[tuple[int, int]] = []
    low_rank_lora(differences(), 0.1, told=lambda step, steps: told.append((step, steps)))
    assert told == [(step, 2 * len(SHAPES)) for step in range(2 * len(SHAPES))]

    def cancel(step: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exact_lora(differences(), cancel)
