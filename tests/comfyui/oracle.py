"""The rows of the oracle matrix: ways in which a word reaches a sampler through stock nodes.

A row says how conditioning is made (from an ``encode`` that is ours or stock), how MODEL and CLIP are changed on the way,
and how it is sampled. Prompts hold ``{S}`` and ``{T}`` where the words of one or two concepts stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_freelunch
import comfy_extras.nodes_hooks
import comfy_extras.nodes_hypertile
import comfy_extras.nodes_pag
import comfy_extras.nodes_perpneg
import comfy_extras.nodes_sag
import torch
from world import LATENT

import nodes

Encode = Callable[[str], list]
LONG = "a very long description of a thing, " * 14 + "and at last {S}, smiling"  # more than 90 tokens


def latent(batch: int = 1, seed: int = 0) -> dict:
    """A LATENT; its content matters only where sampling starts in the middle."""
    return {"samples": torch.randn((batch, 4, LATENT, LATENT), generator=torch.Generator().manual_seed(seed))}


def ksample(model, conds, steps=2, sampler="euler", cfg=4.0, batch=1, **options):
    """The stock KSampler."""
    return nodes.common_ksampler(
        model, 7, steps, cfg, sampler, "normal", conds["positive"], conds["negative"], latent(batch), **options
    )[0]["samples"]


def two_halves(model, conds):
    """KSamplerAdvanced, steps 0-2 and 2-4: two sampling runs over one schedule."""
    advanced = nodes.KSamplerAdvanced()
    settings = (7, 4, 4.0, "euler", "normal", conds["positive"], conds["negative"])
    first = advanced.sample(model, "enable", *settings, latent(), 0, 2, "enable")[0]
    return advanced.sample(model, "disable", *settings, first, 2, 10, "disable")[0]["samples"]


def guided(make_guider, steps=2):
    """SamplerCustomAdvanced with a guider."""

    def sample(model, conds):
        guider = make_guider(model, conds).args[0]
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
        noise = custom.Noise_RandomNoise(7)
        sampler = comfy.samplers.sampler_object("euler")
        return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent()).args[0]["samples"]

    return sample


@dataclass(frozen=True)
class Row:
    """One row. ``prompts``: distinct prompts with a word that are active at every evaluation, hence encoder calls."""

    name: str
    conds: Callable[[Encode], dict[str, list]]
    sample: Callable = ksample
    model: Callable = lambda model: model
    clip: Callable = lambda clip: clip
    prompts: int | None = 1


def simple(text: str, negative: str = "blurry"):
    """Positive and negative prompt."""
    return lambda encode: {"positive": encode(text), "negative": encode(negative)}


def changed(change, negative: str = "blurry"):
    """A positive that a stock node makes out of ``encode``."""
    return lambda encode: {"positive": change(encode), "negative": encode(negative)}


def lora_file(key: str, width: int) -> dict:
    """A LoRA of rank 2 for one square matrix."""
    generator = torch.Generator().manual_seed(5)
    return {
        f"{key}.lora_up.weight": torch.randn((width, 2), generator=generator) * 0.1,
        f"{key}.lora_down.weight": torch.randn((2, width), generator=generator) * 0.1,
        f"{key}.alpha": torch.tensor(2.0),
    }


CLIP_LORA = lora_file("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768)
UNET_LORA = lora_file("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", 320)


def clip_lora(clip):
    """LoraLoader on the CLIP."""
    return comfy.sd.load_lora_for_models(None, clip, CLIP_LORA, 0.0, 0.8)[1]


def hooked_clip(scheduled: bool):
    """Create Hook LoRA -> Set CLIP Hooks; scheduled: much weaker in the second half of the schedule."""

    def change(clip):
        group = comfy.hooks.create_hook_lora(CLIP_LORA, 0.0, 0.8)
        if scheduled:
            frames = comfy_extras.nodes_hooks.CreateHookKeyframe().create_hook_keyframe(1.0, 0.0)[0]
            frames = comfy_extras.nodes_hooks.CreateHookKeyframe().create_hook_keyframe(0.1, 0.5, frames)[0]
            group = comfy_extras.nodes_hooks.SetHookKeyframes().set_hook_keyframes(group, frames)[0]
        return comfy_extras.nodes_hooks.SetClipHooks().apply_hooks(
            clip, schedule_clip=scheduled, apply_to_conds=True, hooks=group
        )[0]

    return change


def hooked(*names: str):
    """Cond Set Props: prompts of which the named ones have a LoRA of their own on the MODEL."""

    def conds(encode):
        given = {"positive": encode("a photo of {S}, smiling"), "negative": encode("blurry")}
        group = comfy.hooks.create_hook_lora(UNET_LORA, 20.0, 0.0)
        for name in names:
            given[name] = comfy.hooks.set_hooks_for_conditioning(given[name], group)
        return given

    return conds


def clip_skip(clip):
    """CLIPSetLastLayer."""
    return nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0]


def with_control(encode):
    """ControlNetApplyAdvanced with a small random ControlNet."""
    generator = torch.Generator().manual_seed(3)
    network = comfy.cldm.cldm.ControlNet(
        image_size=32,
        in_channels=4,
        model_channels=320,
        hint_channels=3,
        num_res_blocks=[1],
        channel_mult=[1],
        num_heads=8,
        use_spatial_transformer=True,
        transformer_depth=[1],
        transformer_depth_middle=1,
        context_dim=768,
        operations=comfy.ops.disable_weight_init,
    )
    network.load_state_dict(
        {k: torch.randn(v.shape, generator=generator) * 0.02 for k, v in network.state_dict().items()}
    )
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    hint = torch.rand((1, 8 * LATENT, 8 * LATENT, 3), generator=generator)
    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        encode("a photo of {S}"), encode("blurry"), control, hint, 0.8, 0.0, 1.0
    )
    return {"positive": positive, "negative": negative}


def area(encode):
    """ConditioningSetArea; ComfyUI then adds a copy of the positive's dictionary to the negative."""
    part = nodes.ConditioningSetArea().append(encode("a photo of {S}"), 4 * LATENT, 8 * LATENT, 0, 0, 1.0)[0]
    return nodes.ConditioningCombine().combine(part, encode("a room"))[0]


