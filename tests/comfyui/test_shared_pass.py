"""Where the negative prompt is empty, its own pass shows the noisy picture, too: the down half is computed once for each row."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from contextlib import contextmanager

import comfy.hooks
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_freelunch
import comfy_extras.nodes_perpneg
import pytest
import torch
from comfy.model_patcher import PatcherInjection
from comfy.patcher_extension import WrappersMP
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.prompt.concept_clip import with_concept as clip_with_concept
from e4t_pack.nodes.host.sampling.patched_model import with_concept
from oracle import UNET_LORA, clip_lora, clip_skip, guided, inpaint, ksample, two_halves, with_control
from personalized import encode
from world import held, hold, make_concept

import nodes
from e4t_core.loop_settings import SamplingSettings

TOLERANCE = 1e-4  # of the largest value: batches of another size add in another order
STEPS = 2


@pytest.fixture
def world(base, domain):
    """Makes (MODEL, CLIP) with a concept whose word depends on latent and timestep."""
    return lambda **sampling: hold(base, make_concept(domain, sampling=SamplingSettings(**sampling)))


@contextmanager
def counted(model):
    """Rows that the first down block, the middle and the last up block compute, call by call."""
    network = model.model.diffusion_model
    rows: dict[str, list[int]] = {"down": [], "middle": [], "up": []}
    layers = {
        "down": network.input_blocks[0][0],
        "middle": network.middle_block[-1],
        "up": network.output_blocks[-1][0],
    }
    handles = [
        layer.register_forward_hook(lambda _m, _i, out, name=name: rows[name].append(out.shape[0]))
        for name, layer in layers.items()
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def conds(clip, negative="", positive="a photo of S*, smiling"):
    return {"positive": encode(clip, positive), "negative": encode(clip, negative)}


def rows_of(model, given, sample=ksample) -> dict[str, list[int]]:
    with counted(model) as rows:
        sample(model, given)
    return rows


def close(a, b):
    return float((a - b).abs().max()) <= TOLERANCE * float(b.abs().max())


def test_an_evaluation_computes_each_row_once_as_without_a_word(world):
    model, clip = world()
    stock = rows_of(model, conds(clip, positive="a photo"))
    assert stock == {"down": [2] * STEPS, "middle": [2] * STEPS, "up": [2] * STEPS}
    shared = rows_of(model, conds(clip))
    assert shared == {"down": [1, 1] * STEPS, "middle": [1, 1] * STEPS, "up": [2] * STEPS}
    apart = rows_of(world(share_pass=False)[0], conds(clip))
    assert apart == {"down": [1, 2] * STEPS, "middle": [1, 2] * STEPS, "up": [2] * STEPS}


def perp_neg(model, given):
    return guided(
        lambda m, c: comfy_extras.nodes_perpneg.PerpNegGuider.execute(
            m, c["positive"], c["negative"], c["negative"], 4.0, 1.0
        )
    )(model, given)


def dual(model, given):
    return guided(
        lambda m, c: custom.DualCFGGuider.execute(m, c["positive"], c["negative"], c["negative"], 4.0, 3.0, "regular")
    )(model, given)


def masked(clip):
    mask = torch.zeros((1, 8, 8))
    mask[:, :, :4] = 1
    part = nodes.ConditioningSetMask().append(encode(clip, "a photo of S*"), mask, "default", 1.0)[0]
    return conds(clip) | {"positive": nodes.ConditioningCombine().combine(part, encode(clip, "a room"))[0]}


def hooked_positive(clip):
    given = conds(clip)
    group = comfy.hooks.create_hook_lora(UNET_LORA, 20.0, 0.0)
    return given | {"positive": comfy.hooks.set_hooks_for_conditioning(given["positive"], group)}


def half_precision(clip):
    """As a text encoder in half precision gives the empty prompt: near ours, and not it."""
    [[tensor, extra]] = encode(clip, "")
    return conds(clip) | {"negative": [[tensor.half().float(), extra]]}


def long_positive(clip):
    return conds(clip, positive="a very long description of a thing, " * 12 + "and at last S*")


def unmarked(clip):
    given = conds(clip)
    return given | {"negative": [[given["negative"][0][0].clone(), {}]]}


SHARED = {
    "batch of 2": (conds, lambda model, given: ksample(model, given, batch=2)),
    "heun": (conds, lambda model, given: ksample(model, given, sampler="heun", steps=3)),
    "KSampler Advanced, twice": (conds, two_halves),
    "noise mask": (conds, inpaint),
    "DualCFG, two empty groups": (conds, dual),
    "Perp-Neg, two empty groups": (conds, perp_neg),
    "FreeU": (
        conds,
        lambda m, c: ksample(comfy_extras.nodes_freelunch.FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2).args[0], c),
    ),
    "ControlNet": (
        lambda clip: with_control(lambda text: encode(clip, "" if text == "blurry" else text.replace("{S}", "S*"))),
        ksample,
    ),
    "mask on the positive": (masked, ksample),
    "LoRA hook on the positive": (hooked_positive, ksample),
    "half precision": (half_precision, ksample),
    "a positive of several sections": (long_positive, ksample),
    "a negative without a mark": (unmarked, ksample),
}


@pytest.mark.parametrize(("given", "sample"), SHARED.values(), ids=SHARED.keys())
def test_it_is_shared_and_draws_what_a_pass_of_its_own_draws(world, given, sample):
    model, clip = world()
    with counted(model) as rows:
        ours = sample(model, given(clip))
    # Fewer rows of the down half where several groups are empty.
    assert 0 < sum(rows["down"]) == sum(rows["middle"]) <= sum(rows["up"])
    apart = world(share_pass=False)[0]
    with counted(apart) as rows:
        expected = sample(apart, given(clip))
    assert sum(rows["down"]) > sum(rows["up"])
    # The word is predicted from features with the negative's own context, which half precision rounds.
    scale = 20 if given is half_precision else 1
    assert float((ours - expected).abs().max()) <= scale * TOLERANCE * float(expected.abs().max())


def patched(name, patch):
    """A MODEL with another pack's patch, or what stands in for one, in its transformer options."""

    def change(model):
        new = model.clone()
        options = new.model_options["transformer_options"]
        if name == "override":
            options["optimized_attention_override"] = patch
        elif name == "replace":
            new.set_model_attn1_replace(patch, "input", 1, 0)
        elif name in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL, WrappersMP.CALC_COND_BATCH):
            new.add_wrapper(name, patch)
        else:
            new.set_model_patch(patch, name)
        return new

    return change


