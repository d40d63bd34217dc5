"""Apply E4T Concept: strengths, triggers, and when the word is predicted, against formulas and stock nodes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from e4t_pack.nodes.apply_concept import ApplyConcept
from e4t_pack.nodes.host.networks.base_model import PREFIX, ComfyUNet
from e4t_pack.nodes.host.prompt.concept_clip import ConceptCLIP
from e4t_pack.nodes.host.sampling.patched_model import WordTakenError, _native_names, held_concepts
from kept_by_nodes import apply, drawn, known_concept
from personalized import draw, encode
from safetensors.torch import save_file
from test_base_model import unet_lora
from test_concepts_at_rest import patched
from world import QUICK, held

from e4t_core.weight_changes import full_differences

NO_STRENGTH = pytest.mark.parametrize("text", ["a photo of a cat", "a {} in the rain, {}"])


@pytest.fixture
def calls(monkeypatch):
    """Grows whenever a prompt is encoded again with a predicted word."""
    calls, original = [], ConceptCLIP.encode_again
    monkeypatch.setattr(ConceptCLIP, "encode_again", lambda self, *a: calls.append(1) or original(self, *a))
    return calls


def values(base, concept):
    """The offset and the own differences of a concept on a base, by canonical name, in float32."""
    shared = held(base, concept).shared
    own = full_differences(concept.weights)
    return ({name: stored.value() for name, stored in part.items()} for part in (shared, own))


def assert_weights(base, model, *terms):
    """A MODEL's weights are the base's plus the terms, (strength, differences by canonical name) each."""
    stock, found = patched(base[0]), patched(model)
    expected = {key: weight.clone() for key, weight in stock.items()}
    for strength, differences in terms:
        for name, value in differences.items():
            expected[f"{PREFIX}{_native_names(base[0])[name]}"] += strength * value
    moved = [key for key in stock if not torch.equal(expected[key], stock[key])]
    assert moved
    for key, weight in found.items():
        assert torch.allclose(weight, expected[key], rtol=0, atol=1e-6), key


def test_full_strength_is_what_the_node_that_learned_it_gives(base, run):
    model, clip, learned, _ = run(settings=dataclasses.replace(QUICK, train_unet=True))
    wanted = draw(model, clip)
    assert torch.equal(drawn(base, learned, 1.0, 1.0), wanted)
    assert torch.equal(drawn(base, learned), wanted)
    applied = apply(base, learned)[2]
    assert applied.trigger == "S*" and applied.fingerprint == learned.fingerprint


@NO_STRENGTH
def test_strength_zero_is_stock_with_the_domain_word(base, run, text):
    _, _, learned, _ = run()
    model, clip, _ = apply(base, learned, 0.0, 0.0)
    assert not model.patches
    assert torch.equal(draw(model, clip, text.format("S*", "S*")), draw(*base[:2], text.format("face", "face")))


def test_weights_alone_and_the_word_alone(base, domain):
    concept = known_concept(domain)
    model, _, _ = apply(base, concept, 1.0, 0.0)
    clip = apply(base, concept, 0.0, 1.0)[1]
    full = apply(base, concept)
    assert torch.equal(draw(model, base[1], "a cat"), draw(full[0], base[1], "a cat"))
    assert torch.equal(encode(clip, "a photo of S*")[0][0], encode(full[1], "a photo of S*")[0][0])
    pictures = [drawn(base, concept, *strengths) for strengths in ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.3))]
    assert all(not torch.equal(one, other) for i, one in enumerate(pictures) for other in pictures[:i])


@pytest.mark.parametrize(("weights", "word"), [(0.5, 0.3), (1.4, 1.7)])
def test_in_between_and_beyond_is_the_formula(base, domain, embeddings, weights, word):
    concept = known_concept(domain)
    model, clip, given = apply(base, concept, weights, word)
    assert given.embedding is concept.embedding, "the strength is the drawing's, not the concept's"
    shared, own = values(base, concept)
    assert_weights(base, model, (weights, shared), (weights, own))
    start = concept.start
    features = torch.randn((3, ComfyUNet(base[0]).feature_width), generator=torch.Generator().manual_seed(3))
    predicted = held_concepts(model)[0].concept.predictor.word(features)
    naive = (1 - word) * start.double() + word * concept.predictor.word(features).double()
    assert (predicted.double() - naive).abs().max() < 1e-6
    fixed = (1 - word) * start.double() + word * concept.embedding.double()
    save_file({"clip_l": fixed.float()}, embeddings / "between.safetensors")
    ours, stock = encode(clip, "a photo of S*")[0][0], encode(base[1], "a photo of embedding:between")[0][0]
    assert torch.allclose(ours, stock, atol=1e-5)


def test_a_word_whose_start_is_not_known_has_no_other_strength(base, domain):
    concept = dataclasses.replace(known_concept(domain), start=None)
    with pytest.raises(ValueError, match=r"strength of the word of 'S\*' must be 1"):
        apply(base, concept, 1.0, 0.5)
    apply(base, concept, 0.5, 1.0)


def test_another_trigger_draws_the_same(base, domain):
    concept = known_concept(domain)
    output = ApplyConcept.execute(*base[:2], concept, trigger="anna")
    model, clip, named = output.args
    assert named.trigger == "anna" and "anna" in output.ui["text"][0]
    assert torch.equal(draw(model, clip, "a photo of anna"), drawn(base, concept))
    assert (
        "stands" in str(ApplyConcept.validate_inputs(trigger="a b")) or ApplyConcept.validate_inputs("a b") is not True
    )
    assert ApplyConcept.validate_inputs(trigger="") is True


def test_a_trigger_that_is_taken_is_refused(base, domain):
    model, clip, _ = apply(base, known_concept(domain, 1))
    for wired in ((model, clip), (model, base[1]), (base[0], clip)):
        with pytest.raises(ValueError, match=r"'S\*' already stands for another concept"):
            apply(wired, known_concept(domain, 2))


@pytest.mark.parametrize("strengths", [(0.5, 1.0), (1.0, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_one_concept_has_one_strength_in_a_model(base, domain, strengths):
    concept = known_concept(domain)
    model, clip, _ = apply(base, concept)
    with pytest.raises(WordTakenError, match=r"holds the concept of 'T\*' already"):
        apply((model, clip), concept, *strengths, trigger="T*")
    both, both_clip, _ = apply((model, clip), concept, trigger="T*")
    assert len(held_concepts(both)) == 1
    assert torch.equal(draw(both, both_clip, "a photo of T*"), draw(model, clip))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("strengths", [(0.5, 1.0), (0.25, 0.5), (0.0, 0.7), (1.0, 1.0)])
def test_a_domain_s_offset_is_as_strong_as_the_strongest_of_its_concepts(base, domain, order, strengths):
    concepts = known_concept(domain, 1), known_concept(domain, 2, "T*")
    model = base[0], base[1]
    for place in order:
        model = apply(model, concepts[place], strengths[place])
    (shared, one), (_, two) = (values(base, concept) for concept in concepts)
    assert_weights(base, model[0], (max(strengths), shared), (strengths[0], one), (strengths[1], two))
    assert {one.concept.trigger: one.strength for one in held_concepts(model[0])} == dict(
        zip(("S*", "T*"), strengths, strict=True)
    )


def test_before_start_percent_the_word_is_the_fixed_one(base, domain, calls):
    concept = known_concept(domain)
    fixed = drawn(base, dataclasses.replace(concept, sampling=dataclasses.replace(concept.sampling, refine=False)))
    assert not calls
    assert torch.equal(drawn(base, concept, start_percent=1.0), fixed) and not calls
    counts = []
    for start in (0.0, 0.3, 0.7):
        calls.clear()
        model, clip, given = apply(base, concept, start_percent=start)
        assert given.sampling.start_percent == start
        draw(model, clip, steps=6)
        counts.append(len(calls))
    assert counts[0] == 6 > counts[1] > counts[2] > 0


def test_start_and_end_leave_the_middle(base, domain, calls):
    concept = known_concept(domain)
    model, clip, given = apply(base, concept, start_percent=0.3, end_percent=0.7)
    assert (given.sampling.start_percent, given.sampling.end_percent) == (0.3, 0.7)
    draw(model, clip, steps=8)
    assert 1 <= len(calls) < 5
    calls.clear()
    untouched = apply(base, given)[2]
    assert untouched.sampling == given.sampling, "-1 is as the concept says"


def test_two_concepts_start_when_each_of_them_says(base, domain):
    """The first is fixed all along, whatever the second does."""
    one, two = known_concept(domain, 1), known_concept(domain, 2, "T*")
    model, clip, _ = apply(apply(base, one, start_percent=1.0), two)
    fixed = dataclasses.replace(one, sampling=dataclasses.replace(one.sampling, refine=False))
    wanted, wanted_clip, _ = apply(apply(base, fixed), two)
    text = "a photo of S* and T*"
    assert torch.equal(draw(model, clip, text), draw(wanted, wanted_clip, text))
    assert not torch.equal(draw(model, clip, text), draw(*apply(apply(base, one), two)[:2], text))


def word_alone(concept):
    """As a file holds it that keeps the word alone."""
    return dataclasses.replace(concept, weights=(), predictor=None)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_word_kept_alone_neither_brings_nor_takes_a_domain_s_offset(base, domain, order):
    """Also while another MODEL holds a whole concept of its domain on its base."""
    concepts = word_alone(known_concept(domain, 1)), known_concept(domain, 2, "T*")
    both = base[0], base[1]
    kept_alive = [apply(base, concepts[place]) for place in order]
    for place in order:
        both = apply(both, concepts[place])
    shared, own = values(base, concepts[1])
    assert_weights(base, both[0], (1.0, shared), (1.0, own))
    word = kept_alive[order.index(0)]
    assert not word[0].patches
    behind = apply((unet_lora(kept_alive[order.index(1)][0]), base[1]), concepts[0])[0]
    assert {key: len(patches) for key, patches in behind.patches.items()} == {
        key: len(patches) for key, patches in unet_lora(kept_alive[order.index(1)][0]).patches.items()
    }


@pytest.mark.parametrize("whole_first", [True, False])
def test_a_concept_and_its_word_alone_are_not_taken_for_each_other(base, domain, whole_first):
    whole = known_concept(domain)
    first, second = (whole, word_alone(whole)) if whole_first else (word_alone(whole), whole)
    with pytest.raises(WordTakenError, match="at another strength or as its word alone"):
        apply(apply(base, first), second, trigger="T*")
