"""A word for each layer in stock samplers: Textual Inversion where the words are equal, a written-out patch where they differ."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from e4t_pack.nodes.export_concept import ExportConcept
from e4t_pack.nodes.extended_textual_inversion import LearnExtendedTextualInversion
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from kept_by_nodes import apply, content, drawn, load, save
from oracle import ROWS, ksample
from oracle_world import World
from personalized import draw, encode
from test_concept_mix import mix
from test_regions import noise, regions, sample
from world import held, make_concept, photo

from e4t_core.attention_changes import LayerWords
from e4t_core.layer_contexts import cross_attentions
from e4t_core.mix import MixError

QUICK = {"steps": 3, "batch": 2, "micro_batch": 2, "size": 64}
NAMES = (
    *("plain", "weight", "long prompt", "word twice", "word in both", "cfg 1", "clip skip", "LoRA hook on both"),
    *(
        "CLIP hook, scheduled",
        "Concat, word last",
        "Average to",
        "Multiply",
        "area",
        "mask",
        "timestep range",
        "ControlNet",
    ),
    *(
        "KSamplerAdvanced 2+2",
        "heun",
        "batch 2",
        "DualCFGGuider",
        "PerpNegGuider",
        "PAG",
        "two concepts in two prompts",
    ),
)
by_name = pytest.mark.parametrize("row", [row for row in ROWS if row.name in NAMES], ids=lambda row: row.name)


def learn(base, **changes):
    """(MODEL, CLIP, concept, losses) by the node."""
    values = {"trigger": "S*", "seed": 1, "class_word": "face", **QUICK, **changes}
    return LearnExtendedTextualInversion.execute(*base, values.pop("image", photo()), **values).args


def layers_of(base) -> tuple[str, ...]:
    return cross_attentions(ComfyUNet(base[0]).attention_projections())


def words(count: int, seed: int, vectors: int = 1) -> torch.Tensor:
    return 0.38 / 768**0.5 * torch.randn((count, vectors, 768), generator=torch.Generator().manual_seed(seed))


def with_words(base, domain, embeddings: dict[str, torch.Tensor]) -> dict:
    """Concepts as a MODEL holds them, by placeholder, with these words ``(layers, V, D)``."""
    parts = {}
    for number, (name, own) in enumerate(embeddings.items(), 1):
        change = LayerWords(layers_of(base), own)
        plain = make_concept(domain, number, f"{name}*", {}, {}, predictor=None, domain_fingerprint="")
        concept = dataclasses.replace(plain, attention=change, embedding=change.mean())
        parts[name] = held(base, concept)
    return parts


@by_name
def test_equal_words_are_stock_textual_inversion_bit_for_bit(row, base, domain, embeddings):
    vectors = {name: words(1, seed) for seed, name in enumerate("ST", 1)}
    layered = with_words(base, domain, {name: v.expand(3, -1, -1).clone() for name, v in vectors.items()})
    world = World(base, layered, row, embeddings)
    counted = Counted(world)
    ours = world.ours()
    assert counted.replaced > 0, "no layer was given a context of its own"
    assert torch.equal(ours, world.stock({name: v[0, 0] for name, v in vectors.items()}))


class Counted:
    """Counts calls of the patch that give a layer something of its own."""

    def __init__(self, world: World) -> None:
        from e4t_pack.nodes.host.sampling import layer_patch

        self.replaced = 0
        original = layer_patch.LayerPatch._replaced

        def counting(patch, given, own):
            made = original(patch, given, own)
            self.replaced += made is not given
            return made

        world.restore = pytest.MonkeyPatch()
        world.restore.setattr(layer_patch.LayerPatch, "_replaced", counting)


@by_name
def test_each_layer_reads_its_own_word_as_a_written_out_patch_gives_it(row, base, domain, embeddings):
    own = {name: words(3, seed) for seed, name in enumerate("ST", 1)}
    world = World(base, with_words(base, domain, own), row, embeddings)
    ours = world.ours()

    def stock_conds(vectors):
        world.write_inversions(vectors)
        return row.conds(world.stock_encode)

    mean = {name: value.double().mean(dim=0)[0].float() for name, value in own.items()}
    plain = stock_conds(mean)
    by_layer = [stock_conds({name: value[n, 0] for name, value in own.items()}) for n in range(3)]
    # In the order of names: down, middle, up.
    number = {"input": 0, "middle": 1, "output": 2}

    def tensors(conds):
        return [entry[0] for role in conds for entry in conds[role]]

    def patch(n, context, value, options):
        made = context.clone()
        for index in range(len(context)):
            for old, new in zip(tensors(plain), tensors(by_layer[number[options["block"][0]]]), strict=True):
                times = context.shape[1] // old.shape[1]
                if torch.equal(context[index : index + 1], old.repeat(1, times, 1)):
                    made[index] = new[0].repeat(times, 1)
        return n, made, made

    model = world.stock_model.clone()
    model.set_model_attn2_patch(patch)
    expected = row.sample(model, plain)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()
    fixed = row.sample(world.stock_model, plain)
    assert (ours - fixed).abs().max() > 1e-3 * expected.abs().max(), "the layers' words make no difference"


def test_other_packs_patches_of_attention_see_what_layers_read(base, domain):
    """One that is called before ours, and one in place of attention itself, which gets keys and values made of our contexts."""
    part = with_words(base, domain, {"S": words(3, 1)})["S"]
    model, clip, _ = apply(base, part.concept)
    wanted = draw(model, clip)
    seen = []

    def before(n, context, value, options):
        seen.append("patch")
        return n, context, value

    def instead(q, k, v, options):
        seen.append("attention")
        return attention_pytorch(q, k, v, options["n_heads"])

    other = model.clone()
    other.set_model_attn2_patch(before)
    for block, number in (("input", 1), ("middle", 0), ("output", 0), ("output", 1)):
        other.set_model_attn2_replace(instead, block, number)
    # Attention by another kernel adds up in another order.
    assert (draw(other, clip) - wanted).norm() < 1e-5 * wanted.norm()
    assert {"patch", "attention"} == set(seen)


def test_it_is_learned_kept_and_drawn_and_the_base_stays(base, places, untouched):
    model, clip, concept, losses = learn(base)
    assert len(losses["loss"]) == 3 and concept.method == "extended_textual_inversion" and not model.patches
    picture = draw(model, clip)
    assert not torch.equal(picture, draw(model, clip, "a photo of face"))
    assert torch.equal(draw(model, clip, "a photo of face"), draw(*base[:2], "a photo of face"))
    # A stock prompt reads the mean of the words; the concept itself is more than that.
    name = save(concept, "layers")
    stock = draw(base[0], base[1], f"a photo of embedding:e4t/{name}")
    assert not torch.equal(stock, picture)
    again = load(name)
    assert content(again) == content(concept) and again.attention.layers == concept.attention.layers
    assert torch.equal(again.attention.embeddings, concept.attention.embeddings)
    assert torch.equal(drawn(base, again), picture)
    assert not places.weights.exists() or not list(places.weights.iterdir())
    save(concept, "recipe", "recipe")
    relearned = apply(base, load("recipe"))[2]
    assert torch.equal(relearned.attention.embeddings, concept.attention.embeddings)
    untouched()


def test_word_strengths_and_mixes_hold_for_every_layer(base):
    one, two = learn(base, trigger="A*")[2], learn(base, trigger="B*", image=photo(seed=2))[2]
    mixed = mix(one, two, weight_1=3.0)
    wanted = 0.75 * one.attention.embeddings + 0.25 * two.attention.embeddings
    assert torch.allclose(mixed.attention.embeddings, wanted, atol=1e-7)
    half = apply(base, mixed, 1.0, 0.5)
    nothing = apply(base, mixed, 1.0, 0.0)
    pictures = [draw(*of[:2], "a photo of M*") for of in (half, nothing, apply(base, mixed))]
    assert torch.equal(pictures[1], draw(*base[:2], "a photo of face"))
    assert not torch.equal(pictures[0], pictures[2]) and not torch.equal(pictures[0], pictures[1])
    with pytest.raises(MixError, match="not for the same layers"):
        mix(one, dataclasses.replace(two, attention=None))


def test_it_stands_in_one_prompt_with_a_word_that_is_refined(base, run):
    model, clip, _, _ = run()
    both, both_clip, _, _ = learn((model, clip, base[2]), trigger="T*", image=photo(seed=4), learning_rate=0.1)
    picture = draw(both, both_clip, "a photo of S* and T*")
    assert torch.isfinite(picture).all()
    others = [draw(both, both_clip, f"a photo of {text}") for text in ("S* and face", "face and T*", "face and face")]
    assert all(not torch.equal(picture, other) for other in others)


def test_regions_draw_it_where_it_belongs(base, domain):
    one, two = (part.concept for part in with_words(base, domain, {"S": words(3, 1), "T": words(3, 2)}).values())
    model, positive, negative, _ = regions(base, one, two)
    made = sample(model, positive, negative, noise())
    for concept, side in ((one, slice(0, 8)), (two, slice(8, 16))):
        own, clip, _ = apply(base, concept)
        wanted = sample(own, encode(clip, f"a photo of {concept.trigger}"), encode(clip, "blurry"), noise()[..., side])
        assert (made[..., side] - wanted).norm() < 1e-3 * wanted.norm()


def test_no_stock_file_holds_it_and_the_node_says_so(base, stock_folder):
    model, clip, concept, _ = learn(base, steps=1)
    with pytest.raises(ValueError, match="read by each layer of the network in a way of its own, which no stock file"):
        ExportConcept.execute(concept, model, clip, "out", "LoRA and embedding")


def test_the_sampler_says_where_it_is(base, domain, caplog):
    caplog.set_level("INFO")
    part = with_words(base, domain, {"S": words(3, 1)})["S"]
    model, clip, _ = apply(base, part.concept)
    ksample(model, {"positive": encode(clip, "a photo of S*"), "negative": encode(clip, "blurry")})
    assert "S* in 1 of 2 prompts" in caplog.text and "refinement off" not in caplog.text
