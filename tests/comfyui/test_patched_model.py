"""MODELs that hold concepts: nothing at strength 0, one domain offset for many concepts, order of LoRAs, low memory."""

from __future__ import annotations

import dataclasses
import logging

import comfy.model_management
import pytest
import torch
from e4t_pack.nodes.host.networks.base_model import PREFIX, ComfyUNet
from e4t_pack.nodes.host.networks.effective_weights import EffectiveWeights
from e4t_pack.nodes.host.prompt.prompt_memory import PromptMemory
from e4t_pack.nodes.host.sampling.patched_model import (
    LOST,
    _warn_if_lost,
    held_concepts,
    lost_share,
    with_concept,
)
from oracle import ksample
from test_base_model import QUERY, unet_lora
from world import held, make_concept, make_domain

from e4t_core.methods.e4t.weight_offsets import offset_weight
from e4t_core.stored_difference import StoredDifference
from e4t_core.weight_changes import full_differences, shared_factors

NATIVE = f"{PREFIX}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def unet(base):
    return ComfyUNet(base[0])


def parts_of(base, unet, concept):
    return held(base, concept)


def loaded(model):
    """All weights as the sampler sees them."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return {key: value.clone() for key, value in model.model.state_dict().items() if key.startswith(PREFIX)}


def total(*differences):
    return sum(part[QUERY].value() for part in differences)


def stock_conds(base):
    encode = lambda text: base[1].encode_from_tokens_scheduled(base[1].tokenize(text))
    return {"positive": encode("a photo"), "negative": encode("blurry")}


def test_strength_zero_is_the_base_bit_for_bit(base, domain, unet):
    parts = dataclasses.replace(parts_of(base, unet, make_concept(domain)), strength=0.0)
    model = with_concept(base[0], parts, PromptMemory())
    assert not model.patches
    assert held_concepts(model) == (parts,), "its word can be drawn all the same"
    assert torch.equal(ksample(model, stock_conds(base)), ksample(base[0], stock_conds(base)))


def test_zero_offsets_without_differences_leave_the_base_bit_for_bit(base, domain, unet):
    zero = {name: (torch.zeros_like(p), q) for name, (p, q) in domain.offsets.collapse().items()}
    concept = make_concept(domain, factors=zero, differences={})
    model = with_concept(base[0], parts_of(base, unet, concept), PromptMemory())
    assert held_concepts(model)
    assert torch.equal(ksample(model, stock_conds(base)), ksample(base[0], stock_conds(base)))


def test_loaded_weights_are_base_plus_domain_offset_plus_difference(base, domain, unet):
    concept = make_concept(domain)
    weights = loaded(with_concept(base[0], parts_of(base, unet, concept), PromptMemory()))
    own = full_differences(concept.weights)[QUERY].value()
    expected = offset_weight(unet.parameters()[QUERY], *shared_factors(concept.weights)[QUERY]) + own
    moved = (expected - unet.parameters()[QUERY]).abs()
    # Offset and difference are each rounded to half precision, by at most 2**-11 of them.
    assert ((weights[NATIVE] - expected).abs() <= 1e-6 + 2.0**-11 * (moved + 2 * own.abs())).all()
    assert moved.max() > 1e-2


def test_two_concepts_share_one_domain_offset(base, domain, unet):
    first, second = (parts_of(base, unet, make_concept(domain, seed, f"{seed}*")) for seed in (1, 2))
    memory = PromptMemory()
    both = with_concept(with_concept(base[0], first, memory), second, memory)
    expected = unet.parameters()[QUERY] + total(first.shared, first.differences, second.differences)
    assert torch.allclose(loaded(both)[NATIVE], expected, atol=1e-6)
    assert [held.concept.trigger for held in held_concepts(both)] == ["1*", "2*"]
    assert len(held_concepts(with_concept(both, first, memory))) == 2, "a concept held already is not added again"


def test_concepts_of_two_domains_bring_both_offsets(base, domain, unet):
    other = make_domain(unet, "cats", seed=9)
    first, second = parts_of(base, unet, make_concept(domain, 1)), parts_of(base, unet, make_concept(other, 2, "T*"))
    both = with_concept(with_concept(base[0], first, PromptMemory()), second, PromptMemory())
    expected = unet.parameters()[QUERY] + total(first.shared, second.shared, first.differences, second.differences)
    assert torch.allclose(loaded(both)[NATIVE], expected, atol=1e-6)


def test_a_concept_behind_another_is_tuned_on_the_plain_base(base, domain, unet):
    behind = with_concept(base[0], parts_of(base, unet, make_concept(domain)), PromptMemory())
    comfy.model_management.load_models_gpu([behind], force_full_load=True)
    found, alone = EffectiveWeights(behind, PREFIX), EffectiveWeights(base[0], PREFIX)
    assert all(torch.equal(found[key], alone[key]) for key in alone)


def test_loras_before_and_after_add_up_alike(base, domain, unet):
    parts = parts_of(base, unet, make_concept(domain))
    before = loaded(with_concept(unet_lora(base[0]), parts, PromptMemory()))
    after = loaded(unet_lora(with_concept(base[0], parts, PromptMemory())))
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_eviction_and_reload_change_nothing(base, domain, unet):
    model = with_concept(base[0], parts_of(base, unet, make_concept(domain)), PromptMemory())
    conds = stock_conds(base)
    first = ksample(model, conds)
    comfy.model_management.unload_all_models()
    assert torch.equal(ksample(base[0], conds), ksample(base[0], conds))
    assert torch.equal(ksample(model, conds), first)


def test_partly_loaded_weights_give_the_same_picture(base, domain, unet):
    model = with_concept(base[0], parts_of(base, unet, make_concept(domain)), PromptMemory())
    conds = stock_conds(base)
    whole = ksample(model, conds)
    comfy.model_management.unload_all_models()
    # As on a small GPU: most layers stay unpatched, and are patched on the way into each forward pass.
    model.load(torch.device("cpu"), lowvram_model_memory=4 * 2**20)
    network = model.model.diffusion_model
    assert any(getattr(module, "weight_function", None) for module in network.modules())
    z, t = torch.ones((1, 4, 8, 8)), torch.tensor([500.0])
    partly = network(z, t, context=conds["positive"][0][0], transformer_options={})
    model.detach()
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    fully = network(z, t, context=conds["positive"][0][0], transformer_options={})
    assert torch.allclose(partly, fully, atol=1e-4 * float(fully.abs().max()))
    assert torch.equal(ksample(model, conds), whole)


def test_the_base_is_not_changed_by_holding_concepts(base, domain, unet):
    before = loaded(base[0])
    model = with_concept(base[0], parts_of(base, unet, make_concept(domain)), PromptMemory())
    assert not base[0].patches and not base[0].wrappers
    ksample(model, stock_conds(base))
    after = loaded(base[0])
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_size_of_parts_counts_their_tensors(base, domain, unet):
    concept = make_concept(domain)
    small = parts_of(base, unet, make_concept(domain, differences={}))
    assert parts_of(base, unet, concept).size() - small.size() == sum(
        2 * stored.values.numel() for stored in full_differences(concept.weights).values()
    )


@pytest.mark.parametrize(
    ("dtype", "size", "is_lost"),
    [
        (torch.bfloat16, 3e-5, True),
        (torch.bfloat16, 1e-2, False),
        (torch.float16, 1e-4, False),
        (torch.float16, 1e-6, True),
    ],
)
def test_what_a_coarse_float_type_loses_is_measured_and_said(base, domain, caplog, dtype, size, is_lost):
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn((64, 64), generator=generator)
    difference = size * torch.randn((64, 64), generator=generator).sign()
    assert (lost_share(weight.to(dtype), difference) > LOST) == is_lost
    coarse = {key: value.to(dtype) for key, value in base[0].model_state_dict(PREFIX).items()}

    class Coarse:
        model_dtype = staticmethod(lambda: dtype)
        model_state_dict = staticmethod(lambda _prefix: coarse)

    concept = make_concept(domain)
    differences = {
        name: StoredDifference.of(size * stored.value().sign())
        for name, stored in full_differences(concept.weights).items()
    }
    with caplog.at_level(logging.WARNING):
        _warn_if_lost(Coarse, differences)
    assert ("too coarse" in caplog.text) == is_lost
    # What is advised is finer than what there is.
    assert ("fp16" in caplog.text) == (is_lost and dtype == torch.bfloat16)
