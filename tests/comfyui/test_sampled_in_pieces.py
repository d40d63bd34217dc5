"""Pictures that are sampled in pieces: no larger pass than the sampler's own, one word per picture, frozen per picture."""

from __future__ import annotations

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from e4t_pack.nodes.host.prompt.concept_clip import ConceptCLIP
from e4t_pack.nodes.host.sampling import patched_model, word_at_step
from e4t_pack.nodes.host.sampling.pieces import bounded_features, thinned
from personalized import encode
from world import LATENT, hold, make_concept

import nodes
from e4t_core.loop_settings import SamplingSettings

TILE = LATENT
LARGE = 2 * LATENT
TOLERANCE = 1e-4  # of the largest value: batches of another size add in another order


def tiled(model, batch: int = 1):
    """As tiled-diffusion packs do: a function wrapper that cuts what the model is given into tiles, some at once."""

    def wrapper(apply_model, given):
        x, t, c = given["input"], given["timestep"], given["c"]
        out, count = torch.zeros_like(x), torch.zeros_like(x)
        step = TILE // 2
        places = [
            (slice(top, top + TILE), slice(left, left + TILE))
            for top in range(0, x.shape[2] - TILE + 1, step)
            for left in range(0, x.shape[3] - TILE + 1, step)
        ]
        for first in range(0, len(places), batch):
            held = places[first : first + batch]
            tiles = torch.cat([x[:, :, rows, columns] for rows, columns in held])
            several = {
                name: torch.cat([value] * len(held)) if torch.is_tensor(value) else value for name, value in c.items()
            }
            answers = apply_model(tiles, torch.cat([t] * len(held)), **several).chunk(len(held))
            for (rows, columns), answer in zip(held, answers, strict=True):
                out[:, :, rows, columns] += answer
                count[:, :, rows, columns] += 1
        return out / count

    new = model.clone()
    new.set_model_unet_function_wrapper(wrapper)
    return new


def windows(model, dim: int, length: int, overlap: int = 0, schedule: str = "batched", fix: bool = False):
    """Core's node Context Windows (Manual)."""
    return ContextWindowsManualNode.execute(
        model, length, overlap, schedule, 1, False, "flat", dim, False, causal_window_fix=fix
    ).args[0]


def draw(model, clip, batch=1, side=LARGE, steps=2, text="a photo of S*", **options):
    latent = {"samples": torch.randn((batch, 4, side, side), generator=torch.Generator().manual_seed(1))}
    conds = encode(clip, text), encode(clip, "blurry")
    return nodes.common_ksampler(model, 7, steps, 4.0, "euler", "normal", *conds, latent, **options)[0]["samples"]


def pictures(model) -> int:
    """How many to draw at once: four where windows choose among them. Core's windows cut only single pictures."""
    handler = model.model_options.get("context_handler")
    return 4 if handler is not None and handler.dim == 0 else 1


def stock(model):
    """The same weights without our wrappers."""
    plain = model.clone()
    plain.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, patched_model.KEY)
    plain.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, patched_model.KEY)
    return plain


def largest_tensor(model, draw_it) -> int:
    """Elements of the largest tensor that any module of the UNet gives while something is drawn."""
    sizes, handles = [], []

    def look(_module, _inputs, output):
        if torch.is_tensor(output):
            sizes.append(output.numel())

    for module in model.model.diffusion_model.modules():
        handles.append(module.register_forward_hook(look))
    try:
        draw_it()
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)


@pytest.fixture
def held(base, domain):
    """Makes (MODEL, CLIP) with a concept whose word depends on latent and timestep."""

    def make(**sampling):
        return hold(base, make_concept(domain, sampling=SamplingSettings(**sampling)))

    return make


@pytest.fixture
def words(monkeypatch):
    """All words that are predicted or frozen, in order."""
    made, original = [], word_at_step.WordAtStep.word
    monkeypatch.setattr(
        word_at_step.WordAtStep, "word", lambda self, *given: made.append(original(self, *given)) or made[-1]
    )
    return made


CUT = {
    "tiles one by one": tiled,
    "tiles three at once": lambda model: tiled(model, 3),
    "windows over the batch": lambda model: windows(model, 0, 2),
    "windows over the batch, overlapping": lambda model: windows(model, 0, 2, 1, "standard_static", True),
    "windows over the height": lambda model: windows(model, 2, TILE),
    "windows over the width, tiles in them": lambda model: windows(tiled(model), 3, TILE),
}
by_cut = pytest.mark.parametrize("cut", CUT.values(), ids=CUT.keys())


@by_cut
def test_the_word_needs_no_larger_tensor_than_sampling_without_it(held, cut):
    model, clip = held()
    cut_model, plain = cut(model), cut(stock(model))
    batch = pictures(cut_model)
    bound = largest_tensor(model, lambda: draw(plain, clip, batch))
    assert bound < largest_tensor(model, lambda: draw(stock(model), clip, batch)), "nothing was cut"
    assert largest_tensor(model, lambda: draw(cut_model, clip, batch)) <= bound


