"""The node "Learn Photo (Textual Inversion)": learned on any base, drawn by stock nodes, kept as a stock embedding."""

from __future__ import annotations

import pytest
import torch
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.save_concept import SaveConcept
from e4t_pack.nodes.textual_inversion import LearnTextualInversion
from oracle import ksample
from personalized import encode
from safetensors import safe_open
from world import photo

QUICK = {"steps": 3, "batch": 2, "micro_batch": 2, "size": 64}


def learn(base, **changes):
    """(MODEL, CLIP, concept, losses)."""
    values = {"trigger": "S*", "seed": 1, "class_word": "face", **QUICK, **changes}
    return LearnTextualInversion.execute(*base, values.pop("image", photo()), **values).args


def draw(model, clip, text):
    return ksample(model, {"positive": encode(clip, text), "negative": encode(clip, "blurry")})


def test_only_the_word_is_learned(base, untouched):
    model, clip, held, losses = learn(base)
    assert len(losses["loss"]) == 3 and held.method == "textual_inversion"
    assert held.weights == () and held.predictor is None and not model.patches
    assert not torch.equal(draw(model, clip, "a photo of S*"), draw(model, clip, "a photo of face"))
    assert torch.equal(draw(model, clip, "a photo of face"), draw(base[0], base[1], "a photo of face"))
    untouched()


@pytest.mark.parametrize("vectors", [1, 3])
def test_its_file_is_read_by_the_stock_prompt_as_the_same_word(base, stock_folder, vectors):
    model, clip, held, _ = learn(base, vectors=vectors)
    name = SaveConcept.execute(held, f"word_{vectors}").args[0]
    assert name == f"embedding:e4t/word_{vectors}"
    with safe_open(stock_folder / f"word_{vectors}.safetensors", framework="pt") as file:
        assert file.get_tensor("clip_l").shape == (vectors, 768)
        assert file.metadata()["modelspec.trigger_phrase"] == "S*"
    for text in ("a photo of {}", "a watercolor of ({}:1.3), smiling"):
        stock, ours = encode(base[1], text.format(name)), encode(clip, text.format("S*"))
        assert torch.equal(stock[0][0], ours[0][0])
    assert torch.equal(draw(base[0], base[1], f"a photo of {name}"), draw(model, clip, "a photo of S*"))


def test_a_file_that_is_there_stays_unless_it_is_to_be_overwritten(base, stock_folder):
    first, second = learn(base)[2], learn(base, seed=2)[2]
    assert SaveConcept.execute(first, "kept").args[0] == "embedding:e4t/kept"
    before = (stock_folder / "kept.safetensors").read_bytes()
    assert SaveConcept.execute(second, "kept").args[0] == "embedding:e4t/kept_00002"
    assert (stock_folder / "kept.safetensors").read_bytes() == before
    assert SaveConcept.execute(second, "kept", overwrite=True).args[0] == "embedding:e4t/kept"
    assert (stock_folder / "kept.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, "cannot be a file's") for name in ("", "../out", "a/b", "a b", "con:", ".hidden", "end.", "\ud800")),
        ("x" * 181, "is too long for a file"),
        ("con", "is a device on Windows"),
    ],
)
def test_a_name_that_is_no_file_s_is_refused_before_and_while_it_runs(base, stock_folder, name, fault):
    assert fault in str(SaveConcept.validate_inputs(name=name))
    with pytest.raises(ValueError, match=fault):
        SaveConcept.execute(learn(base)[2], name)


def test_equal_inputs_are_learned_once_and_every_input_counts(base):
    first = learn(base)[2]
    assert learn(base)[2].fingerprint == first.fingerprint and len(STORE) == 1
    for change in (
        {"seed": 2},
        {"class_word": "cat"},
        {"vectors": 2},
        {"learning_rate": 1e-2},
        {"image": photo(seed=5)},
    ):
        assert learn(base, **change)[2].fingerprint != first.fingerprint, change


def test_learning_lowers_the_loss_on_the_photo(base):
    losses = learn(base, steps=30, learning_rate=2e-2, batch=4, micro_batch=4)[3]["loss"]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_class_word_of_several_tokens_is_named(base):
    with pytest.raises(ValueError, match="'facelessness' must be one token"):
        learn(base, class_word="facelessness")


def test_a_concept_of_each_method_are_in_one_picture(base, run):
    model, clip, _, _ = run()
    both, both_clip, _, _ = learn((model, clip, base[2]), trigger="T*", image=photo(seed=4))
    picture = draw(both, both_clip, "a photo of S* and T*")
    assert torch.isfinite(picture).all()
    assert not torch.equal(picture, draw(both, both_clip, "a photo of S* and face"))
    assert not torch.equal(picture, draw(both, both_clip, "a photo of face and T*"))
