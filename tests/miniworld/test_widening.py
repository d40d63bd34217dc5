"""Widening from 160 to 320 channels changes nothing that is computed, for the UNet and for a domain."""

from __future__ import annotations

import pytest
import torch

from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.weight_offsets import WeightOffsets
from miniworld.domains import widen_domain
from miniworld.training_unet import TrainingUNet
from miniworld.unet import UNetModel, UNetShape
from miniworld.widen import double, widen_unet

SMALL = {"input_depths": ((1,),), "output_depths": ((0, 1),), "middle_depth": 1}
# Sums over twice as many halves, in float32.
TOLERANCE = 2e-5


def _networks() -> tuple[UNetModel, UNetModel]:
    torch.manual_seed(0)
    narrow, wide = UNetModel(UNetShape(width=160, **SMALL)), UNetModel(UNetShape(width=320, **SMALL))
    wide.load_state_dict(widen_unet(narrow.state_dict(), tie_break=0.0))
    return narrow.eval(), wide.eval()


@pytest.fixture(scope="module")
def networks() -> tuple[UNetModel, UNetModel]:
    return _networks()


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 768, generator=generator)
    return z, torch.tensor([10, 900]), context


@torch.no_grad()
def test_the_widened_unet_predicts_the_same(networks, inputs) -> None:
    narrow, wide = networks
    first, second = narrow(*inputs), wide(*inputs)
    assert first.std() > 0.01
    assert torch.allclose(first, second, atol=TOLERANCE * float(first.abs().max()) * 10)


def test_ties_are_broken_reproducibly_and_slightly(networks) -> None:
    state = networks[0].state_dict()
    exact, broken, again = widen_unet(state, 0.0), widen_unet(state, 0.01), widen_unet(state, 0.01)
    name = "middle_block.0.in_layers.2.weight"
    assert torch.equal(broken[name], again[name])
    relative = (broken[name] - exact[name]).norm() / exact[name].norm()
    assert float(relative) == pytest.approx(0.01, rel=0.05)


def _random_domain(unet: TrainingUNet) -> tuple[ConceptEncoder, WeightOffsets]:
    generator = torch.Generator().manual_seed(2)
    encoder = ConceptEncoder(3, 16, unet.feature_width, 768, generator=generator)
    offsets = WeightOffsets(unet.attention_projections(), generator=generator)
    with torch.no_grad():
        for name, parameter in offsets.named_parameters():
            if ".row." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return encoder, offsets


@torch.no_grad()
def test_a_widened_domains_encoder_says_the_same(networks) -> None:
    narrow, wide = (TrainingUNet(network) for network in networks)
    encoder, offsets = _random_domain(narrow)
    wide_encoder, _ = widen_domain(encoder, offsets)
    assert wide_encoder.feature_width == wide.feature_width == 2 * narrow.feature_width
    clip_features, features = torch.randn(2, 3, 16), torch.randn(2, narrow.feature_width)
    expected = encoder(clip_features, features)
    assert torch.allclose(expected, wide_encoder(clip_features, double(features, 1)), atol=1e-5)


@torch.no_grad()
def test_a_widened_domains_offsets_change_the_widened_unet_as_the_narrow_ones_change_the_narrow(
    networks, inputs
) -> None:
    narrow, wide = (TrainingUNet(network) for network in networks)
    encoder, offsets = _random_domain(narrow)
    _, wide_offsets = widen_domain(encoder, offsets)
    assert wide_offsets.shapes == wide.attention_projections()
    before = narrow.denoise(*inputs)
    with narrow.using(offsets.apply_all(narrow.parameters())):
        first = narrow.denoise(*inputs)
    with wide.using(wide_offsets.apply_all(wide.parameters())):
        second = wide.denoise(*inputs)
    assert (first - before).abs().max() > 1e-3
    assert torch.allclose(first, second, atol=1e-4)
