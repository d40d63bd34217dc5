"""The node "E4T Personalize" from photo to picture: results, store, determinism, what a person sees."""

from __future__ import annotations

import copy
import dataclasses
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import comfy.lora
import learn
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from e4t_pack.nodes.host.learning.result_store import STORE, ResultStore
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from e4t_pack.nodes.host.sampling import patched_model
from e4t_pack.nodes.host.sampling.held_concept import bytes_held, tensors_of
from oracle import clip_lora, clip_skip, ksample
from personalized import draw, encode
from test_base_model import unet_lora
from world import LOOKING, QUICK, held, make_base, make_domain, photo

from e4t_core.loop_settings import SamplingSettings
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.stored_difference import StoredDifference
from e4t_core.weight_changes import Full, Scaled, full_differences

OFFSETS_ONLY = dataclasses.replace(QUICK, train_encoder=False)


def test_a_photo_goes_in_and_a_word_comes_out(run, base, untouched):
    model, clip, parts, losses = run(settings=LOOKING)
    assert losses == {"loss": list(parts.losses)} and len(losses["loss"]) == QUICK.steps
    with_word, without = draw(model, clip), draw(model, clip, "a photo of a cat")
    assert torch.isfinite(with_word).all() and not torch.equal(with_word, without)
    assert torch.equal(without, draw(base[0], base[1], "a photo of a cat")), (
        "the concept left a trace without its trigger"
    )
    untouched()


def test_several_photos_are_one_concept(run):
    _, _, parts, _ = run(image=photo(3))
    assert parts.predictor.clip_features.shape[0] == 1


def test_zero_steps_are_the_encoder_s_first_answer(run, base, domain):
    model, clip, parts, losses = run(settings=dataclasses.replace(QUICK, steps=0))
    assert losses == {"loss": []}
    assert full_differences(parts.weights) == {}
    assert torch.isfinite(draw(model, clip)).all()


def test_zero_steps_with_zero_offsets_are_the_untouched_base(run, base, domain):
    with torch.inference_mode(False), torch.no_grad():
        offsets = copy.deepcopy(domain.offsets)
        for module in offsets.modules():
            if hasattr(module, "row"):
                module.row.weight.zero_()
                module.row.bias.zero_()
    plain = dataclasses.replace(domain, offsets=offsets)
    model, _, _, _ = run(settings=dataclasses.replace(QUICK, steps=0), of=plain)
    assert torch.equal(draw(model, base[1], "a photo of a cat"), draw(base[0], base[1], "a photo of a cat"))


def test_refinement_off_equals_stock_nodes_on_the_same_patched_weights(run):
    model, clip, _, _ = run(refine=False)
    stock = model.clone()
    stock.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, patched_model.KEY)
    assert torch.equal(draw(model, clip), draw(stock, clip))


def test_a_prompt_without_the_word_equals_stock_nodes_on_the_same_patched_weights(run, base):
    model, clip, _, _ = run(needs_trigger=False)
    stock = model.clone()
    stock.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, patched_model.KEY)
    assert torch.equal(draw(model, clip, "a photo of a cat"), draw(stock, base[1], "a photo of a cat"))


def test_the_word_is_frozen_after_end_percent(run, monkeypatch):
    from e4t_pack.nodes.host.prompt.concept_clip import ConceptCLIP

    calls, original = [], ConceptCLIP.encode_again
    monkeypatch.setattr(ConceptCLIP, "encode_again", lambda self, *a: calls.append(1) or original(self, *a))
    model, clip, _, _ = run(end_percent=0.5)
    draw(model, clip, steps=6)
    frozen_calls = len(calls)
    assert 1 <= frozen_calls < 6
    calls.clear()
    model, clip, _, _ = run(end_percent=0.0)
    draw(model, clip, steps=4)
    assert len(calls) == 1


# Store ------------------------------------------------------------------------------------------------------------


def test_another_prompt_or_an_unrelated_workflow_in_between_does_not_tune_again(run):
    first = run()
    draw(first[0], first[1])
    again = run()
    assert run.tunings == 1
    assert torch.equal(draw(first[0], first[1]), draw(again[0], again[1]))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"image": photo(seed=5)},
        {"mask": torch.ones((1, 8, 8)) * (torch.arange(8) < 4)},
        {"settings": dataclasses.replace(QUICK, learning_rate=2e-4)},
    ],
    ids=["seed", "image", "mask", "settings"],
)
def test_what_decides_a_concept_tunes_again(run, change):
    run()
    run(**change)
    assert run.tunings == 2


