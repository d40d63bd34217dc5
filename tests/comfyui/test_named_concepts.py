"""``needs_trigger``: a run draws those concepts whose trigger is in its prompts, and no other, bit for bit."""

from __future__ import annotations

import dataclasses
import logging

import comfy.model_management
import pytest
import torch
from e4t_pack.nodes.apply_concept import ApplyConcept
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.networks.base_model import PREFIX, ComfyUNet
from e4t_pack.nodes.host.prompt import concept_clip
from e4t_pack.nodes.host.sampling import patched_model, refinement
from oracle import ksample
from personalized import encode
from test_base_model import unet_lora
from world import held, make_concept, make_domain

import nodes
from e4t_core.loop_settings import SamplingSettings

PLAIN = "a photo of a face"


def known(base, *concepts, model=None, strengths=None):
    """MODEL and CLIP that hold these concepts, learned on the base."""
    model, clip = model or base[0], base[1]
    for number, concept in enumerate(concepts):
        part = dataclasses.replace(held(base, concept), strength=strengths[number] if strengths else 1.0)
        model = patched_model.with_concept(model, part, STORE.prompts)
        clip = concept_clip.with_concept(clip, concept.trigger, concept.fingerprint, concept.embedding, STORE.prompts)
    return model, clip


def concepts_of(domain, needs_trigger, second=None):
    sampling = SamplingSettings(needs_trigger=needs_trigger)
    return [
        make_concept(domain, 1, "S*", sampling=sampling),
        make_concept(second or domain, 2, "T*", sampling=sampling),
    ]


def draw(model, clip, text, negative="blurry", **options):
    return ksample(model, {"positive": encode(clip, text), "negative": encode(clip, negative)}, **options)


def weights_of(model):
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return {key: value.clone() for key, value in model.model.state_dict().items() if key.startswith(PREFIX)}


def test_a_prompt_without_the_trigger_is_drawn_by_the_base_model(base, domain):
    for needs_trigger in (False, True):
        model, clip = known(base, *concepts_of(domain, needs_trigger))
        same = torch.equal(draw(model, clip, PLAIN), draw(base[0], clip, PLAIN))
        assert same == needs_trigger


@pytest.mark.parametrize(
    ("text", "negative"), [("a photo of S* and T*", "blurry"), ("S*", "T*"), ("a photo of S*", "a bad T*")]
)
def test_a_prompt_with_all_triggers_is_drawn_as_without_the_setting(base, domain, text, negative):
    free, bound = (draw(*known(base, *concepts_of(domain, needs)), text, negative) for needs in (False, True))
    assert torch.equal(free, bound)


def test_a_concept_that_is_not_named_leaves_no_trace_in_another_s_picture(base, domain):
    first, second = concepts_of(domain, True)
    both, clip = known(base, first, second)
    assert torch.equal(draw(both, clip, "a photo of S*"), draw(*known(base, first), "a photo of S*"))
    assert torch.equal(draw(both, clip, "a photo of T*"), draw(*known(base, second), "a photo of T*"))
    assert not torch.equal(draw(both, clip, "S* beside T*"), draw(*known(base, first), "S* beside T*"))


def test_of_two_domains_each_goes_with_its_own_concept(base, domain):
    first, second = concepts_of(domain, True, make_domain(ComfyUNet(base[0]), "cats", seed=9))
    both, clip = known(base, first, second)
    assert torch.equal(draw(both, clip, "a photo of T*"), draw(*known(base, second), "a photo of T*"))


def test_the_setting_is_each_concept_s_own(base, domain):
    free, bound = concepts_of(domain, False)[0], concepts_of(domain, True)[1]
    model, clip = known(base, free, bound)
    alone, _ = known(base, free)
    assert torch.equal(draw(model, clip, PLAIN), draw(alone, clip, PLAIN))
    assert not torch.equal(draw(alone, clip, PLAIN), draw(base[0], clip, PLAIN))