@by_cut
def test_the_word_is_still_predicted(held, cut):
    model, clip = held()
    batch = pictures(cut(model))
    refined = draw(cut(model), clip, batch)
    assert torch.isfinite(refined).all()
    assert not torch.equal(refined, draw(cut(stock(model)), clip, batch))


def test_a_picture_sampled_whole_is_what_it_was_whatever_stands_in_between(held):
    model, clip = held()
    expected = draw(model, clip, batch=2)
    wrapped = model.clone()
    wrapped.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"], **given["c"]))
    assert torch.equal(draw(wrapped, clip, batch=2), expected)
    watched = model.clone()
    watched.add_wrapper(WrappersMP.APPLY_MODEL, lambda executor, *a, **b: executor(*a, **b))
    assert torch.equal(draw(watched, clip, batch=2), expected)


def test_windows_over_a_batch_give_each_picture_its_own_word_also_when_it_is_frozen(held):
    model, clip = held(end_percent=0.5)
    expected = draw(model, clip, batch=4, side=LATENT, steps=6)
    for cut in (windows(model, 0, 2), windows(model, 0, 3, 1, "standard_static")):
        got = draw(cut, clip, batch=4, side=LATENT, steps=6)
        assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_a_frozen_word_is_not_encoded_again_window_after_window(held, monkeypatch):
    calls, original = [], ConceptCLIP.encode_again
    monkeypatch.setattr(ConceptCLIP, "encode_again", lambda self, *a: calls.append(1) or original(self, *a))
    model, clip = held(end_percent=0.0)
    draw(windows(model, 0, 2), clip, batch=4, side=LATENT, steps=3)
    assert 1 <= len(calls) <= 2 * 3
    calls.clear()
    draw(windows(model, 2, TILE), clip, steps=3)
    assert len(calls) == 1


@pytest.mark.parametrize("end_percent", [1.0, 0.5])
def test_windows_that_cut_a_picture_share_one_word(held, words, end_percent):
    model, clip = held(end_percent=end_percent)
    draw(windows(model, 2, TILE), clip, steps=3)
    assert len(words) == 6
    for first, second in zip(words[::2], words[1::2], strict=True):
        assert torch.equal(first, second)


def test_tiles_and_windows_that_cut_alike_give_the_same_word(held, words):
    model, clip = held()
    draw(tiled(model), clip, steps=1)
    by_tiles, words[:] = words[0], []
    draw(windows(tiled(model), 2, TILE), clip, steps=1)
    assert torch.equal(by_tiles, words[0])


def test_a_wrapper_that_turns_errors_into_its_own_is_survived(held):
    model, clip = held()
    expected = draw(tiled(model), clip)
    inner = tiled(model).model_options["model_function_wrapper"]

    def wrapper(apply_model, given):
        try:
            return inner(apply_model, given)
        except Exception as error:
            raise RuntimeError("something went wrong in the tiles") from error

    changed = model.clone()
    changed.set_model_unet_function_wrapper(wrapper)
    assert torch.equal(draw(changed, clip), expected)


def test_a_guidance_method_in_a_tiled_picture_works(held):
    import comfy_extras.nodes_sag

    model, clip = held()
    guided = comfy_extras.nodes_sag.SelfAttentionGuidance.execute(tiled(model), 0.5, 2.0).args[0]
    assert torch.isfinite(draw(guided, clip)).all()


@pytest.mark.parametrize(
    ("side", "cells", "expected"),
    [
        ((7, 10), 70, (7, 10)),
        ((16, 16), 64, (8, 8)),
        ((8, 32), 64, (4, 16)),
        ((64, 2), 8, (16, 1)),
        ((9, 9), 1, (1, 1)),
    ],
)
def test_a_thinned_latent_has_its_shape_and_holds_cells_of_its_own_only(side, cells, expected):
    x = torch.arange(2 * 4 * side[0] * side[1]).float().reshape(2, 4, *side)
    small = thinned(x, cells)
    assert small.shape == (2, 4, *expected)
    for row in range(2):
        kept = set(small[row, 0].flatten().tolist())
        assert len(kept) == expected[0] * expected[1] and kept <= set(x[row, 0].flatten().tolist())


def test_features_of_what_fits_are_computed_at_once_and_else_by_as_many_rows_as_fit():
    x, given = torch.rand((5, 4, 6, 6)), []

    def means(part, rows):
        given.append((tuple(part.shape), rows))
        return part.mean(dim=(2, 3))

    assert torch.equal(bounded_features(means, x, (9, 6, 6)), x.mean(dim=(2, 3)))
    assert [shape for shape, _ in given] == [(5, 4, 6, 6)]
    given.clear()
    assert torch.equal(bounded_features(means, x, (2, 3, 3)), thinned(x, 9).mean(dim=(2, 3)))
    assert [shape for shape, _ in given] == [(2, 4, 3, 3), (2, 4, 3, 3), (1, 4, 3, 3)]