def through(executor, *given, **options):
    return executor(*given, **options)


def function_wrapper(model):
    new = model.clone()
    new.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"], **given["c"]))
    return new


def injected(model):
    new = model.clone()
    new.set_injections("other", [PatcherInjection(lambda patcher: None, lambda patcher: None)])
    return new


def own_forward(model):
    new = model.clone()
    stock = type(model.model.diffusion_model)._forward
    new.add_object_patch("diffusion_model._forward", functools.partial(stock, model.model.diffusion_model))
    return new


MODELS = {
    "attn1_patch": patched("attn1_patch", lambda q, k, v, options: (q, k, v)),
    "attn2_patch": patched("attn2_patch", lambda n, context, value, options: (n, context, value)),
    "attn2_output_patch": patched("attn2_output_patch", lambda n, options: n),
    "input_block_patch": patched("input_block_patch", lambda h, options: h),
    "emb_patch": patched("emb_patch", lambda emb, channels, options: emb),
    "replaced attention": patched("replace", lambda q, k, v, options: torch.zeros_like(q)),
    "attention override": patched("override", lambda stock, *given, **options: stock(*given, **options)),
    "APPLY_MODEL wrapper": patched(WrappersMP.APPLY_MODEL, through),
    "DIFFUSION_MODEL wrapper": patched(WrappersMP.DIFFUSION_MODEL, through),
    "CALC_COND_BATCH wrapper": patched(WrappersMP.CALC_COND_BATCH, through),
    "function wrapper": function_wrapper,
    "injection": injected,
    "a forward of another pack": own_forward,
}


def area(clip):
    part = nodes.ConditioningSetArea().append(encode(clip, ""), 32, 64, 0, 0, 1.0)[0]
    return conds(clip) | {"negative": part}


def hooked_negative(clip):
    given = conds(clip)
    group = comfy.hooks.create_hook_lora(UNET_LORA, 20.0, 0.0)
    return given | {"negative": comfy.hooks.set_hooks_for_conditioning(given["negative"], group)}


def nearly(clip):
    mixed = nodes.ConditioningAverage().addWeighted(encode(clip, ""), encode(clip, "blurry"), 0.999)[0]
    return conds(clip) | {"negative": mixed}


CONDS = {
    "another negative": lambda clip: conds(clip, "blurry"),
    "an area": area,
    "hooks on the negative": hooked_negative,
    "nearly empty": nearly,
    "clip skip": lambda clip: conds(clip) | {"negative": encode(clip_skip(clip), "")},
    "LoRA on the CLIP": lambda clip: conds(clip) | {"negative": encode(clip_lora(clip), "")},
    "zeros": lambda clip: conds(clip) | {"negative": nodes.ConditioningZeroOut().zero_out(encode(clip, ""))[0]},
}
ALONE = {name: (change, conds) for name, change in MODELS.items()} | {
    name: (lambda model: model, given) for name, given in CONDS.items()
}