def test_loras_stay_in_their_places(base, domain):
    model, clip = known(base, *concepts_of(domain, True), model=unet_lora(base[0]))
    model = unet_lora(model)
    stock = unet_lora(unet_lora(base[0]))
    assert torch.equal(draw(model, clip, PLAIN), draw(stock, clip, PLAIN))
    assert not torch.equal(draw(stock, clip, PLAIN), draw(base[0], clip, PLAIN))


def test_a_prompt_of_another_clip_may_hold_anything(base, domain):
    """Nobody can tell what is in it: it is drawn as before, whatever else was encoded meanwhile."""
    free, bound = (known(base, *concepts_of(domain, needs)) for needs in (False, True))
    text = "a prompt of the stock CLIP"
    of_ours = encode(bound[1], text)
    conds = {"positive": encode(base[1], text), "negative": encode(bound[1], "blurry")}
    assert torch.equal(ksample(free[0], conds), ksample(bound[0], conds))
    assert not torch.equal(ksample(bound[0], conds), ksample(base[0], conds))
    assert torch.equal(of_ours[0][0], conds["positive"][0][0])


def test_a_negative_prompt_of_zeros_is_known(base, domain):
    model, clip = known(base, *concepts_of(domain, True))
    positive = encode(clip, PLAIN)
    conds = {"positive": positive, "negative": nodes.ConditioningZeroOut().zero_out(positive)[0]}
    assert torch.equal(ksample(model, conds), ksample(base[0], conds))


def test_the_next_run_has_the_weights_again_and_the_model_is_as_it_was(base, domain):
    model, clip = known(base, *concepts_of(domain, True))
    wanted, before = draw(model, clip, "S* beside T*"), weights_of(model)
    plain = draw(model, clip, PLAIN)
    assert torch.equal(draw(model, clip, PLAIN), plain)
    assert torch.equal(draw(model, clip, "S* beside T*"), wanted)
    after = weights_of(model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_runs_without_the_same_concepts_need_no_new_patches(base, domain):
    model, clip = known(base, *concepts_of(domain, True))
    used = []
    for text in (PLAIN, "another photo of a face", "a photo of S*"):
        draw(model, clip, text)
        used.append(model.model.current_weight_patches_uuid)
    assert used[0] == used[1] != used[2] and model.patches_uuid not in used


def test_a_run_that_fails_gives_the_guider_its_model_back(base, domain, monkeypatch):
    model, clip = known(base, *concepts_of(domain, True))
    wanted, plain = draw(model, clip, "S* beside T*"), draw(model, clip, PLAIN)
    seen = []

    def fails(self, executor, guider_model, *arguments):
        seen.append(guider_model.current_patcher)
        raise RuntimeError("out of paper")

    with monkeypatch.context() as patch:
        patch.setattr(refinement.Refinement, "__call__", fails)
        with pytest.raises(RuntimeError, match="out of paper"):
            draw(model, clip, PLAIN)
    assert seen and seen[0] is not model and len(seen[0].patches) < len(model.patches)
    assert torch.equal(draw(model, clip, "S* beside T*"), wanted) and torch.equal(draw(model, clip, PLAIN), plain)


def test_a_person_is_told_why_the_picture_is_not_the_concept_s(base, domain, caplog):
    model, clip = known(base, concepts_of(domain, True)[0])
    with caplog.at_level(logging.WARNING):
        draw(model, clip, PLAIN)
    assert (
        "S* was found in none of 2 prompts, so the picture is drawn without it: write it into the prompt" in caplog.text
    )


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("chosen", "wanted"), [("concept", None), ("on", True), ("off", False)])
def test_apply_leaves_it_to_the_concept_or_says_it(base, domain, own, chosen, wanted):
    concept = concepts_of(domain, own)[0]
    model, clip, applied = ApplyConcept.execute(*base[:2], concept, needs_trigger=chosen).args
    wanted = own if wanted is None else wanted
    assert applied.sampling.needs_trigger == wanted
    assert torch.equal(draw(model, clip, PLAIN), draw(base[0], clip, PLAIN)) == wanted
