"""The nodes "Learn Photo (...)" whose methods train weights: learned, drawn, kept, mixed, exported; and what can go wrong."""

from __future__ import annotations

import os

import comfy.lora
import comfy.model_management
import comfy.sample
import folder_paths
import pytest
import torch
from e4t_pack.nodes.export_concept import PAIR, ExportConcept
from e4t_pack.nodes.host.learning import prior_pictures, progress
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.model_folders import PRIOR
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from e4t_pack.nodes.learning_nodes import LEARNING_NODES
from e4t_pack.nodes.mix_concepts import MixConcepts
from e4t_pack.nodes.save_concept import SaveConcept
from kept_by_nodes import apply, content, drawn, load, said, save
from personalized import draw, encode
from safetensors import safe_open
from safetensors.torch import load_file
from test_personalize_faults import out_of_memory_above
from test_textual_inversion import learn as learn_word
from world import photo

from e4t_core.methods.registered import SIBLINGS
from e4t_core.prior import AT_ONCE, GUIDANCE, WantedPrior
from e4t_core.weight_changes import LowRank

QUICK = {"steps": 2, "batch": 2, "micro_batch": 2, "size": 64}
LEARNING = {node.METHOD.name: node for node in LEARNING_NODES}
WEIGHTED = ("lora", "dreambooth", "dreambooth_ti")
STEPS = 2
RATES = {"lora": 1e-2, "dreambooth": 1e-4, "dreambooth_ti": 1e-4}


@pytest.fixture(autouse=True)
def prior(tmp_path, monkeypatch):
    """The folder of prior pictures."""
    place = tmp_path / "e4t_prior"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, PRIOR, ([str(place)], {".safetensors"}))
    # Pictures of a random base are noise in few steps as in many.
    monkeypatch.setattr(prior_pictures, "STEPS", STEPS)
    return place


@pytest.fixture
def draws(monkeypatch):
    """How many prior pictures stock sampling has drawn."""
    counted, original = [], comfy.sample.sample

    def sample(model, noise, *arguments, **options):
        counted.append(len(noise))
        return original(model, noise, *arguments, **options)

    monkeypatch.setattr(comfy.sample, "sample", sample)
    return counted


def learn(method, base, **changes):
    """(MODEL, CLIP, concept, losses); without prior pictures if nothing else is said."""
    values = {"trigger": "S*", "seed": 1, **QUICK}
    if method in WEIGHTED:
        values |= {"learning_rate": RATES[method], "prior_weight": 0.0}
    values |= changes
    return LEARNING[method].execute(*base, values.pop("image", photo()), **values).args


def test_there_is_a_node_for_every_method():
    assert [node.METHOD.name for node in LEARNING_NODES] == [kind.name for kind in SIBLINGS]


@pytest.mark.parametrize("method", WEIGHTED)
def test_what_was_learned_is_drawn_kept_and_applied_alike(base, places, untouched, method):
    model, clip, concept, losses = learn(method, base)
    picture = draw(model, clip)
    assert len(losses["loss"]) == 2 and concept.method == method and concept.embedding.shape == (2, 768)
    assert not torch.equal(picture, draw(*base[:2], "a photo of sks face"))
    assert torch.equal(drawn(base, concept), picture)
    assert torch.equal(draw(*apply(base, concept, 0.0)[:2], "a cat"), draw(*base[:2], "a cat"))
    save(concept, "kept")
    again = load("kept")
    assert content(again) == content(concept) and torch.equal(drawn(base, again), picture)
    if method == "lora":
        assert all(isinstance(change, LowRank) for change in again.weights)
        assert sum(file.stat().st_size for file in places.weights.iterdir()) < 2**20, "thin factors were kept whole"
    save(concept, "small", "compact")
    small, stock = drawn(base, load("small")), draw(*base[:2], "a photo of sks face")
    if method != "dreambooth_ti":
        assert (small - picture).norm() < 0.7 * (stock - picture).norm()
    untouched()


@pytest.mark.parametrize("method", WEIGHTED)
def test_a_recipe_is_learned_again_to_the_same_concept(base, places, draws, method):
    concept = learn(method, base, prior_weight=0.5, prior_pictures=2, image=photo(2))[2]
    save(concept, "recipe", "recipe")
    STORE.clear()
    count = len(draws)
    again = apply(base, load("recipe"))[2]
    assert content(again) == content(concept) and len(draws) == count, "its prior pictures were drawn again"