def other_vae(base):
    """The same kind of VAE with one weight changed."""
    vae = copy.copy(base[2])
    vae.patcher = base[2].patcher.clone()
    key = next(iter(vae.patcher.get_key_patches()))
    vae.patcher.add_patches({key: ("diff", (torch.ones_like(vae.patcher.model_state_dict()[key]),))})
    return vae


@pytest.mark.parametrize(
    "change",
    [
        lambda base: {"model": unet_lora(base[0])},
        lambda base: {"clip": clip_lora(base[1])},
        lambda base: {"clip": clip_skip(base[1])},
        lambda base: {"vae": other_vae(base)},
        lambda base: {"of": make_domain(ComfyUNet(base[0]), seed=3)},
    ],
    ids=["LoRA on the MODEL", "LoRA on the CLIP", "clip skip", "VAE", "domain"],
)
def test_what_is_wired_in_decides_too(run, base, change):
    instant = dataclasses.replace(QUICK, steps=0)
    run(settings=instant)
    run(settings=instant, **change(base))
    assert run.tunings == 2
    run(settings=instant, **change(base))
    assert run.tunings == 2, "equal content was learned twice"


def test_another_word_for_the_same_photo_needs_no_tuning(run):
    _, _, first, _ = run()
    model, clip, second, _ = run(word="T*")
    assert run.tunings == 1
    assert (first.trigger, second.trigger) == ("S*", "T*")
    assert not torch.equal(draw(model, clip, "a photo of T*"), draw(model, clip, "a photo of S*"))


@pytest.mark.parametrize(
    "change",
    [{"refine": False}, {"end_percent": 0.5}, {"refine_every": 2}],
    ids=["refine", "end_percent", "refine_every"],
)
def test_how_it_is_sampled_needs_no_tuning_and_gives_what_a_tuning_with_it_gives(run, change):
    tuned_with = run(**change)
    STORE.clear()
    first = run()
    found = run(**change)
    assert run.tunings == 2
    assert (first[2].sampling, found[2].sampling) == (SamplingSettings(), SamplingSettings(**change))
    assert found[2].fingerprint == tuned_with[2].fingerprint
    expected = draw(tuned_with[0], tuned_with[1], steps=4)
    assert torch.equal(draw(found[0], found[1], steps=4), expected)
    assert not torch.equal(draw(first[0], first[1], steps=4), expected)


def size_of(concept):
    """Bytes of RAM of a concept."""
    return bytes_held(tensors_of(concept))


def scaled(concept):
    """The domain's part of a concept's weight changes."""
    return tuple(change for change in concept.weights if isinstance(change, Scaled))


def test_the_store_stays_within_its_bound_over_twenty_results(run, base, domain):
    _, _, parts, _ = run(settings=OFFSETS_ONLY)
    differences, size = full_differences(parts.weights), size_of(parts)
    own = sum(stored.values.nbytes for stored in differences.values())
    # All share the domain's factors and the encoder, which count once.
    store = ResultStore(limit=size + 2 * own + 1)
    for seed in range(20):
        copies = (
            Full(name, StoredDifference(stored.values.clone(), stored.scale)) for name, stored in differences.items()
        )
        store.put(str(seed), dataclasses.replace(parts, weights=(*scaled(parts), *copies)))
        assert store.size() == size + min(seed, 2) * own <= store.limit
    assert len(store) == 3
    assert store.get("19") is not None and store.get("0") is None


def test_twenty_tunings_with_twenty_seeds_keep_memory_flat(run, monkeypatch):
    settings = dataclasses.replace(QUICK, steps=1, batch=1, micro_batch=1)
    _, _, parts, _ = run(settings=settings)
    size = size_of(parts)
    monkeypatch.setattr(STORE, "limit", 2 * size + 1)
    alive, total = [], []
    for seed in range(20):
        model, clip, made, _ = run(settings=settings, seed=100 + seed)
        assert full_differences(made.weights)
        alive.append(weakref.ref(next(made.predictor.encoder.parameters())))
        conds = {"positive": encode(clip, f"a photo of S* {seed}"), "negative": encode(clip, "blurry")}
        ksample(model, conds, steps=1)
        del model, clip, made, conds
        gc.collect()
        tensors = (value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter))
        total.append(sum(value.nbytes for value in tensors if value.layout == torch.strided))
    assert len(STORE) <= 2
    assert sum(ref() is not None for ref in alive) <= 2, "dropped results are still held somewhere"
    # Fourteen tunings later not even one more result's worth is held (encoded prompts add a little, up to a bound).
    assert total[-1] - total[5] < size, f"tensors add up: {total}, a result has {size}"


