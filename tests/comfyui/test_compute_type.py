"""Rounded products are the only thing that a faster device changes: what was learned in a step is seen in the next one."""

from contextlib import nullcontext

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


@pytest.mark.parametrize("units", [True, False], ids=["bfloat16 units", "none"])
def test_a_graphics_card_computes_in_bfloat16_where_it_has_units_for_it(monkeypatch, units):
    """Without a card PyTorch's own autocast only warns, so it is looked at what it is asked for."""
    asked = []
    monkeypatch.setattr(compute_type, "has_card_units", lambda device: units)
    monkeypatch.setattr(torch, "autocast", lambda *kind, **options: asked.append((kind, options)) or nullcontext())
    with compute_type.bfloat16_products(torch.device("cuda")):
        pass
    assert asked == ([(("cuda", torch.bfloat16), {"cache_enabled": False})] if units else [])


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_other_devices_are_left_alone(device):
    assert not compute_type.has_card_units(torch.device(device)) and not compute_type.uses_autocast(
        torch.device(device)
    )
