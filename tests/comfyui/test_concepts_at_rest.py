"""Concepts in half precision: what a MODEL draws is what float32 would have drawn, in half the memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import comfy.lora
import comfy.model_patcher
import held_memory
import pytest
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from e4t_pack.nodes.host.networks.base_model import PREFIX
from e4t_pack.nodes.host.networks.effective_weights import ConceptPatch
from e4t_pack.nodes.host.prompt.prompt_memory import PromptMemory
from e4t_pack.nodes.host.sampling.held_concept import bytes_held, tensors_of
from e4t_pack.nodes.host.sampling.patched_model import _native_names, held_concepts, with_concept
from oracle import ksample
from personalized import draw, encode
from test_base_model import unet_lora
from world import QUICK, held, hold, make_concept, photo

from e4t_core.stored_difference import LOST, StoredDifference, energy_lost
from e4t_core.weight_changes import Full


@pytest.fixture
def in_float32(monkeypatch):
    """From its call on, differences are kept in float32 as they come."""

    def switch():
        kept = lambda cls, difference: cls(difference.detach().float().cpu(), 1.0)
        monkeypatch.setattr(StoredDifference, "of", classmethod(kept))

    return switch


def ours(model):
    """Our patches of a MODEL by key, as (strength, stored tensor)."""
    return {
        key: [(patch[0], patch[1][1][0]) for patch in patches if isinstance(patch[1], ConceptPatch)]
        for key, patches in model.patches.items()
    }


def patched(model):
    """All weights in float32 with all patches, as ComfyUI computes them when it loads the MODEL."""
    weights = {}
    for key, (original, *patches) in model.get_key_patches(PREFIX).items():
        weights[key] = comfy.lora.calculate_weight(patches, original[0].float().clone(), key)
    return weights


def concept_of(domain, seed=0, trigger="S*", large=()):
    """Random differences; those of the names in ``large`` need another scale than the rest."""
    concept = make_concept(domain, seed, trigger)
    weights = (
        Full.of(change.name, 1e4 * change.difference()) if isinstance(change, Full) and change.name in large else change
        for change in concept.weights
    )
    return dataclasses.replace(concept, weights=tuple(weights))


def test_patches_are_the_stored_tensors_and_each_scale_is_added_at_once(base, domain, monkeypatch):
    large = [name for name in domain.info.projections if name.endswith("attn1.to_q.weight")]
    added = held(base, concept_of(domain, large=large))
    calls, original = [], comfy.model_patcher.ModelPatcher.add_patches
    monkeypatch.setattr(
        comfy.model_patcher.ModelPatcher,
        "add_patches",
        lambda self, patches, *strengths: calls.append(strengths) or original(self, patches, *strengths),
    )
    model = with_concept(base[0], dataclasses.replace(added, strength=0.5), PromptMemory())
    assert len({stored.scale for stored in added.differences.values()}) == 2
    assert len(calls) == 3, "one for the domain's offset, two for the concept's own"
    names, found = _native_names(base[0]), ours(model)
    for part in (added.shared, added.differences):
        for name, stored in part.items():
            places = [strength for strength, value in found[f"{PREFIX}{names[name]}"] if value is stored.values]
            assert places == [0.5 * stored.scale], name


def arrangements():
    def two(base, concepts):
        model = with_concept(base[0], held(base, concepts[0]), PromptMemory())
        return with_concept(model, at(0.7, held(base, concepts[1])), PromptMemory())

    def merged(base, concepts):
        model = with_concept(base[0], held(base, concepts[0]), PromptMemory())
        return ModelMergeSimple().merge(unet_lora(base[0]), model, 0.3)[0]

    at = lambda strength, held: dataclasses.replace(held, strength=strength)
    one = lambda model, base, concepts, strength=1.0: with_concept(
        model, at(strength, held(base, concepts[0])), PromptMemory()
    )
    return {
        "alone": lambda base, concepts: one(base[0], base, concepts),
        "strength 0.7": lambda base, concepts: one(base[0], base, concepts, 0.7),
        "strength -1.3": lambda base, concepts: one(base[0], base, concepts, -1.3),
        "behind a LoRA": lambda base, concepts: one(unet_lora(base[0]), base, concepts),
        "before a LoRA": lambda base, concepts: unet_lora(one(base[0], base, concepts)),
        "merged with another model": merged,
        "two concepts": two,
    }


@pytest.mark.parametrize("name", arrangements())
def test_weights_are_those_of_float32_differences_up_to_their_own_rounding(name, base, domain, in_float32):
    make = arrangements()[name]
    large = [name for name in domain.info.projections if name.endswith("attn2.to_v.weight")]
    concepts = lambda: [concept_of(domain, 1, "S*", large), concept_of(domain, 2, "T*")]
    stored, plain = patched(make(base, concepts())), patched(base[0])
    in_float32()
    exact = patched(make(base, concepts()))
    moved = {key: value for key, value in exact.items() if (value - plain[key]).abs().max() > 1e-4}
    assert len(moved) == len(domain.info.projections)
    for key, value in moved.items():
        difference = value - plain[key]
        assert energy_lost(difference, stored[key] - plain[key]) < 1e-6, key
    assert all(torch.equal(value, exact[key]) for key, value in stored.items() if key not in moved)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_pictures_are_those_of_float32_differences(sampler, base, domain, in_float32):
    def latents():
        model, clip = hold(base, make_concept(domain))
        conds = {"positive": encode(clip, "a photo of S*"), "negative": encode(clip, "blurry")}
        return ksample(model, conds, 4, sampler), ksample(base[0], conds, 4, sampler)

    stored, _ = latents()
    in_float32()
    exact, stock = latents()
    moved = (exact - stock).square().mean().sqrt()
    assert moved > 0.1
    assert (stored - exact).square().mean().sqrt() < 1e-3 * moved


def test_a_learned_concept_draws_as_with_float32_differences_and_loses_no_energy(run, monkeypatch, in_float32):
    from e4t_pack.nodes.host.learning.result_store import STORE

    settings = dataclasses.replace(QUICK, train_unet=True)
    model, clip, _, _ = run(settings=settings)
    stored = draw(model, clip)
    STORE.clear()
    shares, original = [], StoredDifference.of.__func__

    def measured(cls, difference):
        made = original(cls, difference)
        shares.append(energy_lost(difference.float().cpu(), made.value()))
        return made

    monkeypatch.setattr(StoredDifference, "of", classmethod(measured))
    run(settings=settings)
    assert len(shares) > 100 and max(shares) < 1e-6 < LOST
    STORE.clear()
    in_float32()
    exact_model, exact_clip, _, _ = run(settings=settings)
    exact, stock = draw(exact_model, exact_clip), draw(exact_model, exact_clip, "a photo of a cat")
    assert run.tunings == 3
    moved = (exact - stock).square().mean().sqrt()
    assert moved > 0 and (stored - exact).square().mean().sqrt() < 1e-3 * moved


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_where_comfyui_adds_in_half_precision_scales_do_no_harm(dtype, strength):
    """As it does on cards that compute in half precision, and for weights that are patched on their way into a pass."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.05 * torch.randn((64, 64), generator=generator)).to(dtype)
    for size in (2.4e-5, 1e-3, 1e-1):
        difference = size * torch.randn((64, 64), generator=generator)
        stored = StoredDifference.of(difference)
        errors = []
        for factor, value in ((strength, difference), (strength * stored.scale, stored.values)):
            patches = [(factor, ConceptPatch(("diff", (value,))), 1.0, None, None)]
            got = comfy.lora.calculate_weight(patches, weight.clone(), "key", intermediate_dtype=dtype)
            errors.append(float((got.double() - weight.double() - strength * difference.double()).square().mean()))
        in_float32, in_half = errors
        # Nearly all that is lost is lost by rounding the sum; into bfloat16 the difference is rounded a second time.
        assert in_half <= 1.1 * in_float32


