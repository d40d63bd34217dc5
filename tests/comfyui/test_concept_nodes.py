"""Save, Load, Apply and Mix E4T Concept: what is kept comes back bit for bit, here and in a new process."""

from __future__ import annotations

import dataclasses

import kept_by_nodes as kept
import pytest
import torch
from e4t_pack.nodes.apply_concept import ApplyConcept
from e4t_pack.nodes.load_concept import LoadConcept
from e4t_pack.nodes.mix_concepts import MixConcepts
from e4t_pack.nodes.save_concept import RECOVERABLE, SaveConcept
from kept_by_nodes import apply, content, drawn, hash_of, known_concept, load, said, save
from personalized import draw, encode
from test_textual_inversion import learn as learn_word
from world import LOOKING, QUICK, photo

from e4t_core.files.domain_file import save_domain

WHOLE = dataclasses.replace(QUICK, train_unet=True)
PAINTED = (torch.arange(80)[:, None] < 50).float().expand(80, 64)[None].clone()
RECIPES = {
    "painted mask": {"mask": PAINTED},
    "mask threshold": {"mask": PAINTED, "settings": dataclasses.replace(QUICK, mask_threshold=0.4)},
    "find subject": {"settings": LOOKING},
    "several photos": {"image": photo(3), "settings": dataclasses.replace(QUICK, micro_batch=1)},
}


def mixed(*concepts, trigger="M*", **weights):
    """By the node."""
    return MixConcepts.execute(*concepts, trigger=trigger, **weights).args[0]


def test_what_was_saved_exactly_draws_bit_for_bit_also_in_a_new_process(base, domain, run, places, untouched):
    wanted = {}
    model, clip, learned, _ = run(settings=WHOLE)
    wanted["photo"] = [content(learned), hash_of(draw(model, clip))]
    save(learned, "photo")
    model, clip, word, _ = learn_word(base, trigger="T*", vectors=2)
    wanted["word"] = [content(word), hash_of(draw(model, clip, "a photo of T*"))]
    save(word, "word")
    both = mixed(learned, known_concept(domain, 3), weight_2=0.5)
    wanted["mix"] = [content(both), hash_of(drawn(base, both))]
    save(both, "mix")
    assert len({picture for _, picture in wanted.values()}) == 3
    assert len(list(places.weights.iterdir())) == 2, "a word alone needs no second file"
    del model, clip, learned, word, both
    for name, expected in wanted.items():
        again = load(name)
        assert [content(again), hash_of(drawn(base, again))] == expected, name
    # No domain is installed, nor needed.
    assert kept.in_a_new_process(places, list(wanted)) == wanted
    untouched()


def test_recipes_are_learned_again_to_the_same_concept_also_in_a_new_process(base, domain, run, places):
    wanted = {}
    save_domain(places.domains / "faces.safetensors", domain)
    for number, (name, options) in enumerate(RECIPES.items()):
        model, clip, learned, _ = run(seed=11 + number, **options)
        wanted[name.replace(" ", "_")] = [content(learned), hash_of(draw(model, clip))]
        save(learned, name.replace(" ", "_"), "recipe")
    model, clip, word, _ = learn_word(base, trigger="T*", mask=PAINTED)
    wanted["inversion"] = [content(word), hash_of(draw(model, clip, "a photo of T*"))]
    save(word, "inversion", "recipe")
    assert len({one for one, _ in wanted.values()}) == len(wanted)
    found = kept.in_a_new_process(places, list(wanted))
    assert found == wanted
    before = run.tunings
    for name, expected in wanted.items():
        recipe = load(name)
        assert recipe.to_learn and recipe.weights == () and recipe.predictor is None
        model, clip, again = apply(base, recipe)
        assert not again.to_learn
        assert [content(again), hash_of(draw(model, clip, f"a photo of {again.trigger}"))] == expected, name
    assert run.tunings == before + len(wanted)
    apply(base, load("inversion"))
    assert run.tunings == before + len(wanted), "learned again although the store has it"


def test_a_recipe_says_that_the_photo_is_in_it_and_that_it_was_learned_again(base, domain, run, places):
    save_domain(places.domains / "faces.safetensors", domain)
    _, _, learned, _ = run()
    assert RECOVERABLE in said(SaveConcept.execute(learned, "seen", "recipe"))
    assert RECOVERABLE not in said(SaveConcept.execute(learned, "unseen", "exact"))
    shown = LoadConcept.execute("seen")
    assert "a recipe: Apply E4T Concept learns it again" in said(shown)
    assert "learned again by its recipe: the same concept" in said(ApplyConcept.execute(*base[:2], shown.args[0]))


