"""Sampling with refinement against stock ComfyUI with a textual-inversion file, row by row, three ways.

* zero: the encoder's answer is zero, so e_c = e_d at every evaluation: equal bits, although everything ran.
* bias: the answer is a constant c, while the static embedding is e_d: stock with e_d + s·c, bit for bit, and not e_d.
* real: an encoder that depends on latent and timestep, against a loop that encodes everything anew at each evaluation.

And once more with an empty negative prompt, whose pass shows the noisy picture, too.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from e4t_pack.nodes.host.prompt import concept_clip
from oracle import ROWS
from oracle_world import World, constant, domain_word, make_parts, nothing, with_encoder

from e4t_core.loop_settings import SamplingSettings

# The real encoder's reference adds and batches in another order; everything is float32.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def parts(base, domain):
    """Two concepts of one domain as a MODEL holds them, by placeholder."""
    return make_parts(base, domain)


@pytest.fixture
def calls(monkeypatch):
    """Counts calls of the text encoder by refinement."""
    made = []
    original = concept_clip.ConceptCLIP.encode_again

    def counted(self, *arguments):
        made.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(concept_clip.ConceptCLIP, "encode_again", counted)
    return made


by_name = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


@by_name
def test_a_zero_encoder_equals_stock_bit_for_bit(row, base, parts, embeddings, calls):
    world = World(base, with_encoder(parts, nothing, domain_word), row, embeddings)
    vectors = {name: part.concept.predictor.domain_word_embedding for name, part in parts.items()}
    ours = world.ours()
    assert calls, "refinement did not run"
    assert torch.equal(ours, world.stock(vectors))


@by_name
def test_a_constant_encoder_equals_stock_with_that_vector_bit_for_bit(row, base, parts, embeddings):
    changed = with_encoder(parts, constant, domain_word)
    world = World(base, changed, row, embeddings)
    features = torch.zeros((1, next(iter(parts.values())).concept.predictor.encoder.feature_width))
    vectors = {name: part.concept.predictor.word(features)[0] for name, part in changed.items()}
    ours = world.ours()
    assert torch.equal(ours, world.stock(vectors))
    plain = {name: part.concept.predictor.domain_word_embedding for name, part in parts.items()}
    assert not torch.equal(ours, world.stock(plain)), "the word made no difference, so the row proves nothing"


@by_name
def test_a_real_encoder_equals_encoding_everything_anew_at_every_evaluation(row, base, parts, embeddings, calls):
    world = World(base, parts, row, embeddings)
    ours = world.ours()
    reference = Reference(world)
    expected = reference.sample()
    assert len(calls) == reference.calls
    scale = expected.abs().max()
    assert (ours - expected).abs().max() <= TOLERANCE * scale
    statics = {name: part.concept.embedding[0] for name, part in parts.items()}
    assert (ours - world.stock(statics)).abs().max() > 10 * TOLERANCE * scale, "the encoder made no difference"


@by_name
def test_with_an_empty_negative_sharing_its_pass_changes_rounding_only(row, base, parts, embeddings):
    """Not shared, it is stock bit for bit, as above; shared, the latents are those up to rounding."""
    world = World(base, with_encoder(apart(parts), constant, domain_word), row, embeddings)
    features = torch.zeros((1, next(iter(parts.values())).concept.predictor.encoder.feature_width))
    world.write_inversions({name: part.concept.predictor.word(features)[0] for name, part in world.parts.items()})
    stock = row.sample(world.stock_model, row.conds(emptied(world.stock_encode)))
    assert torch.equal(row.sample(world.model, row.conds(emptied(world.encode))), stock)
    drawn = []
    for held in (apart(parts), parts):
        world = World(base, held, row, embeddings)
        drawn.append(row.sample(world.model, row.conds(emptied(world.encode))))
    assert (drawn[1] - drawn[0]).abs().max() <= TOLERANCE * drawn[0].abs().max()


def apart(parts):
    """The same concepts, with a feature pass of their own."""
    sampling = SamplingSettings(share_pass=False, needs_trigger=False)
    return {
        name: dataclasses.replace(part, concept=dataclasses.replace(part.concept, sampling=sampling))
        for name, part in parts.items()
    }


def emptied(encode):
    """The rows' negative prompt is empty."""
    return lambda text: encode("" if text == "blurry" else text)


