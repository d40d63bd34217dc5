"""The node "Export E4T Concept": what stock nodes draw with its files, and what it says of them."""

from __future__ import annotations

import dataclasses
import math
import os

import comfy.model_management
import folder_paths
import pytest
import torch
from e4t_pack.nodes.export_concept import BUNDLE, EXACT, PAIR, ExportConcept
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from e4t_pack.nodes.host.sampling.patched_model import held_concepts, without_concepts
from personalized import draw, encode
from safetensors import safe_open
from world import hold, make_concept

import nodes
from e4t_core.loop_settings import SamplingSettings
from e4t_core.weight_changes import TotalDifferences

NAME = "anna"
# Of what a concept moves: float32 sums in another order.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def concept(base, domain):
    """One that changes every weight, most of it in few directions, as tuned ones do."""
    generator = torch.Generator().manual_seed(3)
    differences = {}
    for name, weight in ComfyUNet(base[0]).parameters().items():
        drawn = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            rows = drawn.flatten(1)
            thin = rows[:, :4] @ torch.randn(4, rows.shape[1], generator=generator)
            drawn = (thin / thin.std() + 0.05 * rows).reshape(weight.shape)
        differences[name] = 0.02 * weight.std().clamp_min(0.01) * drawn
    return make_concept(domain, differences=differences)


def fixed(concept):
    """The same, drawn with one word at every step, as stock nodes must."""
    return dataclasses.replace(concept, sampling=SamplingSettings(refine=False))


@pytest.fixture
def folders(embeddings, tmp_path, monkeypatch):
    """ComfyUI's folders of LoRAs and of embeddings, which the tests' stock CLIP reads."""
    loras = tmp_path / "loras"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(loras)], {".safetensors"}))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(embeddings)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    yield loras, embeddings
    for file in embeddings.glob("*.safetensors"):
        file.unlink()


def export(base, concept, form=PAIR, model=None, **changes):
    """(prompt, what the node says)."""
    node = ExportConcept.execute(concept, model or base[0], base[1], changes.pop("name", NAME), form, **changes)
    return node.args[0], " ".join(node.ui["text"])


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def stock(base, name=NAME):
    """(MODEL, CLIP) as the stock LoraLoader makes them of the base."""
    return nodes.LoraLoader().load_lora(base[0], base[1], f"{name}.safetensors", 1.0, 1.0)


def pictures(base, concept, prompt, name=NAME):
    """Latents by stock nodes: with the files, with the concept's own MODEL and CLIP, and of the base."""
    model, clip = stock(base, name)
    drawn = draw(model, clip, f"a photo of {prompt}")
    own = draw(*hold(base, fixed(concept)), "a photo of S*")
    return drawn, own, draw(base[0], base[1], f"a photo of {prompt}")


def share(found, wanted, plain):
    return float((found - wanted).norm() / (wanted - plain).norm())


