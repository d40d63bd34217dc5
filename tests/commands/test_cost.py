"""What a pass costs, counted without computing it, against known figures and what really happens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")
from commands.base.cost import count_operations, count_peak

META = torch.device("meta")


def unet() -> nn.Module:
    """Stable Diffusion 1.5's, without weights, of which one attention matrix is trained."""
    with META:
        network = diffusers.UNet2DConditionModel(cross_attention_dim=768).eval().requires_grad_(False)
    network.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight.requires_grad_(True)
    return network


def step(network: nn.Module) -> None:
    z, context = torch.empty(1, 4, 64, 64, device=META), torch.empty(1, 77, 768, device=META)
    network(z, torch.zeros(1, dtype=torch.long, device=META), context).sample.sum().backward()


def test_the_pass_of_stable_diffusion_has_its_803_gflop_and_checkpointing_repeats_most_of_it() -> None:
    network = unet()
    with torch.no_grad():
        z, context = torch.empty(1, 4, 64, 64, device=META), torch.empty(1, 77, 768, device=META)
        forward = count_operations(lambda: network(z, torch.zeros(1, device=META), context))
    assert forward == pytest.approx(803.3e9, rel=1e-3)
    plain = count_operations(lambda: step(network))
    network.enable_gradient_checkpointing()
    again = count_operations(lambda: step(network))
    assert 0.6 * forward < again - plain <= forward


def test_checkpointing_and_fused_attention_save_memory() -> None:
    network = unet()
    plain = count_peak(lambda: step(network))
    network.enable_gradient_checkpointing()
    checkpointed = count_peak(lambda: step(network))
    assert checkpointed < plain / 3
    # One attention matrix of the first level: 8 heads, 4096 x 4096 positions, float32; five such layers would keep theirs.
    assert plain < 5 * 8 * 4096**2 * 4
    assert F.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"


def test_the_peak_is_what_is_held_at_once() -> None:
    def run() -> Tensor:
        a = torch.empty(1000, device=META)
        b = a + 1  # two at once
        del a
        c = b.view(10, 100) * 2  # a view holds nothing of its own, and b goes behind it
        del b
        return c * 2

    assert count_peak(run) == 2 * 1000 * 4
    weight = torch.empty(1000, device=META, requires_grad=True)
    assert count_peak(lambda: weight.view(10, 100)) == 0
    # Outputs that the backward pass needs stay, and the weight's gradient comes on top.
    assert count_peak(lambda: weight.exp().exp().sum().backward()) >= 3 * 1000 * 4