@pytest.mark.parametrize(("change", "given"), ALONE.values(), ids=ALONE.keys())
def test_a_pass_of_its_own_where_something_acts_on_the_negative_bit_for_bit_as_before(world, change, given):
    model, clip = world()
    with counted(model) as rows:
        ours = ksample(change(model), given(clip))
    assert sum(rows["down"]) > sum(rows["up"]) > 0
    apart = change(world(share_pass=False)[0])
    assert torch.equal(ours, ksample(apart, given(clip)))


def test_an_adapter_that_adds_to_the_down_blocks_gets_all_of_them(world):
    """A T2I-Adapter's residuals go into every down block, so the rows of the feature pass are not those of the negative."""
    model, clip = world()

    class Adapter:
        extra_concat = None

        def get_control(self, x, *_):
            return {"input": [torch.ones(x.shape[0], 320, *x.shape[2:]) * 0.1], "middle": [], "output": []}

    def adapted(model):
        """Puts it in as ComfyUI's samplers get it."""
        new = model.clone()

        def put_in(executor, inner, given, *others):
            control = Adapter()
            return executor(inner, [[{**cond, "control": control} for cond in group] for group in given], *others)

        # Before ours, so that it does not look like something between us and the network.
        wrappers = new.wrappers[WrappersMP.CALC_COND_BATCH]
        refinement = wrappers["e4t"][0]
        wrappers["e4t"] = [lambda executor, *given: put_in(lambda *changed: refinement(executor, *changed), *given)]
        return new

    with counted(model) as rows:
        ours = ksample(adapted(model), conds(clip))
    assert rows["down"] == [1, 2] * STEPS
    apart = world(share_pass=False)[0]
    assert torch.equal(ours, ksample(adapted(apart), conds(clip)))
    assert not close(ours, ksample(apart, conds(clip))), "the adapter did nothing"


@pytest.mark.parametrize(
    ("sampling", "positive", "calls"),
    [
        ({"refine": False}, "a photo of S*", [2] * 4),
        ({}, "a photo", [2] * 4),
        ({"end_percent": 0.0}, "a photo of S*", [1, 1, 2, 2, 2]),
    ],
    ids=["refine off", "no word", "frozen"],
)
def test_what_refines_no_word_is_sampled_untouched(world, sampling, positive, calls):
    model, clip = world(**sampling)
    rows = rows_of(model, conds(clip, positive=positive), lambda m, c: ksample(m, c, steps=4))
    assert rows["down"] == calls


def test_at_cfg_1_there_is_no_negative_to_share(world):
    model, clip = world()
    rows = rows_of(model, conds(clip), lambda m, c: ksample(m, c, cfg=1.0))
    assert rows == {"down": [1, 1] * STEPS, "middle": [1, 1] * STEPS, "up": [1] * STEPS}


def test_concepts_of_another_text_encoder_have_a_pass_of_their_own(base, domain):
    parts = [held(base, make_concept(domain, seed, trigger)) for seed, trigger in ((1, "S*"), (2, "T*"))]
    for other, down in ((parts[1].empty, [1, 1]), (parts[1].empty.flip(1), [1, 1, 1])):
        model, clip = base[0], base[1]
        for part in (parts[0], dataclasses.replace(parts[1], empty=other)):
            concept = part.concept
            model = with_concept(model, part, STORE.prompts)
            clip = clip_with_concept(clip, concept.trigger, concept.fingerprint, concept.embedding, STORE.prompts)
        rows = rows_of(model, conds(clip, positive="S* beside T*"))
        assert rows["down"] == down * STEPS


def test_others_see_the_batch_of_a_stock_sampler(world):
    """Which rows are whose, and how many there are, as an output patch sees it."""
    seen = []

    def patch(h, skip, options):
        seen.append((options["cond_or_uncond"], h.shape, skip.shape, options["block"], options["transformer_index"]))
        return h, skip

    model, clip = world()
    watched = patched("output_block_patch", patch)(model)
    ksample(watched, conds(clip, positive="a photo"))
    stock, seen[:] = list(seen), []
    rows = rows_of(watched, conds(clip))
    assert rows["down"] == [1, 1] * STEPS
    assert seen == stock


def test_the_network_is_as_it_was_also_after_an_error(world):
    model, clip = world()
    network = model.model.diffusion_model
    expected, before = ksample(model, conds(clip)), dict(vars(network))

    def fail(h, skip, _options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ksample(patched("output_block_patch", fail)(model), conds(clip))
    assert vars(network) == before
    assert torch.equal(ksample(model, conds(clip)), expected)


def test_nothing_is_kept_of_the_network_s_blocks_after_an_evaluation(world):
    model, clip = world()
    kept = []

    def patch(h, skip, options):
        kept.extend(weakref.ref(one) for one in options["wrappers"][WrappersMP.DIFFUSION_MODEL]["e4t"])
        return h, skip

    ksample(patched("output_block_patch", patch)(model), conds(clip), steps=1)
    gc.collect()
    assert kept and not any(one() for one in kept)
