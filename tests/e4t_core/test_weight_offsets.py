import pytest
import torch
from tiny import stable_diffusion_projections
from torch import Tensor

from e4t_core.methods.e4t.weight_offsets import WeightOffsets

NAME = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def offsets_of(shape: tuple[int, int], v_size: int = 1) -> WeightOffsets:
    """Offsets with every parameter away from zero, in float64."""
    offsets = WeightOffsets({NAME: shape}, v_size).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in offsets.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return offsets


def naive_delta(offsets: WeightOffsets) -> Tensor:
    """The paper's four layers as they are drawn: an outer product, a linear over columns, a linear over rows."""
    layers = offsets.get_submodule(NAME.removesuffix(".weight"))
    product = torch.outer(layers.y(layers.v0), layers.u(layers.v0))
    return layers.row(layers.column(product).T).T


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 6), (6, 1)])
@pytest.mark.parametrize("v_size", [1, 3])
def test_the_rank_3_form_is_the_four_layer_network_in_values_and_gradients(shape: tuple[int, int], v_size: int) -> None:
    offsets = offsets_of(shape, v_size)
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pull = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameters = list(offsets.parameters())

    p, q = offsets.factors(NAME)
    assert p.shape == (shape[0], 3) and q.shape == (shape[1], 3)
    assert torch.allclose(p @ q.T, naive_delta(offsets), rtol=0, atol=1e-10)

    ours = torch.autograd.grad((offsets.applied(NAME, weight) * pull).sum(), parameters)
    naive = torch.autograd.grad((weight * (1 + naive_delta(offsets)) * pull).sum(), parameters)
    for one, other in zip(ours, naive, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_a_transposed_offset_would_be_noticed() -> None:
    delta = naive_delta(offsets_of((5, 5)))
    assert not torch.allclose(delta, delta.T, atol=1e-3)


def test_the_rank_is_at_most_3() -> None:
    offsets = offsets_of((9, 8), v_size=6)
    p, q = offsets.factors(NAME)
    assert torch.linalg.matrix_rank(p @ q.T) == 3


def test_at_the_start_the_offset_is_zero_and_the_weights_are_the_bases_bit_for_bit() -> None:
    offsets = WeightOffsets({NAME: (7, 4)})
    weight = torch.randn(7, 4)
    assert torch.equal(offsets.applied(NAME, weight), weight)


def test_it_can_leave_zero() -> None:
    offsets = WeightOffsets({NAME: (7, 4)})
    offsets.applied(NAME, torch.ones(7, 4)).pow(2).sum().backward()
    layers = offsets.get_submodule(NAME.removesuffix(".weight"))
    assert layers.row.weight.grad.abs().min() > 0 and layers.row.bias.grad.abs().min() > 0


def test_stable_diffusions_offsets_have_the_known_sizes() -> None:
    offsets = WeightOffsets(stable_diffusion_projections(), device="meta")
    assert len(offsets.names) == 96
    assert sum(parameter.numel() for parameter in offsets.parameters()) == 143_226_592
    collapsed = offsets.collapse()
    assert sum(p.numel() + q.numel() for p, q in collapsed.values()) == 448_128
    wider = WeightOffsets(stable_diffusion_projections(), v_size=2, device="meta")
    more = sum(p.numel() for p in wider.parameters()) - sum(p.numel() for p in offsets.parameters())
    # One more input column of y and u each, and one more entry of v0, per matrix.
    assert more == 149_376 + 96


def test_collapsed_factors_are_the_trained_ones_without_gradients() -> None:
    offsets = offsets_of((7, 4))
    p, q = offsets.collapse()[NAME]
    assert not p.requires_grad and not q.requires_grad
    assert torch.allclose(p @ q.T, naive_delta(offsets), rtol=0, atol=1e-10)


def test_all_matrices_are_applied_and_other_weights_left_out() -> None:
    other = NAME.replace("to_k", "to_v")
    offsets = WeightOffsets({NAME: (3, 2), other: (3, 2)})
    assert set(offsets.apply_all({NAME: torch.ones(3, 2), other: torch.ones(3, 2), "conv.weight": torch.ones(1)})) == {
        NAME,
        other,
    }


def test_state_keys_read_like_the_canonical_names() -> None:
    place = NAME.removesuffix(".weight")
    layers = [f"{layer}.{kind}" for layer in ("y", "u", "column", "row") for kind in ("weight", "bias")]
    assert set(WeightOffsets({NAME: (3, 2)}).state_dict()) == {f"{place}.{key}" for key in ["v0", *layers]}


def test_the_start_follows_its_generator_and_leaves_the_global_stream_alone() -> None:
    before = torch.random.get_rng_state()
    states = [WeightOffsets({NAME: (3, 2)}, generator=torch.Generator().manual_seed(s)).state_dict() for s in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    key = NAME.removesuffix("weight") + "column.weight"
    assert torch.equal(states[0][key], states[1][key]) and not torch.equal(states[0][key], states[2][key])


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="'to_q'"):
        WeightOffsets({"to_q": (3, 2)})
    with pytest.raises(KeyError, match="other"):
        WeightOffsets({NAME: (3, 2)}).factors("other.weight")


def test_autocast_does_not_round_what_was_learned() -> None:
    """In bfloat16, 1 + Δ of a small Δ is 1: an offset would have no effect until it is far too large."""
    shapes = {"block.to_q.weight": (8, 6)}
    offsets = WeightOffsets(shapes)
    with torch.no_grad():
        for parameter in offsets.parameters():
            parameter.add_(3e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    base = {"block.to_q.weight": torch.randn(8, 6, generator=torch.Generator().manual_seed(2))}
    plain = offsets.apply_all(base)["block.to_q.weight"]
    assert 0 < (plain / base["block.to_q.weight"] - 1).abs().median() < 2**-8
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(offsets.apply_all(base)["block.to_q.weight"], plain)
        assert not torch.equal(1.0 + torch.ones(8, 3) @ torch.full((3, 6), 1e-3), torch.full((8, 6), 1.003)), "blind"
