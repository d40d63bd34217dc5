"""A low-rank change of the core is what ComfyUI's own LoRA adapter adds to a weight."""

import comfy.lora
import pytest
import torch
from comfy.weight_adapter.lora import LoRAAdapter

from e4t_core.weight_changes import LowRank


@pytest.mark.parametrize("shape", [(12, 20), (12, 4, 3, 3)])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_comfyuis_adapter_adds_a_low_rank_change(shape, strength):
    generator = torch.Generator().manual_seed(0)
    columns = torch.Size(shape[1:]).numel()
    up, down = torch.randn((12, 3), generator=generator), torch.randn((3, columns), generator=generator)
    change = LowRank("conv.weight", up, down, shape)
    weight = torch.randn(shape, generator=generator)
    adapter = LoRAAdapter(set(), (change.up, change.down, None, None, None, None))
    patched = comfy.lora.calculate_weight([(strength, adapter, 1.0, None, None)], weight.clone(), "conv.weight")
    # Rounding of float32.
    torch.testing.assert_close(patched, weight + strength * change.difference(), rtol=1e-5, atol=1e-5)
