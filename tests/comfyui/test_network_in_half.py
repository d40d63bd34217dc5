"""A UNet that computes in half precision, or computes its blocks again in the backward pass, learns the same."""

from __future__ import annotations

import pytest
import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from e4t_pack.nodes.host.networks.base_model import ComfyUNet

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"


def inputs(rows=2, side=8):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn((rows, 4, side, side), generator=generator)
    return z, torch.tensor([20, 700][:rows]), torch.randn((rows, 77, 768), generator=generator)


def gradients(unet, checkpointing=False, features=True):
    """Of every weight, through a denoising pass that follows a feature pass, as E4T makes them."""
    with torch.inference_mode(False), torch.enable_grad():
        lent = {name: value.to(unet.dtype, copy=True).requires_grad_() for name, value in unet.parameters().items()}
        z, t, context = (tensor.clone() for tensor in inputs())
        with unet.using(lent, checkpointing):
            if features:
                context = context + unet.features(z, t, context).mean(dim=1)[:, None, None]
            unet.denoise(z, t, context).square().mean().backward()
    return {name: weight.grad for name, weight in lent.items()}


def blocks(unet):
    return [part for part in unet._network.modules() if isinstance(part, ResBlock | SpatialTransformer)]


@pytest.mark.parametrize("features", [True, False], ids=["with features", "denoising alone"])
def test_checkpointing_changes_no_gradient(base, features):
    unet = ComfyUNet(base[0])
    plain, again = gradients(unet, False, features), gradients(unet, True, features)
    assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)
    assert not any("forward" in vars(block) for block in blocks(unet))


def test_checkpointing_keeps_little_for_the_backward_pass(base):
    unet, kept = ComfyUNet(base[0]), {}
    for checkpointing in (False, True):
        seen: dict[int, int] = {}

        def keep(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.inference_mode(False), torch.enable_grad():
            z, t, context = (tensor.clone() for tensor in inputs())
            lent = {QUERY: unet.parameters()[QUERY].clone().requires_grad_()}
            weights = {value.untyped_storage().data_ptr() for value in (*unet.parameters().values(), *lent.values())}
            with unet.using(lent, checkpointing), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
                unet.denoise(z.requires_grad_(), t, context)
        kept[checkpointing] = sum(size for place, size in seen.items() if place not in weights)
    assert kept[True] < 0.5 * kept[False]


def test_another_packs_forward_on_a_block_is_kept(base):
    unet = ComfyUNet(base[0])
    block, called = blocks(unet)[0], []
    stock = block.forward

    def own(*given, **options):
        called.append(1)
        return stock(*given, **options)

    block.forward = own
    try:
        gradients(unet, checkpointing=True)
        assert block.forward is own and len(called) == 4, "two passes, each of them twice"
        with pytest.raises(RuntimeError, match="stop"), unet.using({}, checkpointing=True):
            raise RuntimeError("stop")
        assert block.forward is own
    finally:
        del block.forward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_gradients(base, dtype):
    exact, rounded = gradients(ComfyUNet(base[0])), gradients(ComfyUNet(base[0], dtype))
    one = torch.cat([gradient.flatten() for gradient in exact.values()])
    other = torch.cat([rounded[name].float().flatten() for name in exact])
    assert all(gradient.dtype == dtype for gradient in rounded.values())
    assert torch.cosine_similarity(one, other, dim=0) > (0.99 if dtype == torch.bfloat16 else 0.9999)


def test_what_comes_out_is_float32_and_autocast_around_it_changes_nothing(base):
    unet = ComfyUNet(base[0], torch.bfloat16)
    z, t, context = inputs()
    plain = unet.denoise(z, t, context), unet.features(z, t, context)
    with torch.autocast("cpu", torch.bfloat16):
        inside = unet.denoise(z, t, context), unet.features(z, t, context)
    for one, other in zip(plain, inside, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_the_base_is_not_held_beside_what_is_lent(base):
    unet = ComfyUNet(base[0])
    lent = dict(unet.parameters())
    with unet.using(lent):
        unet.denoise(*inputs())
    assert not unet._held
    with unet.using({QUERY: lent[QUERY]}):
        unet.denoise(*inputs())
    assert len(unet._held) == len(lent) - 1


@attention.wrap_attn
def attention_sage(q, k, v, heads, *_given, **_options):
    raise AssertionError("attention without gradients was used")


@pytest.mark.parametrize("started_with", [attention_sage, attention.attention_split, attention.attention_sub_quad])
def test_learning_uses_pytorch_s_attention_whatever_comfyui_was_started_with(base, monkeypatch, started_with):
    """``--use-sage-attention``, ``--use-split-cross-attention`` ...: sage and flash have no backward pass."""
    wanted = gradients(ComfyUNet(base[0]))
    monkeypatch.setattr(attention, "optimized_attention", started_with)
    monkeypatch.setattr(attention, "optimized_attention_masked", started_with)
    found = gradients(ComfyUNet(base[0]))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
