"""The forms of weight offsets that the paper compares: as a tuned concept, as a domain file, and against their definitions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos
from tuned import draws_with, factors, tune, tuned_weights

from e4t_core.files.domain_file import DomainFileError, load_domain, save_domain
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.offset_forms import DirectOffsets, HyperOffsets, make_offsets
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.weight_offsets import Offsets, WeightOffsets

NAME = "block.attn2.to_k.weight"
FORMS = ("network", "direct", "hypernetwork")
QUICK = TuningSettings(steps=2, learning_rate=1e-2, batch=4, micro_batch=2, eps=1e-2)


def moved(offsets: Offsets) -> Offsets:
    """With every parameter away from zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in offsets.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return offsets


def domain_of(form: str) -> Domain:
    unet = TinyUNet()
    plain = tiny_domain(unet)
    width = plain.info.backbone.width if form == "hypernetwork" else 1
    offsets = moved(make_offsets(form, plain.info.projections, width))
    return Domain(plain.encoder, offsets, dataclasses.replace(plain.info, v_size=width, offset_form=form))


def test_direct_offsets_are_a_factor_for_every_entry() -> None:
    offsets = moved(DirectOffsets({NAME: (5, 3)}))
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    delta = offsets.state_dict()["block.attn2.to_k.delta"]
    assert delta.shape == (5, 3)
    assert torch.equal(offsets.apply_all({NAME: weight})[NAME], weight * (1 + delta))
    assert torch.linalg.matrix_rank(delta) == 3


def test_a_hypernetwork_is_the_four_layers_on_what_clip_says() -> None:
    offsets = moved(HyperOffsets({NAME: (5, 3)}, 6))
    features = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(2))
    layers = offsets.get_submodule(NAME.removesuffix(".weight"))
    said = (features[0, -1] - features[0, -1].mean()) / (features[0, -1].var(unbiased=False) + 1e-5).sqrt()
    delta = layers.row(layers.column(torch.outer(layers.y(said), layers.u(said))).T).T
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(offsets.apply_all({NAME: weight}, features)[NAME], weight * (1 + delta), atol=1e-6)
    assert not any(name.endswith("v0") for name in offsets.state_dict())
    with pytest.raises(ValueError, match="need the photo's CLIP features"):
        offsets.apply_all({NAME: weight})


@pytest.mark.parametrize("form", FORMS)
def test_every_form_starts_at_zero_can_leave_it_and_can_be_fixed(form: str) -> None:
    offsets = make_offsets(form, {NAME: (5, 3)}, 6)
    features = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    now = offsets.apply_all({NAME: weight}, features)[NAME]
    assert torch.equal(now, weight)
    now.square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in offsets.parameters())
    fixed = moved(offsets).fixed(features)
    before = fixed.apply(NAME, weight)
    assert torch.allclose(before, offsets.apply_all({NAME: weight}, features)[NAME], atol=1e-6)
    assert not before.requires_grad
    moved(offsets)
    assert torch.equal(fixed.apply(NAME, weight), before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_tuned_concept_draws_with_the_weights_that_it_was_tuned_with(form: str, steps: int) -> None:
    unet, domain, photos = TinyUNet(), domain_of(form), tiny_photos(2)
    frozen = dataclasses.replace(QUICK, steps=steps, train_offsets=False, train_unet=False)
    concept = tune(unet, TinyText(), domain, photos, frozen, 1)
    base = unet.parameters()
    features = photos.clip_features.mean(dim=0, keepdim=True)
    wanted = dict(base) | domain.offsets.apply_all(base, features)
    got = tuned_weights(unet, concept)
    assert draws_with(concept, got, wanted, atol=1e-6)
    assert not torch.allclose(wanted[domain.offsets.names[0]], base[domain.offsets.names[0]], atol=1e-4)
    assert bool(factors(concept)) == (form != "hypernetwork")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_tuned(form: str) -> None:
    domain = domain_of(form)
    concepts = [
        tune(TinyUNet(), TinyText(), domain, tiny_photos(), dataclasses.replace(QUICK, **changes), 1)
        for changes in ({"train_unet": False}, {"train_unet": False, "train_offsets": False})
    ]
    first, second = (tuned_weights(TinyUNet(), concept) for concept in concepts)
    changed = {name for name in first if not torch.allclose(first[name], second[name], atol=1e-6)}
    assert changed == set(domain.offsets.names)


@pytest.mark.parametrize("form", FORMS)
def test_a_domain_file_keeps_the_form(form: str, tmp_path: Path) -> None:
    domain = domain_of(form)
    save_domain(tmp_path / "a.safetensors", domain)
    loaded = load_domain(tmp_path / "a.safetensors")
    assert type(loaded.offsets) is type(domain.offsets)
    assert loaded.fingerprint == domain.fingerprint
    photo = tiny_photos().clip_features
    name = domain.offsets.names[0]
    weight = torch.ones(domain.offsets.shapes[name])
    # Not bit for bit: products may round otherwise where the loaded tensors lie at another alignment in memory.
    got, wanted = (offsets.fixed(photo).apply(name, weight) for offsets in (loaded.offsets, domain.offsets))
    assert torch.allclose(got, wanted, rtol=0, atol=1e-6)


def test_an_unknown_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cubic' must be one of network, direct, hypernetwork"):
        make_offsets("cubic", {NAME: (2, 2)}, 1)
    with pytest.raises(ValueError, match="offset_form = 'cubic' must be one of"):
        dataclasses.replace(tiny_domain(TinyUNet()).info, offset_form="cubic")
    domain = domain_of("direct")
    wrong = Domain(domain.encoder, WeightOffsets(domain.info.projections), domain.info)
    save_domain(tmp_path / "a.safetensors", wrong)
    with pytest.raises(DomainFileError, match="lacks .* tensors"):
        load_domain(tmp_path / "a.safetensors")


def test_the_input_of_a_hypernetwork_is_normalized() -> None:
    offsets = moved(HyperOffsets({NAME: (5, 3)}, 6))
    features = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(2))
    weight = torch.ones(5, 3)
    scaled = offsets.fixed(100 * features).apply(NAME, weight)
    assert torch.allclose(scaled, offsets.fixed(features).apply(NAME, weight), atol=1e-3)
    assert F.layer_norm(features[:, -1], (6,)).abs().max() < 3
