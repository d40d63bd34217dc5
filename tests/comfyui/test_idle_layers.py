"""Layers of a text encoder that add nothing are left out, and nobody can tell."""

import comfy.hooks
import pytest
import torch
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from e4t_pack.nodes.host.networks.idle_layers import LAYERS, idle_layers, left_out
from e4t_pack.nodes.host.networks.text_encoder import ComfyTextEncoder
from world import hold, make_base, make_concept, make_domain

PREFIX = "clip_l."


@pytest.fixture
def idle_base():
    """A base whose text encoder's second layer adds nothing."""
    base = make_base()
    network = base[1].cond_stage_model.clip_l
    layer = network.get_submodule(f"{LAYERS}.1")
    with torch.no_grad():
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    return base


def weights(clip):
    return dict(clip.cond_stage_model.named_parameters())


def calls_of(monkeypatch, clip, number):
    """A list that grows with every call of a layer's attention."""
    attention = clip.cond_stage_model.clip_l.get_submodule(f"{LAYERS}.{number}.self_attn")
    called, forward = [], attention.forward
    monkeypatch.setattr(attention, "forward", lambda *a, **k: (called.append(1), forward(*a, **k))[1])
    return called


def test_only_layers_whose_last_linears_are_all_zero_are_idle(idle_base):
    clip = idle_base[1]
    assert idle_layers(weights(clip), PREFIX) == (1,)
    with torch.no_grad():
        clip.cond_stage_model.clip_l.get_submodule(f"{LAYERS}.1").mlp.fc2.weight[3, 5] = 1e-6
    assert idle_layers(weights(clip), PREFIX) == ()


def test_leaving_them_out_changes_no_bit_and_is_undone(idle_base, monkeypatch):
    clip = idle_base[1]
    network, called = clip.cond_stage_model.clip_l, calls_of(monkeypatch, clip, 1)
    tokens = clip.tokenize("a photo of a face, blue background")
    stock = clip.encode_from_tokens(tokens)
    assert len(called) == 1
    with left_out(network, (1,)):
        assert torch.equal(clip.encode_from_tokens(tokens), stock)
    assert len(called) == 1
    with pytest.raises(RuntimeError, match="stop"), left_out(network, (1,)):
        raise RuntimeError("stop")
    assert torch.equal(clip.encode_from_tokens(tokens), stock)
    assert len(called) == 2


def test_tuning_encodes_without_them_and_gets_the_same_numbers_and_gradients(idle_base, monkeypatch):
    clip = idle_base[1]
    called = calls_of(monkeypatch, clip, 1)

    def encoded(idle):
        text = ComfyTextEncoder(clip)
        assert text._idle == (1,)
        text._idle = idle
        with torch.inference_mode(False), torch.enable_grad():
            word = text.word("face").requires_grad_()
            context = text.encode(["a photo of {}"], word[None])
            context.square().sum().backward()
        return context.detach(), word.grad

    whole, short = encoded(()), encoded((1,))
    assert len(called) == 1
    assert all(torch.equal(a, b) for a, b in zip(whole, short, strict=True))


def test_refinement_leaves_them_out_but_not_where_a_patch_or_hook_could_change_them(idle_base, monkeypatch):
    _, clip = hold(idle_base, make_concept(make_domain(ComfyUNet(idle_base[0]))))
    called = calls_of(monkeypatch, clip, 1)
    (prompt,) = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of S*"))[0][1]["e4t_prompts"]
    (fingerprint,) = prompt.concepts
    words = {fingerprint: torch.randn(1, 768)}
    assert len(called) == 1
    fresh = prompt.encode(words, ())
    assert len(called) == 1
    key = f"{PREFIX}{LAYERS}.1.mlp.fc2.weight"
    patched = clip.clone()
    patched.patcher.add_patches({key: (torch.full_like(weights(clip)[key], 1e-2),)})
    assert clip._idle() == (1,)
    assert patched._idle() == ()
    changed = patched.encode_from_tokens_scheduled(patched.tokenize("a photo of S*"))[0][1]["e4t_prompts"][0]
    assert not torch.allclose(changed.encode(words, ()), fresh)
    hooked = clip.clone()
    hooked.patcher.hook_patches = {comfy.hooks.WeightHook(): {}}
    hooked._idle_of = None
    assert hooked._idle() == ()