def test_conditioning_cached_while_the_model_is_made_again_still_refines(run):
    model, clip, _, _ = run()
    conds = {"positive": encode(clip, "a photo of S*"), "negative": encode(clip, "blurry")}
    first = ksample(model, conds)
    del model, clip
    STORE._results.clear()
    model, _, _, _ = run()
    assert run.tunings == 2
    assert torch.equal(ksample(model, conds), first)


@pytest.mark.parametrize("form", ["direct", "hypernetwork"])
def test_domains_with_other_forms_of_offsets_work(form, run, base):
    domain = make_domain(ComfyUNet(base[0]), form, offset_form=form)
    first_model, first_clip, _, _ = run(of=domain)
    stock = ksample(base[0], {"positive": encode(base[1], "a photo"), "negative": encode(base[1], "blurry")})
    drawn = ksample(
        first_model, {"positive": encode(first_clip, "a photo of S*"), "negative": encode(first_clip, "blurry")}
    )
    assert not torch.equal(stock, drawn)
    # What all concepts of the domain share is in MODEL once, however many there are.
    _, _, alone, _ = run(of=domain, word="T*", seed=2)
    _, _, behind, _ = run(model=first_model, clip=first_clip, of=domain, word="T*", seed=2)
    assert alone.fingerprint == behind.fingerprint
    assert bool(patched_model.held_concepts(first_model)[0].shared) == (form == "direct")


# Determinism ------------------------------------------------------------------------------------------------------


def test_equal_inputs_give_an_equal_concept_bit_for_bit(run, embeddings, domain):
    _, _, first, _ = run(settings=LOOKING)
    STORE.clear()
    fresh = make_base(embeddings=embeddings)
    _, _, second, _ = run(*fresh, settings=LOOKING)
    assert run.tunings == 2
    assert first.fingerprint == second.fingerprint
    differences, again = full_differences(first.weights), full_differences(second.weights)
    assert differences and differences.keys() == again.keys()
    assert all(torch.equal(stored.value(), again[key].value()) for key, stored in differences.items())
    assert torch.equal(first.embedding[0], second.embedding[0])


def test_a_new_process_learns_the_same_bit_for_bit(run):
    """It starts with an empty store and loads everything anew."""
    script = Path(learn.__file__)
    other = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=300)
    STORE.clear()
    parts = run(settings=LOOKING)[2]
    assert run.tunings == 1
    assert other.stdout.split()[-1] == learn.learned(parts)


def probe(base, parts):
    """Noise predictions ``(64, 4, 8, 8)`` of the tuned weights on 64 fixed latents, timesteps and contexts."""
    generator = torch.Generator().manual_seed(77)
    unet = ComfyUNet(base[0])
    tuned = dict(unet.parameters())
    for extra in (held(base, parts).shared, full_differences(parts.weights)):
        tuned |= {name: tuned[name] + stored.value() for name, stored in extra.items()}
    outputs = []
    with unet.using(tuned):
        for start in range(0, 64, 8):
            z, t = torch.randn((8, 4, 8, 8), generator=generator), torch.arange(start, start + 8) * 15
            outputs.append(unet.denoise(z, t, torch.randn((8, 77, 768), generator=generator)))
    return torch.cat(outputs)


def test_the_micro_batch_changes_predictions_by_rounding_only(run, base):
    """Adam's first steps are nearly the sign of the gradient, so a rounding flips single tiny weights' steps; what the
    network says then moves by far less than the tuning moved it: at most a hundredth of that.
    """
    settings = TuningSettings(
        steps=1, learning_rate=1e-4, regularization=0.01, batch=4, micro_batch=4, find_subject=False
    )
    made = {micro: run(settings=dataclasses.replace(settings, micro_batch=micro))[2] for micro in (4, 2, 1)}
    predictions = {micro: probe(base, parts) for micro, parts in made.items()}
    untuned = probe(base, dataclasses.replace(made[4], weights=scaled(made[4])))
    moved = (predictions[4] - untuned).square().mean().sqrt()
    assert moved > 0
    for micro in (2, 1):
        assert (predictions[micro] - predictions[4]).square().mean().sqrt() <= 0.01 * moved


