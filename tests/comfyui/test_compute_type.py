"""Rounded products are the only thing that a faster device changes: what was learned in a step is seen in the next one."""

from contextlib import nullcontext

import comfy.model_management
import pytest
import torch
from e4t_pack.nodes.host.networks import compute_type
from torch import nn


@pytest.fixture(params=[True, False], ids=["vector instructions", "none"])
def instructions(request, monkeypatch):
    monkeypatch.setattr(compute_type, "has_matrix_units", lambda: False)
    monkeypatch.setattr(compute_type, "has_vector_instructions", lambda: request.param)
    return request.param


def test_a_changed_weight_is_seen_at_once(instructions):
    # Nodes run in inference mode; tuning leaves it, and so does this test.
    with torch.inference_mode(False), torch.enable_grad(), compute_type.bfloat16_products(torch.device("cpu")):
        layer, x = nn.Linear(4, 4, bias=False), torch.ones(1, 4)
        before = layer(x)
        assert (before.dtype == torch.bfloat16) == instructions
        before.sum().backward()
        with torch.no_grad():
            layer.weight.add_(1.0)
        after = layer(x)
    after, before = after.detach(), before.detach()
    assert torch.allclose(after.float(), before.float() + 4.0, atol=0.05)
    assert not torch.is_autocast_enabled("cpu")


def test_a_fault_leaves_no_trace(instructions):
    with pytest.raises(RuntimeError, match="stop"), compute_type.bfloat16_products(torch.device("cpu")):
        raise RuntimeError("stop")
    assert not torch.is_autocast_enabled("cpu")


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("bf16", "fp16", "wanted"),
    [
        (True, True, torch.bfloat16),  # Ampere and newer
        (False, True, torch.float16),  # Turing
        (False, False, torch.float32),  # GTX 16xx; --force-fp32
    ],
)
@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_card_computes_in_what_comfyui_would_run_it_in(monkeypatch, kind, bf16, fp16, wanted):
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: bf16)
    monkeypatch.setattr(comfy.model_management, "should_use_fp16", lambda device: fp16)
    assert compute_type.compute_type(torch.device(kind)) == wanted


@pytest.mark.parametrize("device", ["cpu", "privateuseone", "meta"])
def test_other_devices_compute_in_float32(device):
    """The CPU does, whatever ComfyUI was started with: see also the launch flags' test."""
    assert compute_type.compute_type(torch.device(device)) == torch.float32


@pytest.mark.parametrize("bf16", [True, False], ids=["bfloat16", "float16"])
def test_text_encoder_and_word_predictor_are_autocast_where_the_unet_is_bfloat16(monkeypatch, bf16):
    """Without a card PyTorch's own autocast only warns, so it is looked at what it is asked for."""
    asked = []
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: bf16)
    monkeypatch.setattr(comfy.model_management, "should_use_fp16", lambda device: True)
    monkeypatch.setattr(torch, "autocast", lambda *kind, **options: asked.append((kind, options)) or nullcontext())
    with compute_type.bfloat16_products(CUDA):
        pass
    assert asked == ([(("cuda", torch.bfloat16), {"cache_enabled": False})] if bf16 else [])
