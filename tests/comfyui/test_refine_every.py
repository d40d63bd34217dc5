"""``refine_every``: the word is predicted at every k-th evaluation, and stays each picture's own in between."""

from __future__ import annotations

from types import SimpleNamespace

import comfy_extras.nodes_sag
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.prompt import concept_clip
from e4t_pack.nodes.host.prompt.concept_clip import ConceptCLIP
from e4t_pack.nodes.host.sampling import patched_model, word_at_step
from oracle import ksample
from personalized import draw, encode
from world import LATENT, held, hold, make_concept

import nodes
from e4t_core.loop_settings import SamplingSettings

TOLERANCE = 1e-4  # of the largest value: batches of another size add in another order


@pytest.fixture
def world(base, domain):
    """Makes (MODEL, CLIP) with a concept whose word depends on latent and timestep."""
    return lambda **sampling: hold(base, make_concept(domain, sampling=SamplingSettings(**sampling)))


@pytest.fixture
def made(monkeypatch):
    """What refinement makes: words given, feature passes, and prompts encoded anew."""

    found = SimpleNamespace(words=[], passes=[], encoded=[])
    outputs, word, again = word_at_step.block_outputs, word_at_step.WordAtStep.word, ConceptCLIP.encode_again
    monkeypatch.setattr(
        word_at_step.WordAtStep, "word", lambda self, *given: found.words.append(word(self, *given)) or found.words[-1]
    )
    monkeypatch.setattr(
        word_at_step,
        "block_outputs",
        lambda network, z, *given: found.passes.append(len(z)) or outputs(network, z, *given),
    )
    monkeypatch.setattr(
        ConceptCLIP, "encode_again", lambda self, *given: found.encoded.append(1) or again(self, *given)
    )
    return found


@pytest.mark.parametrize(("every", "expected"), [(1, 7), (2, 4), (3, 3), (7, 1), (100, 1)])
def test_every_so_many_evaluations_cost_one_pass_of_network_and_text_encoder(world, made, every, expected):
    model, clip = world(refine_every=every)
    draw(model, clip, steps=7)
    assert (len(made.words), len(made.passes), len(made.encoded)) == (7, expected, expected)
    changed = [number for number in range(1, 7) if made.words[number] is not made.words[number - 1]]
    assert changed == list(range(every, 7, every))


def test_the_first_word_is_that_of_refining_always_and_each_run_begins_anew(world, made):
    always, clip = world()
    draw(always, clip, steps=3)
    first = made.words[0]
    for _ in range(2):
        made.words.clear()
        made.passes.clear()
        model, clip = world(refine_every=2)
        draw(model, clip, steps=3)
        assert torch.equal(made.words[0], first)
        assert len(made.passes) == 2
    draw(model, clip, steps=3)
    assert len(made.passes) == 4


def test_evaluations_are_counted_and_not_steps(world, made):
    """Heun evaluates twice at every step but the last."""
    model, clip = world(refine_every=2)
    draw(model, clip, sampler="heun", steps=3)
    assert (len(made.words), len(made.passes)) == (5, 3)


def test_each_picture_of_a_batch_keeps_its_own_word(world, made):
    model, clip = world(refine_every=2)
    draw(model, clip, batch=3, steps=3)
    assert made.passes == [3, 3]
    assert made.words[1] is made.words[0]
    assert all(not torch.equal(made.words[1][0], made.words[1][row]) for row in (1, 2))


@pytest.mark.parametrize(("length", "overlap", "schedule"), [(2, 0, "batched"), (3, 1, "standard_static")])
def test_windows_over_a_batch_draw_what_the_whole_batch_does(world, made, length, overlap, schedule):
    model, clip = world(refine_every=2)

    def sample(model):
        latent = {"samples": torch.zeros((4, 4, LATENT, LATENT))}
        conds = encode(clip, "a photo of S*"), encode(clip, "blurry")
        return nodes.common_ksampler(model, 7, 4, 4.0, "euler", "normal", *conds, latent)[0]["samples"]

    expected = sample(model)
    made.passes.clear()
    made.encoded.clear()
    cut = ContextWindowsManualNode.execute(model, length, overlap, schedule, 1, False, "flat", 0, False).args[0]
    assert (sample(cut) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert sum(made.passes) == 2 * 2 * length
    # Two windows, at two evaluations anew; where windows overlap, a picture's word is that of its first one.
    assert len(made.encoded) <= 2 * 2 + 2 * overlap


def test_each_concept_has_its_own(base, domain, made):
    model, clip = base[0], base[1]
    for seed, trigger, every in ((1, "S*", 1), (2, "T*", 3)):
        concept = make_concept(domain, seed, trigger, sampling=SamplingSettings(refine_every=every))
        model = patched_model.with_concept(model, held(base, concept), STORE.prompts)
        clip = concept_clip.with_concept(clip, trigger, concept.fingerprint, concept.embedding, STORE.prompts)
    draw(model, clip, "S* beside T*", steps=4)
    first, second = made.words[::2], made.words[1::2]
    assert len({id(word) for word in first}) == 4
    assert [word is second[0] for word in second] == [True, True, True, False]
    assert len(made.passes) == 4


def test_a_guidance_method_s_blurred_picture_does_not_change_the_kept_word(world, made):
    model, clip = world(refine_every=100)
    guided = comfy_extras.nodes_sag.SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0]
    draw(guided, clip, "a photo", steps=1)
    ksample(guided, {"positive": encode(clip, "a photo of S*"), "negative": encode(clip, "a bad S*")}, steps=3)
    first = made.words[0]
    later = [word for word in made.words if torch.equal(word, first)]
    assert len(later) >= len(made.words) - 1, "only the first evaluation's blurred picture may have a word of its own"


def test_it_goes_with_end_percent(world, made):
    model, clip = world(refine_every=2, end_percent=0.5)
    draw(model, clip, steps=8)
    assert len(made.passes) == 2
    assert made.words[-1] is made.words[2]