def test_b_alone_equals_b_behind_a_bit_for_bit(run):
    model, clip, _, _ = run(word="A*", image=photo(seed=3))
    draw(model, clip, "A*")
    both, both_clip, behind, _ = run(model=model, clip=clip, word="B*", image=photo(seed=4))
    STORE.clear()
    _, _, alone, _ = run(word="B*", image=photo(seed=4))
    assert behind.fingerprint == alone.fingerprint
    differences = full_differences(behind.weights)
    assert all(
        torch.equal(stored.value(), differences[name].value())
        for name, stored in full_differences(alone.weights).items()
    )
    assert len(patched_model.held_concepts(both)) == 2
    assert not torch.equal(draw(both, both_clip, "A*"), draw(both, both_clip, "B*"))


def test_a_lora_on_the_base_is_tuned_on_and_one_behind_is_drawn_with(run, base):
    _, _, plain, _ = run()
    model, clip, with_lora, _ = run(model=unet_lora(base[0]))
    assert run.tunings == 2
    assert plain.fingerprint != with_lora.fingerprint
    assert not torch.equal(draw(model, clip), draw(unet_lora(model), clip))


# Concepts behind each other ----------------------------------------------------------------------------------------


def test_a_word_that_the_model_has_already_is_refused_before_any_work(run, base):
    model, _, _, _ = run()
    with pytest.raises(patched_model.WordTakenError, match=r"'S\*' already stands for another concept in this MODEL"):
        run(model=model, clip=base[1], image=photo(seed=4))
    assert run.tunings == 1


def test_the_same_photo_again_behind_itself_is_sampled_as_the_last_node_says(run, monkeypatch):
    from e4t_pack.nodes.host.prompt.concept_clip import ConceptCLIP

    calls, original = [], ConceptCLIP.encode_again
    monkeypatch.setattr(ConceptCLIP, "encode_again", lambda self, *a: calls.append(1) or original(self, *a))
    first = run()
    draw(first[0], first[1], steps=2)
    assert len(calls) == 2
    model, clip, _, _ = run(model=first[0], clip=first[1], word="T*", refine=False)
    calls.clear()
    draw(model, clip, "a photo of T*", steps=2)
    assert run.tunings == 1 and not calls
    once = {key: len(patches) for key, patches in first[0].patches.items()}
    assert {key: len(patches) for key, patches in model.patches.items()} == once


def test_b_behind_a_and_a_lora_holds_the_weights_it_was_tuned_with(run, base):
    """The domain's offset is ``W0 * P Qᵀ`` of A's base; behind a LoRA, B's lacks ``L * P Qᵀ`` without a patch for it."""
    a_model, _, _, _ = run(word="A*", settings=OFFSETS_ONLY)
    lora_behind = unet_lora(a_model)
    alone, _, parts, _ = run(model=unet_lora(base[0]), word="B*", image=photo(seed=4), settings=OFFSETS_ONLY)
    behind, _, again, _ = run(model=lora_behind, word="B*", image=photo(seed=4), settings=OFFSETS_ONLY)
    assert parts.fingerprint == again.fingerprint
    a, b = patched_model.held_concepts(behind)
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    canonical = {native: own for own, native in patched_model._native_names(base[0]).items()}
    own = canonical[name.removeprefix("diffusion_model.")]
    expected = weight_of(alone, name) + a.differences[own].value()
    # What is missing is stored in half precision, which rounds a number by at most 2**-11 of it.
    missing = (b.shared[own].value() - a.shared[own].value()).abs()
    assert missing.max() > 1e-3
    assert ((weight_of(behind, name) - expected).abs() <= 1e-6 + 2.0**-11 * missing).all()
    assert (weight_of(alone, name) - weight_of(base[0], name)).abs().max() > 1e-3


def weight_of(model, name):
    """A MODEL's weight with all its patches, as ComfyUI computes it when it loads the model."""
    original, *patches = model.get_key_patches()[name]
    return comfy.lora.calculate_weight(patches, original[1](original[0].detach().float().clone()), name)
