"""Rounded products are the only thing that a faster CPU changes: what was learned in a step is seen in the next one."""

import pytest
import torch
from e4t_pack.nodes.host.networks import cpu_products
from torch import nn


@pytest.fixture(params=[True, False], ids=["vector instructions", "none"])
def instructions(request, monkeypatch):
    monkeypatch.setattr(cpu_products, "has_matrix_units", lambda: False)
    monkeypatch.setattr(cpu_products, "has_vector_instructions", lambda: request.param)
    return request.param


def test_a_changed_weight_is_seen_at_once(instructions):
    # Nodes run in inference mode; tuning leaves it, and so does this test.
    with torch.inference_mode(False), torch.enable_grad(), cpu_products.bfloat16_products(torch.device("cpu")):
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
    with pytest.raises(RuntimeError, match="stop"), cpu_products.bfloat16_products(torch.device("cpu")):
        raise RuntimeError("stop")
    assert not torch.is_autocast_enabled("cpu")


def test_a_graphics_card_is_left_alone(instructions):
    with cpu_products.bfloat16_products(torch.device("cuda")):
        assert not torch.is_autocast_enabled("cpu")