class Reference:
    """Stock sampling in which every evaluation makes all conditioning again, from textual-inversion files."""

    def __init__(self, world: World) -> None:
        self.world, self.seen, self.calls = world, [], 0
        self.statics = self._tensors({name: part.concept.embedding[0] for name, part in world.parts.items()})
        other = {name: torch.ones(768) for name in world.parts}
        self.word_rows = [
            index
            for index, (a, b) in enumerate(zip(self.statics, self._tensors(other), strict=True))
            if not torch.equal(a, b)
        ]

    def _tensors(self, vectors) -> list[torch.Tensor]:
        self.world.write_inversions(vectors)
        conds = self.world.row.conds(self.world.stock_encode)
        return [tensor for group in conds.values() for tensor, _ in group]

    def sample(self):
        model = self.world.stock_model.clone()
        model.add_wrapper(WrappersMP.CALC_COND_BATCH, self)
        self.world.write_inversions({name: part.concept.embedding[0] for name, part in self.world.parts.items()})
        return self.world.row.sample(model, self.world.row.conds(self.world.stock_encode))

    def __call__(self, executor, model, conds, x, sigma, model_options):
        model.current_patcher.patch_hooks(None)  # the word depends on no prompt's own LoRA
        features = naive_features(model, x, sigma, next(iter(self.world.parts.values())).empty)
        rows = []
        for row in range(x.shape[0]):
            words = {
                name: part.concept.predictor.word(features[row : row + 1])[0] for name, part in self.world.parts.items()
            }
            rows.append(self._tensors(words))
        fresh = [torch.cat(tensors) for tensors in zip(*rows, strict=True)]
        self._count(conds, x, sigma)
        return executor(
            model, [group and [self._replace(c, fresh) for c in group] for group in conds], x, sigma, model_options
        )

    def _index(self, cond):
        tensor = cond["model_conds"]["c_crossattn"].cond
        return next(i for i, static in enumerate(self.statics) if torch.equal(static, tensor))

    def _replace(self, cond, fresh):
        attention = cond["model_conds"]["c_crossattn"]
        return {
            **cond,
            "model_conds": {**cond["model_conds"], "c_crossattn": type(attention)(fresh[self._index(cond)])},
        }

    def _count(self, conds, x, sigma):
        """One call per prompt with a word and distinct evaluation in which it is active."""
        for cond in (c for group in conds if group for c in group):
            index, level = self._index(cond), float(sigma[0])
            active = float(cond.get("timestep_start", 1e9)) >= level >= float(cond.get("timestep_end", 0))
            key = (index, x.clone(), level)
            known = any(k[0] == index and torch.equal(k[1], x) and k[2] == level for k in self.seen)
            if index in self.word_rows and active and not known and self.statics[index].any():
                self.seen.append(key)
                self.calls += 1


def naive_features(model, x, sigma, empty):
    """UNet features by hooks on a complete, unrefined pass with the empty prompt."""
    network, means = model.diffusion_model, {}
    blocks = [*network.input_blocks, network.middle_block]
    handles = [
        block[-1].register_forward_hook(lambda _m, _i, out, k=k: means.__setitem__(k, out.mean(dim=(2, 3))))
        for k, block in enumerate(blocks)
    ]
    try:
        z, t = model.model_sampling.calculate_input(sigma, x), model.model_sampling.timestep(sigma).float()
        network(z, t, context=empty.expand(x.shape[0], -1, -1), transformer_options={})
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([means[k] for k in range(len(blocks))], dim=1)
