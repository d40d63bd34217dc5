"""Prompts that other nodes draw in regions of their own: followed where cross-attention is given them, else told as fixed."""

from __future__ import annotations

import logging

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from e4t_pack.nodes.host.sampling import patched_model
from e4t_pack.nodes.host.sampling.announcement import REGION
from personalized import draw, encode
from world import hold, make_concept


class Replaced:
    """An attn2 replace patch that attends to a context of its own, which goes into no cross-attention of the UNet's."""

    def __init__(self, region, attention) -> None:
        self.region, self.attention = region, attention

    def __call__(self, q, _k, _v, options):
        region = self.region.to(q).expand(q.shape[0], -1, -1)
        return optimized_attention(q, self.attention.to_k(region), self.attention.to_v(region), options["n_heads"])


def replaced(model, region):
    """A clone whose middle block attends to ``region`` in a replace patch."""
    new = model.clone()
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    new.set_model_attn2_replace(Replaced(region, attention), "middle", 0)
    return new


def given(model, region):
    """A clone whose cross-attention is given ``region`` in place of every prompt."""
    new = model.clone()
    new.set_model_attn2_patch(lambda n, context, value, options: (n, *[region.to(context).expand_as(context)] * 2))
    return new


@pytest.fixture
def held(base, domain):
    return hold(base, make_concept(domain))


def drawn(model, clip, caplog):
    """A picture of a prompt without the word, and what was said."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "e4t_pack.nodes.host.sampling.refinement"):
        picture = draw(model, clip, "a room")
    return picture, caplog.text


def test_a_region_that_only_a_replace_patch_uses_keeps_its_word_and_that_is_said(held, caplog):
    model, clip = held
    region = encode(clip, "a photo of S*")[0][0]
    picture, told = drawn(replaced(model, region), clip, caplog)
    assert f"not refined in 1: {REGION}, so the word stays the same at all steps there." in told
    stock = replaced(model, region)
    stock.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, patched_model.KEY)
    assert torch.equal(picture, draw(stock, clip, "a room"))
    assert not torch.equal(picture, draw(model, clip, "a room")), (
        "the region made no difference, so this proves nothing"
    )


def test_the_same_region_is_followed_and_not_complained_of_where_cross_attention_is_given_it(held, caplog):
    model, clip = held
    region = encode(clip, "a photo of S*")[0][0]
    picture, told = drawn(given(model, region), clip, caplog)
    assert "S* in 1 of " in told and "not refined" not in told
    stock = given(model, region)
    stock.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, patched_model.KEY)
    assert not torch.equal(picture, draw(stock, clip, "a room"))
