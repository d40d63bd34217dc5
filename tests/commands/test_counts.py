"""Counts from shapes, against the known figures of Stable Diffusion 1.5."""

import pytest
import torch

from commands.base.counts import count_unet, count_vae_encoder, parameters
from e4t_core.methods.e4t.weight_offsets import WeightOffsets

diffusers = pytest.importorskip("diffusers")


def test_the_unet_of_stable_diffusion_is_counted_right() -> None:
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    counts = count_unet(shapes, (64, 64))
    assert counts.parameters == 859_520_964
    assert len(counts.projections) == 96
    assert (counts.feature_width, counts.context_width, counts.in_channels) == (10_880, 768, 4)
    # What torch.utils.flop_counter gives for the same pass is 803 GFLOP.
    assert counts.forward == pytest.approx(803e9, rel=0.01)
    assert 0.2 < counts.features / counts.forward < 0.5
    assert counts.checkpointed < counts.activations / 2
    offsets = WeightOffsets(counts.projections, device="meta")
    assert sum(parameter.numel() for parameter in offsets.parameters()) == 143_226_592


def test_the_autoencoder_is_counted_at_each_level() -> None:
    shapes = {
        "encoder.conv_in.weight": (4, 3, 3, 3),
        "encoder.down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3),
        "encoder.down_blocks.0.downsamplers.0.conv.weight": (4, 4, 3, 3),
        "encoder.down_blocks.1.resnets.0.conv1.weight": (4, 4, 3, 3),
        "encoder.mid_block.attentions.0.to_q.weight": (4, 4),
        "decoder.conv_in.weight": (4, 4, 3, 3),
    }
    convolution = 2 * 4 * 4 * 9
    expected = 2 * 4 * 3 * 9 * 256 + convolution * 256 + 2 * convolution * 64 + 2 * 16 * 64 + 4 * 64 * 64 * 4
    assert count_vae_encoder(shapes, 16) == expected
    assert parameters({"a": (2, 3), "b": (4,)}) == 10
