"""MODEL and CLIP of an oracle's row, ours and stock on the same patched weights, and concepts whose word is known."""

from __future__ import annotations

import copy
import dataclasses

import torch
from comfy.patcher_extension import WrappersMP
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.prompt import concept_clip
from e4t_pack.nodes.host.sampling import patched_model
from oracle import Row
from safetensors.torch import save_file
from world import held, make_concept

import nodes
from e4t_core.loop_settings import SamplingSettings

FILES = {"S": "one", "T": "two"}


def make_parts(base, domain):
    """Two concepts of one domain as a MODEL holds them, by placeholder."""
    # Both are always drawn, as stock is with the weights of both.
    sampling = SamplingSettings(needs_trigger=False)
    concepts = {
        name: make_concept(domain, number, f"{name}*", sampling=sampling) for number, name in enumerate("ST", 1)
    }
    return {name: held(base, concept) for name, concept in concepts.items()}


def with_encoder(parts, change, static=None):
    """The same concepts with another last layer of their encoders and another static embedding."""
    new = {}
    for name, part in parts.items():
        with torch.inference_mode(False), torch.no_grad():
            encoder = copy.deepcopy(part.concept.predictor.encoder)
            change(encoder.final, name)
        predictor = dataclasses.replace(part.concept.predictor, encoder=encoder)
        concept = dataclasses.replace(part.concept, predictor=predictor, embedding=static(part.concept)[None])
        new[name] = dataclasses.replace(part, concept=concept)
    return new


class World:
    """MODEL and CLIP of a row, ours and stock on the same patched weights."""

    def __init__(self, base, parts, row: Row, embeddings) -> None:
        self.row, self.parts, self.embeddings = row, parts, embeddings
        model, clip = base[0], base[1]
        for part in parts.values():
            concept = part.concept
            clip = concept_clip.with_concept(
                clip, concept.trigger, concept.fingerprint, concept.embedding, STORE.prompts
            )
            model = patched_model.with_concept(model, part, STORE.prompts)
        self.clip, self.stock_clip = row.clip(clip), row.clip(base[1])
        self.model = row.model(model)
        plain = model.clone()
        plain.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, patched_model.KEY)
        self.stock_model = row.model(plain)

    def encode(self, text: str) -> list:
        return self._encode(self.clip, text, {name: part.concept.trigger for name, part in self.parts.items()})

    def stock_encode(self, text: str) -> list:
        return self._encode(self.stock_clip, text, {name: f"embedding:{file}" for name, file in FILES.items()})

    def _encode(self, clip, text, words):
        for name, word in words.items():
            text = text.replace(f"{{{name}}}", word)
        return nodes.CLIPTextEncode().encode(clip, text)[0]

    def write_inversions(self, vectors: dict[str, torch.Tensor]) -> None:
        for name, vector in vectors.items():
            save_file({"clip_l": vector[None].clone()}, self.embeddings / f"{FILES[name]}.safetensors")

    def ours(self):
        return self.row.sample(self.model, self.row.conds(self.encode))

    def stock(self, vectors):
        self.write_inversions(vectors)
        return self.row.sample(self.stock_model, self.row.conds(self.stock_encode))


def nothing(layer, _name):
    layer.weight.zero_()
    layer.bias.zero_()


def constant(layer, name):
    layer.weight.zero_()
    layer.bias.copy_(torch.randn(layer.bias.shape, generator=torch.Generator().manual_seed(ord(name))))


def domain_word(concept):
    return concept.predictor.domain_word_embedding
