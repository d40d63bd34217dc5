from collections.abc import Iterator, Mapping

import pytest
import torch
from tiny import TinyUNet, tiny_domain
from torch import Tensor, nn

from e4t_core.methods.e4t.tuned_weights import TunedWeights
from e4t_core.methods.e4t.weight_offsets import WeightOffsets
from e4t_core.trained_weight import made
from e4t_core.weight_changes import full_differences

UNET = TinyUNet()
BASE = UNET.parameters()
PROJECTIONS = UNET.attention_projections()


def offsets(trains: bool) -> WeightOffsets:
    return tiny_domain(UNET).offsets.requires_grad_(trains)


def expected_start() -> dict[str, Tensor]:
    return offsets(False).apply_all(BASE)


def differences(weights: TunedWeights) -> dict[str, Tensor]:
    return {name: stored.value() for name, stored in full_differences(weights.differences()).items()}


def parameters(weights: TunedWeights) -> list[nn.Parameter]:
    return [parameter for weight in weights.weights.values() for parameter in weight.parameters]


@pytest.mark.parametrize("train_offsets", [False, True])
@pytest.mark.parametrize("train_unet", [False, True])
def test_before_the_first_step_the_weights_are_base_plus_domain_offset(train_offsets: bool, train_unet: bool) -> None:
    weights = TunedWeights(BASE, offsets(train_offsets), train_unet)
    effective = made(weights.weights)
    for name, value in expected_start().items():
        assert torch.equal(effective[name], value)
    for name in effective.keys() - PROJECTIONS.keys():
        assert torch.equal(effective[name], BASE[name])
    assert differences(weights) == {}


def test_without_unet_training_nothing_but_the_projections_is_made() -> None:
    private = offsets(True)
    weights = TunedWeights(BASE, private, train_unet=False)
    assert weights.weights.keys() == PROJECTIONS.keys()
    assert {id(parameter) for parameter in parameters(weights)} == {id(parameter) for parameter in private.parameters()}


def test_no_parameter_belongs_to_two_weights() -> None:
    weights = TunedWeights(BASE, offsets(True), train_unet=True)
    found = [id(parameter) for parameter in parameters(weights)]
    assert len(found) == len(set(found)) == len(BASE) + len(list(offsets(True).parameters()))


def test_nothing_trains_if_nothing_is_to() -> None:
    assert parameters(TunedWeights(BASE, offsets(False), train_unet=False)) == []


def test_with_unet_training_every_base_parameter_has_a_private_copy() -> None:
    weights = TunedWeights(BASE, offsets(False), train_unet=True)
    assert len(parameters(weights)) == len(BASE)
    before = {name: value.clone() for name, value in BASE.items()}
    with torch.no_grad():
        for parameter in parameters(weights):
            parameter += 1
    assert all(torch.equal(BASE[name], value) for name, value in before.items())


class Computed(Mapping[str, Tensor]):
    """Weights that a host computes when they are asked for; ``asked`` counts."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = dict.fromkeys(BASE, 0)

    def __getitem__(self, name: str) -> Tensor:
        self.asked[name] += 1
        return BASE[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(BASE)

    def __len__(self) -> int:
        return len(BASE)


def test_the_base_is_asked_for_each_weight_once_to_begin_and_once_to_compare() -> None:
    base = Computed()
    weights = TunedWeights(base, offsets(True), train_unet=True)
    assert set(base.asked.values()) == {1}
    made(weights.weights)
    assert set(base.asked.values()) == {1}
    differences(weights)
    assert set(base.asked.values()) == {2}


def test_differences_are_what_must_be_added_to_base_plus_domain_offset() -> None:
    private = offsets(True)
    weights = TunedWeights(BASE, private, train_unet=True)
    changed = [name for name in BASE if name == "conv_in.weight" or "attn1.to_q" in name]
    copies = {name: weight.parameters[0] for name, weight in weights.weights.items()}
    first = next(name for name in PROJECTIONS if "attn2.to_k" in name)
    with torch.no_grad():
        for name in changed:
            copies[name] += 0.125
        private.get_submodule(first.removesuffix(".weight")).row.bias += 0.5
    found = differences(weights)
    assert found.keys() == {*changed, first}
    start = BASE | expected_start()
    for name, value in made(weights.weights).items():
        again = start[name] + found[name] if name in found else start[name]
        # What is kept is rounded to float16.
        assert torch.allclose(again, value, atol=1e-6 + float((again - start[name]).abs().max()) / 2**11), name


def test_half_precision_bases_get_float32_masters_and_differences() -> None:
    base = {name: value.half() for name, value in BASE.items()}
    weights = TunedWeights(base, offsets(False), train_unet=True)
    assert all(parameter.dtype == torch.float32 for parameter in parameters(weights))
    with torch.no_grad():
        parameters(weights)[0].view(-1)[0] += 1e-6
    (difference,) = differences(weights).values()
    assert difference.dtype == torch.float32 and difference.abs().max() == pytest.approx(1e-6, rel=0.1)


def test_differences_are_not_rounded_where_a_cpu_tunes_under_autocast() -> None:
    def tuned() -> TunedWeights:
        private = offsets(True)
        weights = TunedWeights(BASE, private, train_unet=False)
        for parameter in private.parameters():
            parameter.data += 1e-4
        return weights

    plain = differences(tuned())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = differences(tuned())
    assert plain.keys() == rounded.keys() == PROJECTIONS.keys()
    assert all(torch.equal(plain[name], rounded[name]) for name in plain)
