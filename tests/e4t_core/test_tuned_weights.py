import pytest
import torch
from tiny import TinyUNet, tiny_domain
from torch import Tensor

from e4t_core.methods.e4t.tuned_weights import TunedWeights
from e4t_core.methods.e4t.weight_offsets import WeightOffsets

UNET = TinyUNet()
BASE = UNET.parameters()
PROJECTIONS = UNET.attention_projections()


def offsets(trains: bool) -> WeightOffsets:
    return tiny_domain(UNET).offsets.requires_grad_(trains)


def expected_start() -> dict[str, Tensor]:
    return offsets(False).apply_all(BASE)


@pytest.mark.parametrize("train_offsets", [False, True])
@pytest.mark.parametrize("train_unet", [False, True])
def test_before_the_first_step_the_weights_are_base_plus_domain_offset(train_offsets: bool, train_unet: bool) -> None:
    weights = TunedWeights(BASE, offsets(train_offsets), train_offsets, train_unet)
    effective = weights.effective()
    for name, value in expected_start().items():
        assert torch.equal(effective[name], value)
    for name in effective.keys() - PROJECTIONS.keys():
        assert torch.equal(effective[name], BASE[name])
    assert weights.differences() == {}


def test_without_unet_training_nothing_but_the_projections_is_made() -> None:
    private = offsets(True)
    weights = TunedWeights(BASE, private, train_offsets=True, train_unet=False)
    assert weights.effective().keys() == PROJECTIONS.keys()
    assert {id(parameter) for parameter in weights.parameters} == {id(parameter) for parameter in private.parameters()}


def test_products_are_made_once_if_nothing_can_change() -> None:
    weights = TunedWeights(BASE, offsets(False), train_offsets=False, train_unet=False)
    assert weights.effective() is weights.effective()
    assert weights.parameters == []


def test_with_unet_training_every_base_parameter_has_a_private_copy() -> None:
    weights = TunedWeights(BASE, offsets(False), train_offsets=False, train_unet=True)
    assert len(weights.parameters) == len(BASE)
    before = {name: value.clone() for name, value in BASE.items()}
    with torch.no_grad():
        for parameter in weights.parameters:
            parameter += 1
    assert all(torch.equal(BASE[name], value) for name, value in before.items())


def test_inference_tensors_are_cloned_so_that_autograd_can_save_them() -> None:
    with torch.inference_mode():
        base = {name: value.clone() for name, value in BASE.items()}
    weights = TunedWeights(base, offsets(True), train_offsets=True, train_unet=False)
    effective = weights.effective()
    assert effective.keys() == base.keys() and not any(value.is_inference() for value in effective.values())
    assert weights.differences() == {}


def test_differences_are_what_must_be_added_to_base_plus_domain_offset() -> None:
    private = offsets(True)
    weights = TunedWeights(BASE, private, train_offsets=True, train_unet=True)
    changed = [name for name in BASE if name == "conv_in.weight" or "attn1.to_q" in name]
    copies = dict(zip(BASE, weights.parameters, strict=False))
    first = next(name for name in PROJECTIONS if "attn2.to_k" in name)
    with torch.no_grad():
        for name in changed:
            copies[name] += 0.125
        private.get_submodule(first.removesuffix(".weight")).row.bias += 0.5
    differences = weights.differences()
    assert differences.keys() == {*changed, first}
    start = BASE | expected_start()
    for name, value in weights.effective().items():
        again = start[name] + differences[name] if name in differences else start[name]
        assert torch.allclose(again, value, atol=1e-6)


def test_half_precision_bases_get_float32_masters_and_differences() -> None:
    base = {name: value.half() for name, value in BASE.items()}
    weights = TunedWeights(base, offsets(False), train_offsets=False, train_unet=True)
    assert all(parameter.dtype == torch.float32 for parameter in weights.parameters)
    with torch.no_grad():
        weights.parameters[0].view(-1)[0] += 1e-6
    (difference,) = weights.differences().values()
    assert difference.dtype == torch.float32 and difference.abs().max() == pytest.approx(1e-6, rel=0.1)


def test_differences_are_not_rounded_where_a_cpu_tunes_under_autocast() -> None:
    def tuned() -> TunedWeights:
        private = offsets(True)
        weights = TunedWeights(BASE, private, train_offsets=True, train_unet=False)
        for parameter in private.parameters():
            parameter.data += 1e-4
        return weights

    plain = tuned().differences()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tuned().differences()
    assert plain.keys() == rounded.keys() == PROJECTIONS.keys()
    assert all(torch.equal(plain[name], rounded[name]) for name in plain)
