"""``needs_trigger`` over the oracle matrix: whatever way a word reaches the sampler, it is seen; and what is not named is gone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from oracle import ROWS
from oracle_world import World, make_parts

# A mix whose own marks do not tell all of it: nobody knows what it holds, so every concept stays.
UNKNOWN = {"Concat, word first", "Concat, word last", "Average to", "Average from", "Average of long and short"}


def bound(parts, names, needs_trigger=True):
    """Some of the concepts, drawn by their trigger alone or always."""
    made = {}
    for name in names:
        concept = parts[name].concept
        sampling = dataclasses.replace(concept.sampling, needs_trigger=needs_trigger)
        made[name] = dataclasses.replace(parts[name], concept=dataclasses.replace(concept, sampling=sampling))
    return made


@pytest.fixture(scope="module")
def parts(base, domain):
    return make_parts(base, domain)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_concept_that_is_named_is_drawn_and_another_leaves_no_trace(row, base, parts, embeddings):
    texts: list[str] = []
    world = World(base, bound(parts, "ST"), row, embeddings)
    row.conds(lambda text: texts.append(text) or world.encode(text))
    named = [name for name in "ST" if any(f"{{{name}}}" in text for text in texts)]
    alone, free = (World(base, bound(parts, named, needs), row, embeddings).ours() for needs in (True, False))
    assert torch.equal(alone, free), "a concept that a prompt names was left out"
    if named == ["S"]:
        both, always = world.ours(), World(base, bound(parts, "ST", False), row, embeddings).ours()
        assert not torch.equal(always, free), "the other concept made no difference, so the row proves nothing"
        assert torch.equal(both, always if row.name in UNKNOWN else alone)