def test_a_recipe_on_another_base_is_learned_there_and_says_so(base, domain, run, places):
    from test_base_model import unet_lora

    save_domain(places.domains / "faces.safetensors", domain)
    _, _, learned, _ = run()
    save(learned, "seen", "recipe")
    output = ApplyConcept.execute(unet_lora(base[0]), base[1], load("seen"))
    assert "nearly the same concept" in said(output) and output.args[2].fingerprint != learned.fingerprint


def test_the_word_alone_is_a_stock_embedding_and_a_concept(base, run, places):
    _, _, learned, _ = run()
    name = save(learned, "word", "word")
    assert not places.weights.exists() or not list(places.weights.iterdir())
    again = load(name)
    assert again.weights == () and again.predictor is None and not again.to_learn
    stock = draw(base[0], base[1], "a photo of embedding:e4t/word")
    assert torch.equal(drawn(base, again), stock)


@pytest.mark.parametrize("keeps", ["exact", "recipe", "word"])
def test_the_stock_prompt_reads_the_fixed_word_of_every_file(base, run, places, keeps):
    _, clip, learned, _ = run(refine=False)
    name = save(learned, f"kept_{keeps}", keeps)
    stock, ours = (encode(of, f"a photo of {word}") for of, word in ((base[1], f"embedding:e4t/{name}"), (clip, "S*")))
    assert torch.equal(stock[0][0], ours[0][0])


def test_a_file_that_is_there_stays_or_is_replaced_with_its_second_one(base, domain, places):
    one, two = known_concept(domain, 1), known_concept(domain, 2)
    assert save(one, "anna") == "anna" and save(two, "anna") == "anna_00002"
    assert content(load("anna")) == content(one) and content(load("anna_00002")) == content(two)
    before = {path.name for path in places.weights.iterdir()}
    assert save(two, "anna", overwrite=True) == "anna"
    assert content(load("anna")) == content(two) and content(load("anna_00002")) == content(two)
    after = {path.name for path in places.weights.iterdir()}
    assert len(before) == len(after) == 2 and len(before & after) == 1
    save(two, "anna", "word", overwrite=True)
    assert {path.name for path in places.weights.iterdir()} == before & after


def test_a_file_that_was_replaced_is_read_again(domain, places):
    save(known_concept(domain, 1), "anna")
    first = LoadConcept.fingerprint_inputs(concept_name="anna")
    assert LoadConcept.fingerprint_inputs(concept_name="anna") == first
    save(known_concept(domain, 2), "anna", overwrite=True)
    second = LoadConcept.fingerprint_inputs(concept_name="anna")
    assert second != first
    weights = next(places.weights.iterdir())
    weights.write_bytes(weights.read_bytes() + b" ")
    assert LoadConcept.fingerprint_inputs(concept_name="anna") not in (first, second)
    assert LoadConcept.fingerprint_inputs(concept_name="nobody") == "nobody"


def test_comfyui_s_asset_scanner_reads_trigger_and_base(domain, places):
    from app.assets.services.metadata_extract import extract_file_metadata

    save(known_concept(domain, 4), "seen")
    found = extract_file_metadata(str(places.words / "seen.safetensors"))
    assert (found.trained_words, found.base_model) == (["S*"], "sd_v1")


def test_a_compact_concept_is_one_file_whose_word_is_refined_where_its_domain_is(base, domain, places):
    concept = known_concept(domain, 5)
    save_domain(places.domains / "faces.safetensors", domain)
    said_when_saved = said(SaveConcept.execute(concept, "small", "compact"))
    assert "Saved as small.safetensors" in said_when_saved and not list(places.weights.iterdir())
    found = load("small")
    assert found.predictor is not None and torch.equal(found.embedding, concept.embedding)
    exact, small, stock = (
        drawn(base, one, *strengths) for one, strengths in ((concept, ()), (found, ()), (concept, (0, 0)))
    )
    assert (small - exact).norm() < (stock - exact).norm()
    assert not torch.equal(small, exact)
    (places.domains / "faces.safetensors").unlink()
    alone = LoadConcept.execute("small")
    assert alone.args[0].predictor is None and "Until then its word is fixed" in said(alone)
    assert torch.isfinite(drawn(base, alone.args[0])).all()
