"""What a refined evaluation costs: in floating-point operations at Stable Diffusion 1.5's size, and in waits for the device."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.clip_model
import comfy.ops
import comfy.sd1_clip
import pytest
import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
from e4t_pack.nodes.host.networks.base_model import block_outputs, spatial_means
from e4t_pack.nodes.host.sampling.shared_pass import KnownHalf
from oracle import ksample
from personalized import encode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from world import hold, make_concept

from benchmarks.full_size import SD15
from e4t_core.loop_settings import SamplingSettings

META = torch.device("meta")


def operations(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.fixture
def network(monkeypatch):
    # What a card takes; ComfyUI's choice on a CPU asks a device for its free memory.
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    with META:
        return UNetModel(**SD15, device=META, operations=comfy.ops.disable_weight_init).eval()


@pytest.fixture(scope="module")
def text_pass():
    """One prompt through CLIP-L."""
    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    with META:
        encoder = comfy.clip_model.CLIPTextModel(config, torch.float32, META, comfy.ops.disable_weight_init)
    return operations(lambda: encoder(torch.zeros(1, 77, dtype=torch.long, device=META)))


def given(rows):
    return (
        torch.empty(rows, 4, 64, 64, device=META),
        torch.empty(rows, device=META),
        torch.empty(rows, 77, 768, device=META),
    )


def call(network, rows, half=None):
    """The sampler's call of the network; with what the feature pass has left for its second conditioning."""
    options = {"cond_or_uncond": [0, 1][:rows], "uuids": ["positive", "negative"][:rows]}
    if half is not None:
        options["wrappers"] = {WrappersMP.DIFFUSION_MODEL: {"e4t": [half]}}
    z, t, context = given(rows)
    return network(z, t, context=context, transformer_options=options)


@pytest.mark.parametrize(
    ("rows", "shared", "most"), [(2, True, 1.03), (2, False, 1.20), (1, False, 1.36)], ids=["empty", "other", "cfg 1"]
)
def test_a_refined_evaluation_of_stable_diffusion_costs_little_more_than_stock(network, text_pass, rows, shared, most):
    stock = operations(lambda: call(network, rows))
    assert stock == pytest.approx(rows * 803e9, rel=0.02)

    def refined():
        z, t, context = given(1)
        outputs = list(block_outputs(network, z, t, context, {}))
        assert spatial_means(outputs).shape == (1, 10_880)
        half = KnownHalf(network, z.shape, outputs, frozenset({(1, "negative")}))
        call(network, rows, half if shared else None)

    share = (operations(refined) + text_pass) / stock
    assert 1.001 < share <= most


class Waits(TorchDispatchMode):
    """Counts what the host wants to know of a tensor's content: on a card it has to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("negative", ["", "blurry"], ids=["shared", "apart"])
@pytest.mark.parametrize("every", [1, 2])
def test_an_evaluation_with_the_word_asks_for_no_tensor_s_content(base, domain, negative, every):
    """Each further step asks what a step without the word asks; ComfyUI's text encoder gives its result to the host, besides."""
    model, clip = hold(base, make_concept(domain, sampling=SamplingSettings(refine_every=every)))

    def waits(text, steps):
        conds = {"positive": encode(clip, text), "negative": encode(clip, negative)}
        with Waits() as counted:
            ksample(model, conds, steps=steps)
        return counted.count

    waits("a photo of S*", 1)
    stock = waits("a photo", 5) - waits("a photo", 3)
    assert waits("a photo of S*", 5) - waits("a photo of S*", 3) == stock