def predicted(model, clip, prompt):
    """Noise predictions, on other latents, at other noise levels and by another prompt's encoder than the node's."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    sigmas = model.get_model_object("model_sampling").sigmas[[60, 310, 560, 910]].float()
    wide = sigmas.view(-1, 1, 1, 1)
    x = torch.randn((4, 4, 16, 16), generator=torch.Generator().manual_seed(9)) * (1 + wide**2).sqrt()
    context = encode(clip, prompt)[0][0].expand(4, -1, -1)
    return (x - model.model.apply_model(x, sigmas, c_crossattn=context)) / wide


def test_the_exact_form_draws_what_the_concept_draws(base, concept, folders):
    prompt, said = export(base, concept, EXACT)
    assert prompt == "embedding:anna"
    drawn, own, plain = pictures(base, concept, prompt)
    assert share(drawn, own, plain) < ROUNDING
    assert "exactly the concept's" in said and "0.0 % is lost" in said
    about = metadata(folders[0] / "anna.safetensors")
    assert float(about["e4t.weights_error"]) == 0 and float(about["e4t.effect_lost"]) < ROUNDING
    # Word and weights are drawn: neither alone is it.
    assert share(draw(*stock(base), "a photo of a face"), own, plain) > 0.1


@pytest.mark.parametrize("form", [PAIR, BUNDLE])
def test_low_ranks_draw_it_within_the_error_that_is_said(base, concept, folders, form, caplog):
    prompt, said = export(base, concept, form, error=0.1)
    about = metadata(folders[0] / "anna.safetensors")
    error, lost = float(about["e4t.weights_error"]), float(about["e4t.effect_lost"])

    # The weights as the stock loader has them are off by exactly what is said.
    plain = ComfyUNet(base[0]).parameters()
    wanted = {name: d.value() for name, d in TotalDifferences(concept.weights, plain).items()}
    patched = ComfyUNet(stock(base)[0]).parameters()
    errors = {name: float((patched[name] - plain[name] - d).norm() / d.norm()) for name, d in wanted.items()}
    matrices = [value for name, value in errors.items() if wanted[name].ndim > 1]
    assert math.sqrt(sum(value**2 for value in matrices) / len(matrices)) == pytest.approx(error, rel=1e-2)
    assert 0.09 < error <= 0.1
    vectors = [value for name, value in errors.items() if wanted[name].ndim < 2]
    assert max(vectors) < 1e-3 if form == BUNDLE else min(vectors) == 1

    # So are the noise predictions, with other latents and another sampler than the node measured with, about.
    model, clip = stock(base)
    found = predicted(model, clip, f"a photo of {prompt}")
    own = predicted(*hold(base, fixed(concept)), "a photo of S*")
    without = predicted(base[0], clip, f"a photo of {prompt}")
    assert lost / 2 < share(found, own, without) < 2 * lost
    assert f"{100 * lost:.1f} % is lost" in said and f"off by {100 * error:.1f} %" in said
    assert "another" in said and float(about["e4t.refinement_lost"]) > 0


def test_a_bundle_is_one_file_with_two_names_that_two_stock_nodes_read(base, concept, folders, caplog):
    prompt, said = export(base, concept, BUNDLE, error=0.05)
    lora, embedding = (folder / "anna.safetensors" for folder in folders)
    assert os.path.samefile(lora, embedding) and "two names of one file" in said
    with safe_open(lora, framework="pt") as file:
        assert torch.equal(file.get_tensor("bundle_emb.anna.string_to_param.*"), concept.embedding)
    drawn, own, plain = pictures(base, concept, prompt)
    assert share(drawn, own, plain) < 0.3
    told = [record.getMessage() for record in caplog.records if "lora" in record.getMessage().lower()]
    assert told == ["lora key not loaded: bundle_emb.anna.string_to_param.*"], "all else of the file is used"


def test_a_model_that_holds_the_concept_is_exported_as_its_base_is(base, concept, folders):
    export(base, concept, EXACT, name="plain")
    model, _ = hold(base, concept)
    patches = {name: len(found) for name, found in model.patches.items()}
    export(base, concept, EXACT, name="held", model=model)
    found, wanted = (metadata(folders[0] / f"{name}.safetensors") for name in ("held", "plain"))
    assert {k: v for k, v in found.items() if k.startswith("e4t.")} == {
        k: v for k, v in wanted.items() if k.startswith("e4t.")
    }
    # And it still holds it.
    assert {name: len(found) for name, found in model.patches.items()} == patches and held_concepts(model)
    assert not held_concepts(without_concepts(model)) and not without_concepts(model).patches


def test_what_a_concept_without_refinement_loses_says_nothing_of_refinement(base, concept, folders):
    _, said = export(base, fixed(concept), EXACT)
    assert "refined" not in said and "e4t.refinement_lost" not in metadata(folders[0] / "anna.safetensors")


def test_a_concept_of_another_base_is_refused_or_said(base, concept, folders):
    _, said = export(base, dataclasses.replace(fixed(concept), base_fingerprint="another"), EXACT)
    assert "learned on another base" in said
    assert "another base" not in export(base, fixed(concept), EXACT)[1]
    for wrong in (
        dataclasses.replace(concept, embedding=torch.zeros(1, 1024)),
        dataclasses.replace(concept, weights=(dataclasses.replace(concept.weights[-1], name="no.such.weight"),)),
    ):
        with pytest.raises(ValueError, match="learned on a base of another kind"):
            export(base, wrong)
    assert len(list(folders[0].glob("*.safetensors"))) == 2


def test_a_word_without_weights_is_sent_to_the_node_for_words(base, concept, folders):
    with pytest.raises(ValueError, match="Save E4T Concept"):
        export(base, dataclasses.replace(concept, weights=()))
    with pytest.raises(ValueError, match="recipe that was not learned again"):
        export(base, dataclasses.replace(concept, to_learn=True))


@pytest.mark.parametrize("name", ["", "../out", "a/b", "con:"])
def test_a_name_that_is_no_file_s_is_refused_before_and_while_it_runs(base, concept, folders, name):
    assert "cannot be a file's" in ExportConcept.validate_inputs(name=name)
    with pytest.raises(ValueError, match="cannot be a file's"):
        export(base, concept, name=name)
    assert not folders[0].exists()


def test_cancelled_it_leaves_no_file(base, concept, folders):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        export(base, concept)
    assert not folders[0].exists()
