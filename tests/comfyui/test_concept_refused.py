"""What Load and Apply E4T Concept say of files and bases that do not fit, and what becomes of a MODEL that goes."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import comfy.model_management
import pytest
import torch
from e4t_pack.nodes.apply_concept import ApplyConcept
from e4t_pack.nodes.host.learning.apply import OtherBaseError
from e4t_pack.nodes.host.learning.domain_at_hand import DomainMissingError
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from e4t_pack.nodes.host.sampling.patched_model import held_concepts
from e4t_pack.nodes.load_concept import LoadConcept
from kept_by_nodes import apply, content, draw, drawn, known_concept, load, said, save
from safetensors.torch import save_file
from test_base_model import unet_lora
from world import make_base, make_domain, make_state

from e4t_core.files.concept_file import ConceptFileError
from e4t_core.files.domain_file import save_domain
from e4t_core.weight_changes import Full, Scaled

LORA = {"up": (320, 2), "down": (2, 320)}


def kohya():
    return {
        f"lora_unet_down_blocks_0_attentions_0_to_q.lora_{part}.weight": torch.zeros(shape)
        for part, shape in LORA.items()
    }


def peft():
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return {f"{name}.lora_A.weight": torch.zeros(2, 320), f"{name}.lora_B.weight": torch.zeros(320, 2)}


def early_diffusers():
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    return {f"{name}.{part}.weight": torch.zeros(shape) for part, shape in LORA.items()}


@pytest.mark.parametrize(
    ("write", "what", "node"),
    [
        (lambda path, _: save_file({"clip_l": torch.zeros(1, 768)}, path), "is a plain embedding", "embedding: and its name"),
        (lambda path, _: save_file({"emb_params": torch.zeros(3, 768)}, path), "is a plain embedding", "embedding: and its name"),
        (lambda path, _: save_file(kohya(), path), "is a LoRA", "use Load LoRA"),
        (lambda path, _: save_file(peft(), path), "is a LoRA", "use Load LoRA"),
        (lambda path, _: save_file(early_diffusers(), path), "is a LoRA", "use Load LoRA"),
        (lambda path, _: save_file(make_state(), path), "is a checkpoint", "use Load Checkpoint"),
        (lambda path, domain: save_domain(path, domain), "is an E4T domain", "use Load E4T Domain"),
        (lambda path, _: save_file({"vae": torch.zeros(3, 3, 3)}, path), "is not an E4T concept", "Save E4T Concept wrote"),
        (lambda path, _: path.write_bytes(b"PK\x03\x04" + bytes(100)), "is not a safetensors file", "choose one"),
    ],
    ids=["embedding", "old embedding", "LoRA", "PEFT LoRA", "early LoRA", "checkpoint", "domain", "other", "pickle"],
)  # fmt: skip
def test_another_kind_of_file_is_named_with_the_node_that_takes_it(domain, places, write, what, node):
    places.words.mkdir(parents=True)
    path = places.words / "other.safetensors"
    write(path, domain)
    fault = LoadConcept.validate_inputs(concept_name="other")
    assert what in fault and node in fault and "other.safetensors" in fault
    with pytest.raises(ConceptFileError) as error:
        load("other")
    assert str(error.value) == fault


def test_the_second_file_is_no_concept_and_its_absence_is_said(domain, places):
    save(known_concept(domain), "anna")
    second = next(places.weights.iterdir())
    shown = places.words / "second.safetensors"
    shown.write_bytes(second.read_bytes())
    assert "holds the weights of an exact concept" in LoadConcept.validate_inputs(concept_name="second")
    second.unlink()
    with pytest.raises(ConceptFileError, match="an exact concept is two files") as error:
        load("anna")
    assert second.name in str(error.value) and str(places.weights) in str(error.value)
    # A file of that name beside the concept file serves as well.
    shown.rename(places.words / second.name)
    assert content(load("anna")) == content(known_concept(domain))


def test_the_weights_of_another_concept_are_refused(domain, places):
    save(known_concept(domain, 1), "anna")
    save(known_concept(domain, 2), "bob")
    anna, bob = (next(places.weights.glob(f"{name}.*")) for name in ("anna", "bob"))
    anna.write_bytes(bob.read_bytes())
    with pytest.raises(ConceptFileError, match=r"belongs to another concept than 'anna\.safetensors'"):
        load("anna")


@pytest.mark.parametrize("name", ["nobody", "../anna", "a/b", "", "..", "C:anna"])
def test_a_name_that_is_not_there_says_where_it_belongs(places, name):
    fault = LoadConcept.validate_inputs(concept_name=name)
    assert "was not found in" in fault and str(places.words) in fault


def test_concepts_are_listed_by_the_names_that_load_them(domain, places, monkeypatch):
    from e4t_pack.nodes.host.model_folders import concept_names

    save(known_concept(domain), "anna")
    save(known_concept(domain), "jos\u00e9")
    assert sorted(concept_names()) == ["anna", "jos\u00e9"]
    assert all(LoadConcept.validate_inputs(concept_name=name) is True for name in concept_names())


def test_another_base_of_the_family_is_a_note(base, domain, run, embeddings):
    _, _, learned, _ = run()
    assert "another base model" not in said(ApplyConcept.execute(*base[:2], learned))
    for other in (make_base(1, embeddings)[:2], (unet_lora(base[0]), base[1])):
        output = ApplyConcept.execute(*other, learned)
        assert "S* was learned on another base model than this one" in said(output)
        assert torch.isfinite(draw(*output.args[:2])).all()


def narrow(change):
    """A weight change with one row less."""
    if isinstance(change, Full):
        return Full.of(change.name, change.difference()[:-1])
    return Scaled(change.name, change.p[:-1], change.q, change.owner)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda c, _: dataclasses.replace(c, embedding=torch.zeros(1, 1024)), r"is for Stable Diffusion 2\.x, but this CLIP is of Stable Diffusion 1\.x"),
        (lambda c, _: dataclasses.replace(c, prediction="v"), "predicts v, but this one predicts epsilon"),
        (lambda c, _: dataclasses.replace(c, weights=(narrow(c.weights[-1]),)), r"of the shape \(319, "),
        (lambda c, _: dataclasses.replace(c, weights=(narrow(c.weights[0]),)), r"of the shape \(319, "),
        (lambda c, _: dataclasses.replace(c, weights=(Full.of("mid_block.nothing.weight", torch.ones(2, 2)),)), "is missing in this MODEL"),
        (lambda c, domain: dataclasses.replace(c, predictor=other_features(c.predictor)), "reads 7 features of a UNet"),
    ],
    ids=["width", "prediction", "difference", "factors", "unknown weight", "features"],
)  # fmt: skip
def test_another_family_is_refused_with_what_differs(base, domain, make, fault):
    with pytest.raises(OtherBaseError, match=fault) as error:
        apply(base, make(known_concept(domain), domain))
    assert "load a base model" in str(error.value)


def other_features(predictor):
    from e4t_core.methods.e4t.concept_encoder import ConceptEncoder

    return dataclasses.replace(predictor, encoder=ConceptEncoder(2, 32, 7, 768))


def test_a_word_of_stable_diffusion_2_is_kept_and_refused_by_an_sd_1_base(base, domain, places):
    wide = dataclasses.replace(
        known_concept(domain), embedding=torch.ones(1, 1024), start=None, weights=(), predictor=None
    )
    save(wide, "wide")
    assert load("wide").embedding.shape == (1, 1024)
    with pytest.raises(OtherBaseError, match=r"Stable Diffusion 2\.x"):
        apply(base, load("wide"))


def test_a_recipe_without_its_domain_says_name_and_hash_and_exact_needs_none(base, domain, run, places):
    _, _, learned, _ = run()
    save(learned, "recipe", "recipe")
    save(learned, "exact")
    with pytest.raises(DomainMissingError) as error:
        apply(base, load("recipe"))
    assert "'faces'" in str(error.value) and domain.fingerprint[:12] in str(error.value)
    assert "models/e4t_domains" in str(error.value)
    assert torch.equal(drawn(base, load("exact")), drawn(base, learned))
    save_domain(places.domains / "mine.safetensors", make_domain(ComfyUNet(base[0]), seed=8))
    with pytest.raises(DomainMissingError, match=r"\(mine.* has this name, but other content\)"):
        apply(base, load("recipe"))


def test_a_recipe_is_neither_saved_as_exact_nor_lost(base, run, places):
    _, _, learned, _ = run()
    save(learned, "recipe", "recipe")
    with pytest.raises(ValueError, match="not learned again yet"):
        save(load("recipe"), "exact", "exact")
    save(load("recipe"), "again", "recipe")
    assert content(load("again")) == content(load("recipe"))
    save(learned, "exact")
    with pytest.raises(ValueError, match="has no recipe"):
        save(load("exact"), "other", "recipe")


def test_a_held_concept_goes_with_its_model_and_free_empties_the_rest(base, domain, run):
    concept = known_concept(domain)
    model, clip, _ = apply(base, concept)
    again = apply(base, concept, 0.5, 0.5)[0]
    held = held_concepts(model)[0]
    assert held_concepts(again)[0].prepared in (held, held.prepared), "it was prepared twice"
    assert len(STORE._held) == 1 and len(STORE) == 0
    references = [weakref.ref(held), weakref.ref(held.network)]
    draw(model, clip)
    del held, model, clip, again
    comfy.model_management.unload_all_models()
    gc.collect()
    assert [reference() for reference in references] == [None, None] and len(STORE._held) == 0
    run()
    assert len(STORE) == 1
    STORE.clear()
    assert len(STORE) == len(STORE._held) == len(STORE.prompts) == 0