def masked(encode):
    """ConditioningSetMask."""
    mask = torch.zeros((1, LATENT, LATENT))
    mask[:, :, : LATENT // 2] = 1
    part = nodes.ConditioningSetMask().append(encode("a photo of {S}"), mask, "default", 1.0)[0]
    return nodes.ConditioningCombine().combine(part, encode("a room"))[0]


def ranged(encode):
    """ConditioningSetTimestepRange: the word only in the first half of the schedule."""
    first = nodes.ConditioningSetTimestepRange().set_range(encode("a photo of {S}"), 0.0, 0.5)[0]
    last = nodes.ConditioningSetTimestepRange().set_range(encode("a room"), 0.5, 1.0)[0]
    return nodes.ConditioningCombine().combine(first, last)[0]


def average(first: str, second: str, strength: float):
    """ConditioningAverage."""
    return lambda encode: nodes.ConditioningAverage().addWeighted(encode(first), encode(second), strength)[0]


def concat(first: str, second: str):
    """ConditioningConcat."""
    return lambda encode: nodes.ConditioningConcat().concat(encode(first), encode(second))[0]


def three(encode):
    """Positive with the word, a second one, and a negative."""
    return {"positive": encode("a photo of {S}"), "second": encode("a room"), "negative": encode("blurry")}


def inpaint(model, conds):
    """KSampler on a latent with a noise mask."""
    part = latent()
    part["noise_mask"] = (torch.arange(LATENT) < LATENT // 2).float().expand(1, 1, LATENT, LATENT)
    return nodes.common_ksampler(model, 7, 2, 4.0, "euler", "normal", conds["positive"], conds["negative"], part)[0][
        "samples"
    ]


PHOTO = simple("a photo of {S}, smiling")
ROWS = [
    Row("plain", PHOTO),
    Row("weight", simple("a photo of ({S}:1.3)")),
    Row("double parentheses", simple("a photo of (({S})) in a (garden:0.8)")),
    Row("long prompt", simple(LONG)),
    Row("word twice", simple("{S} and {S} again")),
    Row("word in the negative", simple("a room", "{S}")),
    Row("word in both", simple("a photo of {S}", "a bad photo of {S}"), prompts=2),
    Row("cfg 1", PHOTO, lambda model, conds: ksample(model, conds, cfg=1.0)),
    Row("CLIP LoRA", PHOTO, clip=clip_lora),
    Row("clip skip", PHOTO, clip=clip_skip),
    Row("LoRA hook on the negative", hooked("negative"), lambda model, conds: ksample(model, conds, steps=3)),
    Row("LoRA hook on both", hooked("positive", "negative"), lambda model, conds: ksample(model, conds, steps=3)),
    Row("CLIP hook", PHOTO, clip=hooked_clip(scheduled=False)),
    Row(
        "CLIP hook, scheduled",
        PHOTO,
        lambda model, conds: ksample(model, conds, steps=4),
        clip=hooked_clip(scheduled=True),
        prompts=None,
    ),
    Row("Combine", changed(lambda e: nodes.ConditioningCombine().combine(e("a photo of {S}"), e("a room"))[0])),
    Row("Concat, word first", changed(concat("a photo of {S}", "in a room"))),
    Row("Concat, word last", changed(concat("in a room", "a photo of {S}"))),
    Row("Average to", changed(average("a photo of {S}", "a room", 0.7))),
    Row("Average from", changed(average("a room", "a photo of {S}", 0.35))),
    Row("Average of long and short", changed(average(LONG, "a photo", 0.6))),
    Row("Multiply", changed(lambda e: nodes.ConditioningMultiply().multiply(e("a photo of {S}"), 1.25)[0])),
    Row(
        "ZeroOut of the negative",
        lambda e: {"positive": e("a {S}"), "negative": nodes.ConditioningZeroOut().zero_out(e("a {S}"))[0]},
    ),
    Row("area", changed(area)),
    Row("mask", changed(masked)),
    Row("timestep range", changed(ranged), lambda model, conds: ksample(model, conds, steps=3), prompts=None),
    Row("ControlNet", with_control),
    Row("noise mask", PHOTO, inpaint),
    Row("KSamplerAdvanced 2+2", PHOTO, two_halves),
    Row("heun", PHOTO, lambda model, conds: ksample(model, conds, steps=3, sampler="heun")),
    Row("euler ancestral", PHOTO, lambda model, conds: ksample(model, conds, sampler="euler_ancestral")),
    Row("uni_pc", PHOTO, lambda model, conds: ksample(model, conds, steps=3, sampler="uni_pc")),
    Row("image to image", PHOTO, lambda model, conds: ksample(model, conds, denoise=0.6)),
    Row("batch 2", PHOTO, lambda model, conds: ksample(model, conds, batch=2)),
    Row("BasicGuider", PHOTO, guided(lambda m, c: custom.BasicGuider.execute(m, c["positive"]))),
    Row("CFGGuider", PHOTO, guided(lambda m, c: custom.CFGGuider.execute(m, c["positive"], c["negative"], 4.0))),
    Row(
        "DualCFGGuider",
        three,
        guided(
            lambda m, c: custom.DualCFGGuider.execute(m, c["positive"], c["second"], c["negative"], 4.0, 3.0, "regular")
        ),
    ),
    Row(
        "DualCFGGuider nested",
        three,
        guided(
            lambda m, c: custom.DualCFGGuider.execute(m, c["positive"], c["second"], c["negative"], 4.0, 3.0, "nested")
        ),
    ),
    Row(
        "PerpNegGuider",
        three,
        guided(
            lambda m, c: comfy_extras.nodes_perpneg.PerpNegGuider.execute(
                m, c["positive"], c["negative"], c["second"], 4.0, 1.0
            )
        ),
    ),
    Row("PAG", PHOTO, model=lambda m: comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(m, 3.0).args[0]),
    Row("SAG", PHOTO, model=lambda m: comfy_extras.nodes_sag.SelfAttentionGuidance.execute(m, 0.5, 2.0).args[0]),
    Row("FreeU", PHOTO, model=lambda m: comfy_extras.nodes_freelunch.FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2).args[0]),
    Row("HyperTile", PHOTO, model=lambda m: comfy_extras.nodes_hypertile.HyperTile.execute(m, 256, 2, 0, False)[0]),
    Row("two concepts", simple("{S} beside {T}")),
    Row("two concepts in two prompts", simple("a photo of {S}", "a photo of {T}"), prompts=2),
]