def test_prior_pictures_are_drawn_once_and_kept(base, prior, draws, untouched):
    wanted = {"prior_weight": 1.0, "prior_pictures": 6}
    first = learn("dreambooth", base, **wanted)[2]
    assert draws == [AT_ONCE, AT_ONCE] and len(list(prior.iterdir())) == 1
    (file,) = prior.iterdir()
    latents = load_file(file)["latents"]
    assert latents.shape == (8, 4, 8, 8) and latents.dtype == torch.float16
    noise = WantedPrior("face", 6, 0).noise(range(4, 8), (8, 8))
    conds = [encode(base[1], text) for text in ("a photo of face", "")]
    stock = comfy.sample.sample(
        base[0], noise, STEPS, GUIDANCE, "euler", "normal", *conds, torch.zeros_like(noise), seed=0
    )
    assert torch.allclose(latents[4:].float(), base[0].model.process_latent_in(stock), rtol=2e-3, atol=2e-3)
    del draws[2:]
    STORE.clear()
    again = learn("dreambooth", base, **wanted)[2]
    assert content(again) == content(first)
    # Another seed of the learning, another method, another trigger, fewer of them: the same pictures.
    learn("dreambooth", base, seed=2, trigger="T*", prior_weight=0.5, prior_pictures=3)
    learn("lora", base, **wanted)
    assert sum(draws) == 8
    learn("lora", base, prior_weight=1.0, prior_pictures=10)
    assert sum(draws) == 12, "more than there were"
    assert torch.equal(load_file(file)["latents"][:8], latents)
    for number, change in enumerate(({"prior_seed": 1}, {"class_word": "cat"}, {"size": 128})):
        learn("lora", base, prior_weight=1.0, prior_pictures=1, **change)
        assert sum(draws) == 16 + 4 * number, change
    assert len(list(prior.iterdir())) == 4
    untouched()


def test_prior_pictures_are_those_of_the_base_without_concepts(base, prior, draws):
    wanted = {"prior_weight": 1.0, "prior_pictures": 1}
    learn("lora", base, **wanted)
    (file,) = prior.iterdir()
    plain = load_file(file)["latents"]
    file.unlink()
    STORE.clear()
    model, clip, _, _ = learn_word(base, trigger="face")
    model, clip, _, _ = learn("dreambooth", (model, clip, base[2]), trigger="D*")
    learn("lora", (model, clip, base[2]), **wanted)
    assert torch.equal(load_file(file)["latents"], plain)


def test_a_damaged_file_of_prior_pictures_is_drawn_again(base, prior, draws):
    wanted = {"prior_weight": 1.0, "prior_pictures": 1}
    first = content(learn("lora", base, **wanted)[2])
    (file,) = prior.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:-5], whole[:8] + b"x" + whole[9:]):
        file.write_bytes(damaged)
        STORE.clear()
        assert content(learn("lora", base, **wanted)[2]) == first and file.read_bytes() == whole
    assert len(draws) == 4


def test_a_folder_that_cannot_be_written_to_is_said_and_harms_nothing(base, prior, draws):
    prior.touch()  # a file in its place
    output = LEARNING["lora"].execute(*base, photo(), "S*", 1, **QUICK, prior_weight=1.0, prior_pictures=1)
    assert f"could not be kept in {prior} (" in said(output) and "may be written to" in said(output)
    STORE.clear()
    learn("lora", base, prior_weight=1.0, prior_pictures=1)
    assert draws == [AT_ONCE, AT_ONCE]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may write everywhere")
def test_a_folder_without_permission_is_said(base, prior):
    prior.mkdir(mode=0o500)
    output = LEARNING["lora"].execute(*base, photo(), "S*", 1, **QUICK, prior_weight=1.0, prior_pictures=1)
    assert "Permission denied" in said(output)


def test_cancelling_while_prior_pictures_are_drawn_keeps_those_there_are(base, prior, draws, monkeypatch, untouched):
    original = progress.Progress.drawing

    def drawing(self, done, total):
        assert total == 3 * STEPS
        if done == 2 * STEPS + 1:
            comfy.model_management.interrupt_current_processing(True)
        original(self, done, total)

    monkeypatch.setattr(progress.Progress, "drawing", drawing)
    wanted = {"prior_weight": 1.0, "prior_pictures": 12}
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        learn("lora", base, **wanted)
    assert len(STORE) == 0 and len(draws) == 3
    (file,) = prior.iterdir()
    assert len(load_file(file)["latents"]) == 8
    monkeypatch.setattr(progress.Progress, "drawing", original)
    learn("lora", base, **wanted)
    assert len(draws) == 4
    untouched()


@pytest.mark.parametrize("method", LEARNING)
def test_cancel_a_fault_and_no_memory_harm_nothing(base, untouched, monkeypatch, method):
    original = progress.Progress.step

    def step(self, report):
        if report.step == 2:
            comfy.model_management.interrupt_current_processing(True)
        original(self, report)

    with monkeypatch.context() as patched:
        patched.setattr(progress.Progress, "step", step)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            learn(method, base)
    comfy.model_management.interrupt_current_processing(False)
    with monkeypatch.context() as patched:
        patched.setattr(ComfyUNet, "denoise", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            learn(method, base)
    with monkeypatch.context() as patched:
        out_of_memory_above(patched, 0)
        with pytest.raises(torch.OutOfMemoryError) as error:
            learn(method, base)
        assert "ran out of memory while learning" in "".join(error.value.__notes__)
    with monkeypatch.context() as patched:
        tried = out_of_memory_above(patched, 1)
        learn(method, base, trigger="T*")
        assert tried[0] == 2 and tried[-1] == 1
    assert len(STORE) == 1
    untouched()


@pytest.mark.parametrize("method", LEARNING)
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"image": torch.rand((0, 64, 64, 3))}, "is empty"),
        ({"class_word": "facelessness"}, "'facelessness' must be one token"),
        ({"class_word": " "}, "'' must be one token"),
        ({"trigger": "a word"}, "choose a word"),
        ({"steps": -1}, "steps = -1"),
    ],
    ids=["no photo", "two tokens", "no class word", "trigger", "steps"],
)
def test_bad_input_gets_one_sentence(base, method, change, fault):
    with pytest.raises(ValueError, match=fault):
        learn(method, base, **change)
    assert len(STORE) == 0


