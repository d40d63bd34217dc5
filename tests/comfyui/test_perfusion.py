"""The node "Learn Photo (Perfusion)": its edit in stock samplers against the paper's formula, and where nothing may change."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from e4t_pack.nodes.export_concept import ExportConcept
from e4t_pack.nodes.host.learning import text_knowledge
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.perfusion import LearnPerfusion
from kept_by_nodes import drawn, load, save
from oracle import ROWS
from oracle_world import World
from personalized import draw, encode
from test_concept_mix import mix
from test_layer_words import layers_of
from test_regions import regions
from world import held, make_concept, photo

from e4t_core import text_covariance
from e4t_core.attention_changes import GatedEdit
from e4t_core.mix import MixError

QUICK = {"steps": 2, "batch": 2, "micro_batch": 2, "size": 64}
NAMES = (
    "plain",
    "weight",
    "word in both",
    "Concat, word last",
    "Average to",
    "area",
    "batch 2",
    "cfg 1",
    "PAG",
    "heun",
)
by_name = pytest.mark.parametrize("row", [row for row in ROWS if row.name in NAMES], ids=lambda row: row.name)


@pytest.fixture(autouse=True)
def few_sentences(monkeypatch):
    """The covariance of two hundred sentences is none the better for these tests."""
    monkeypatch.setattr(text_covariance, "SUBJECTS", text_covariance.SUBJECTS[:2])


def learn(base, **changes):
    """(MODEL, CLIP, concept, losses) by the node."""
    values = {"trigger": "S*", "seed": 1, "class_word": "face", **QUICK, **changes}
    return LearnPerfusion.execute(*base, values.pop("image", photo()), **values).args


def edit_of(base, seed: int = 1, **changes) -> GatedEdit:
    """An edit of all layers that does a lot: the encoding is near those of any token."""
    generator = torch.Generator().manual_seed(seed)
    layers = layers_of(base)
    encoding = encode(base[1], "face")[0][0][0, 1].clone()
    values = torch.randn((len(layers), 768), generator=generator)
    key = torch.randn(768, generator=generator)
    return dataclasses.replace(
        GatedEdit(layers, encoding, encoding / encoding.norm() ** 2, key, values, 0.3, 0.2), **changes
    )


def with_edit(base, domain, name: str, change: GatedEdit):
    plain = make_concept(domain, 1, f"{name}*", {}, {}, predictor=None, domain_fingerprint="")
    return held(base, dataclasses.replace(plain, attention=change))


@by_name
def test_the_sampler_makes_the_edit_of_the_paper_in_prompts_with_the_word_alone(row, base, domain, embeddings):
    """Against a patch of stock attention's projections that is written out, on the stock word."""
    change = edit_of(base)
    world = World(base, {"S": with_edit(base, domain, "S", change)}, row, embeddings)
    ours = world.ours()
    world.write_inversions({"S": world.parts["S"].concept.embedding[0]})
    conds = row.conds(world.stock_encode)
    # The same arithmetic on edited prompts.
    number = {"input": 0, "middle": 1, "output": 2}

    def edited(layer: int, part: str):
        target = change.key if part == "k" else change.values[layer]

        def encode_edited(text):
            (made, extra), *_ = world.stock_encode(text)
            if "{S}" not in text:
                return [[made, extra]]
            share = (made @ change.direction / (change.encoding @ change.direction))[..., None]
            gate = 1 / (1 + torch.exp(-(share - change.bias) / change.temperature))
            return [[made - share * change.encoding + gate * target, extra]]

        made = row.conds(encode_edited)
        return [entry[0] for role in made for entry in made[role]]

    plain = [entry[0] for role in conds for entry in conds[role]]
    replaced = {(layer, part): edited(layer, part) for layer in range(3) for part in "kv"}

    def patch(n, context, value, options):
        made = {"k": context.clone(), "v": value.clone()}
        for index in range(len(context)):
            for place, old in enumerate(plain):
                times = context.shape[1] // old.shape[1]
                if torch.equal(context[index : index + 1], old.repeat(1, times, 1)):
                    for part, one in made.items():
                        one[index] = replaced[number[options["block"][0]], part][place][0].repeat(times, 1)
        return n, made["k"], made["v"]

    model = world.stock_model.clone()
    model.set_model_attn2_patch(patch)
    expected = row.sample(model, conds)
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()
    stock = row.sample(world.stock_model, conds)
    assert (ours - stock).abs().max() > 1e-2 * expected.abs().max(), "the edit makes no difference"


def test_a_closed_gate_and_a_strength_of_zero_are_stock_bit_for_bit(base, domain, embeddings):
    row = ROWS[0]
    closed = edit_of(base, bias=100.0, temperature=0.1)
    for change, strength in ((closed, 1.0), (edit_of(base), 0.0)):
        part = dataclasses.replace(with_edit(base, domain, "S", change), strength=strength)
        world = World(base, {"S": part}, row, embeddings)
        assert torch.equal(world.ours(), world.stock({"S": part.concept.embedding[0]}))


def test_it_is_learned_kept_and_drawn_and_the_base_stays(base, places, untouched, monkeypatch):
    model, clip, concept, losses = learn(base)
    assert len(losses["loss"]) == 2 and concept.method == "perfusion" and not model.patches
    picture = draw(model, clip)
    assert torch.equal(draw(model, clip, "a photo of face"), draw(*base[:2], "a photo of face"))
    name = save(concept, "edit")
    assert not torch.equal(draw(base[0], base[1], f"a photo of embedding:e4t/{name}"), picture)
    again = load(name)
    for ours, kept in zip(concept.attention.tensors(), again.attention.tensors(), strict=True):
        assert torch.equal(ours, kept)
    assert torch.equal(drawn(base, again), picture)
    assert not torch.equal(drawn(base, again, 0.5), picture)
    # The covariance belongs to the text encoder: another photo does not ask for it again.
    monkeypatch.setattr(text_knowledge, "text_covariance", None)
    learn(base, trigger="T*", image=photo(seed=3))
    STORE.clear()
    with pytest.raises(TypeError):
        learn(base, trigger="T*", image=photo(seed=3))
    untouched()


def test_two_methods_stand_in_one_prompt_and_two_edits_too(base, domain, run):
    model, clip, _, _ = run()
    both, both_clip, _, _ = learn((model, clip, base[2]), trigger="T*", image=photo(seed=4))
    picture = draw(both, both_clip, "a photo of S* and T*")
    for other in ("a photo of S* and face", "a photo of face and T*"):
        assert not torch.equal(picture, draw(both, both_clip, other))


def test_regions_refuse_it(base, domain):
    one, two = (with_edit(base, domain, name, edit_of(base, n)).concept for n, name in enumerate("ST", 1))
    with pytest.raises(ValueError, match="learned by Perfusion, which E4T Regions cannot draw"):
        regions(base, one, dataclasses.replace(two, fingerprint="another"))


def test_nodes_that_cannot_use_it_say_so(base, domain, stock_folder):
    part = with_edit(base, domain, "S", edit_of(base))
    with pytest.raises(ValueError, match="read by each layer of the network in a way of its own, which no stock file"):
        ExportConcept.execute(part.concept, base[0], base[1], "out", "LoRA and embedding")
    with pytest.raises(MixError, match="acts on one word, so two have no average"):
        mix(part.concept, dataclasses.replace(part.concept, fingerprint="another"))
