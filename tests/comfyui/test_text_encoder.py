"""ComfyUI's CLIP as the core's text encoder: words of several tokens, and copies that lie in memory as their tensors do."""

from __future__ import annotations

import pytest
import torch
from e4t_pack.nodes.host.networks.text_encoder import ComfyTextEncoder, copy_with_strides


def views():
    padded = torch.randn(1, 1, 77, 80)[..., :77]
    return {
        "rows padded to an alignment": padded,
        "expanded over batch and heads": padded.expand(4, 8, 77, 77),
        "transposed": torch.randn(3, 5).T,
        "a part of a larger tensor": torch.randn(4, 6)[1:3, 2:],
        "contiguous": torch.randn(2, 3),
    }


@pytest.mark.parametrize("name", views())
def test_a_copy_has_the_strides_and_values_of_its_tensor_and_memory_of_its_own(name):
    """Attention's backward pass on graphics cards refuses a mask whose rows were packed ("attn_bias is not correctly aligned")."""
    tensor = views()[name]
    with torch.inference_mode(False):
        copied = copy_with_strides(tensor)
    assert torch.equal(copied, tensor) and copied.stride() == tensor.stride()
    before = copied.clone()
    tensor.untyped_storage().fill_(0)
    assert torch.equal(copied, before)


def test_a_word_of_several_tokens_stands_where_the_template_says(base):
    text = ComfyTextEncoder(base[1])
    with torch.inference_mode(False):
        words = torch.stack([text.word("face"), text.word("cat")])
        two = text.encode(["a photo of {}, smiling"], words[None])
        # Two words of the vocabulary by their own embeddings are the same prompt.
        plain = text.encode(["a photo of face {}, smiling"], words[1:])
    assert torch.equal(two, plain)
    with torch.inference_mode(False), torch.enable_grad():
        words = words.clone().requires_grad_()
        text.encode(["a photo of {}"], words[None]).square().mean().backward()
    assert (words.grad.abs().sum(dim=1) > 0).all()