@pytest.mark.parametrize("method", LEARNING)
def test_a_trigger_that_is_a_common_word_is_said(base, method):
    settings = {"prior_weight": 0.0} if method in WEIGHTED else {}
    output = LEARNING[method].execute(*base, photo(), "cat", 1, **QUICK | settings)
    assert "'cat' is an everyday word" in said(output)


def test_an_identifier_of_several_tokens_is_named(base):
    with pytest.raises(ValueError, match="'facelessness' must be one token"):
        learn("lora", base, identifier="facelessness")


@pytest.mark.parametrize("method", LEARNING)
def test_masks_and_several_photos_count(base, method):
    mask = torch.zeros((1, 80, 64))
    mask[:, 20:40, 20:40] = 1
    concepts = [learn(method, base, **change)[2] for change in ({}, {"mask": mask}, {"image": photo(3)})]
    assert len({content(concept) for concept in concepts}) == 3


def test_a_mix_of_one_method_is_drawn_and_of_two_is_refused(base, places):
    one, two = learn("lora", base)[2], learn("lora", base, image=photo(seed=4))[2]
    mixed = MixConcepts.execute(one, two, trigger="M*").args[0]
    save(mixed, "mixed")
    assert content(load("mixed")) == content(mixed)
    assert torch.isfinite(drawn(base, mixed)).all() and all(change.rank == 8 for change in mixed.weights)
    with pytest.raises(ValueError, match="learned by lora, the other by dreambooth"):
        MixConcepts.execute(one, learn("dreambooth", base)[2])


def test_concepts_of_three_methods_are_in_one_picture(base, run, untouched):
    model, clip, _, _ = run()
    model, clip, _, _ = learn("lora", (model, clip, base[2]), trigger="L*", identifier="ohwx")
    alone = learn("dreambooth", base, trigger="D*")[2]
    model, clip, concept, _ = learn("dreambooth", (model, clip, base[2]), trigger="D*")
    assert content(concept) == content(alone), "it was learned on what others have changed"
    pictures = [
        draw(model, clip, text) for text in ("S*, L* and D*", "face, L* and D*", "S*, face and D*", "S*, L* and face")
    ]
    assert torch.isfinite(pictures[0]).all()
    assert not any(torch.equal(pictures[0], other) for other in pictures[1:])
    untouched()


@pytest.mark.parametrize("layers", ["attention", "transformers"])
def test_a_lora_goes_out_as_its_own_factors(base, embeddings, tmp_path, monkeypatch, layers):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(embeddings)], {".safetensors"}))
    concept = learn("lora", base, layers=layers, rank=3, alpha=1.5)[2]
    output = ExportConcept.execute(concept, base[0], base[1], f"lora_{layers}", PAIR)
    assert "exactly the concept's" in said(output)
    path = tmp_path / f"lora_{layers}.safetensors"
    found = load_file(path)
    assert len(found) == 3 * len(concept.weights)
    for change in concept.weights:
        key = "lora_unet_" + change.name.removesuffix(".weight").replace(".", "_")
        assert torch.equal(found[f"{key}.lora_up.weight"].flatten(1), change.up)
        assert torch.equal(found[f"{key}.lora_down.weight"].flatten(1), change.down)
        assert float(found[f"{key}.alpha"]) == 3
    with safe_open(path, framework="pt") as file:
        assert file.metadata()
    # As a stock node loads it, with the word as a stock embedding.
    model, _ = comfy.sd.load_lora_for_models(base[0], None, found, 1.0, 0.0)
    stock, ours = draw(model, base[1], f"a photo of {output.args[0]}"), drawn(base, concept)
    plain = draw(base[0], base[1], f"a photo of {output.args[0]}")
    assert (stock - ours).norm() < 1e-3 * (plain - ours).norm()
    (embeddings / f"lora_{layers}.safetensors").unlink()


def test_the_small_copy_of_dreambooth_is_fitted(base, places):
    model, clip, concept, _ = learn("dreambooth", base)
    output = SaveConcept.execute(concept, "small", "compact", model=model, clip=clip)
    assert "What the small copy predicts is off by" in said(output)