def test_a_difference_that_travels_to_the_card_ahead_of_its_layer_arrives(base, domain):
    """ComfyUI's dynamic loading copies the tensors of patches, whatever they are nested in, into one buffer of bytes."""
    model = with_concept(base[0], held(base, make_concept(domain)), PromptMemory())
    key = next(key for key, patches in model.patches.items() if len(patches) == 2)
    moving = comfy.model_patcher.LowVramPatch(key, model.patches)
    stored = sum(value.nbytes for _, value in ours(model)[key])
    assert stored <= moving.memory_required() < stored + 4096
    weight = model.get_key_patches(PREFIX)[key][0][0].float()
    wanted = moving(weight.clone())
    moving.prepare(torch.empty(moving.memory_required(), dtype=torch.uint8), None)
    assert moving.prepared_patches is not None
    assert torch.equal(moving(weight.clone()), wanted) and not torch.equal(wanted, weight)


def test_concepts_of_one_domain_share_its_offset_which_is_computed_once(run, monkeypatch):
    from e4t_pack.nodes.host.learning.result_store import STORE

    settings = dataclasses.replace(QUICK, train_offsets=False)
    made = [run(settings=settings, seed=seed) for seed in (1, 2)]
    first, second = (held_concepts(model)[0] for model, _, _, _ in made)
    assert run.tunings == 2 and first.shared and first.shared is second.shared
    sheets = sum(kept.sheet_size() for kept in STORE._results.values())
    sizes = [bytes_held(tensors_of(concept)) for _, _, concept, _ in made]
    assert STORE.size() == sum(sizes) + sheets
    lora = run(model=unet_lora(run()[0]), word="T*", settings=settings, image=photo(seed=3))[0]
    assert held_concepts(lora)[-1].shared is not first.shared, "another base has another offset"


def test_held_concepts_take_half_of_float32s_memory_and_the_store_its_bound():
    script = Path(held_memory.__file__)
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=300)
    memory = json.loads(found.stdout.splitlines()[-1])
    assert memory["kept"] == held_memory.KEPT and max(memory["sizes"]) <= memory["limit"]
    half = memory["in_float32"] / 2
    assert memory["sizes"][0] == pytest.approx(half, rel=0.01)
    # Seven were made and four are kept: dropped ones that something still holds would show as well.
    assert 0.95 * held_memory.KEPT * half < memory["grown"] < 1.15 * held_memory.KEPT * half
