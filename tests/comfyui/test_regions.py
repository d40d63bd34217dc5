"""E4T Regions: several concepts in one picture, each in a region of its own, by stock samplers."""

from __future__ import annotations

import dataclasses

import comfy.controlnet
import comfy.sample
import pytest
import torch
from e4t_pack.nodes.host.learning.apply import applied
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.regions.concept_hook import ConceptHook
from e4t_pack.nodes.host.regions.layout import ACROSS, DOWN, SIDE, drawn, given, rest
from e4t_pack.nodes.host.sampling.place import Place, box_of
from e4t_pack.nodes.regions import OWN, WHOLE, Regions
from kept_by_nodes import known_concept
from personalized import encode
from safetensors.torch import save_file
from stock_files import write_controlnet
from world import make_state

from nodes import ControlNetApplyAdvanced

STEPS, CFG = 2, 3.0
LEFT, RIGHT = slice(0, 8), slice(8, 16)


def noise(width: int = 16) -> torch.Tensor:
    return torch.randn((1, 4, 8, width), generator=torch.Generator().manual_seed(7))


def sample(
    model,
    positive,
    negative,
    start: torch.Tensor,
    steps: int = STEPS,
    latent: torch.Tensor | None = None,
    denoise: float = 1.0,
) -> torch.Tensor:
    latent = torch.zeros_like(start) if latent is None else latent
    return comfy.sample.sample(
        model, start, steps, CFG, "euler", "normal", positive, negative, latent, denoise=denoise, disable_pbar=True
    )


@pytest.fixture
def pair(domain):
    return known_concept(domain, 1), known_concept(domain, 2)


def regions(base, *concepts, model=None, conditionings=None, **options):
    positive, negative = conditionings or (encode(base[1], "two people"), encode(base[1], "blurry"))
    named = {f"concept_{n}": concept for n, concept in enumerate(concepts, 1)}
    return Regions.execute(
        model or base[0],
        base[1],
        positive,
        negative,
        **named,
        **({"prompts": "a photo of {}", "feather": 0.0} | options),
    ).args


def alone(base, concept, start: torch.Tensor, **more) -> torch.Tensor:
    model, clip = applied(base[0], base[1], concept, STORE)
    return sample(model, encode(clip, f"a photo of {concept.trigger}"), encode(clip, "blurry"), start, **more)


def half_mask(side: slice) -> torch.Tensor:
    mask = torch.zeros(1, 64, 128)
    mask[..., side.start * 8 : side.stop * 8] = 1
    return mask


@pytest.mark.parametrize("triggers", [("S*", "S*"), ("Anna*", "Ben*")])
def test_a_region_of_its_own_draws_what_its_concept_draws_alone(base, pair, triggers, untouched):
    one, two = (dataclasses.replace(c, trigger=t) for c, t in zip(pair, triggers, strict=True))
    model, positive, negative, _ = regions(base, one, two, each_region=OWN)
    made = sample(model, positive, negative, noise())
    for concept, side in ((one, LEFT), (two, RIGHT)):
        wanted = alone(base, concept, noise()[..., side])
        assert (made[..., side] - wanted).norm() < 1e-3 * wanted.norm()
    assert (alone(base, one, noise()[..., RIGHT]) - made[..., RIGHT]).norm() > 0.05 * made[..., RIGHT].norm()
    untouched()


def test_a_second_pass_over_the_picture_made_larger_goes_on_with_the_same_people(base, pair):
    # Image to image, and hires fix: what was drawn is scaled up and drawn over.
    model, positive, negative, _ = regions(base, *pair, each_region=OWN)
    drawn_first = torch.nn.functional.interpolate(sample(model, positive, negative, noise()), scale_factor=2)
    start = torch.randn(drawn_first.shape, generator=torch.Generator().manual_seed(8))
    made = sample(model, positive, negative, start, latent=drawn_first, denoise=0.6)
    for concept, half in zip(pair, (slice(0, 16), slice(16, 32)), strict=True):
        wanted = alone(base, concept, start[..., half], latent=drawn_first[..., half], denoise=0.6)
        assert (made[..., half] - wanted).norm() < 1e-3 * wanted.norm()


# Far from what pictures hold, so that a random network cannot but heed it.
HINT = 100 * torch.rand((1, 64, 128, 3), generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def control_net(tmp_path_factory):
    """A ControlNet as ComfyUI loads it, of random values: it does something, and asks nothing of the hint."""
    folder = tmp_path_factory.mktemp("control")
    save_file({name: value.contiguous() for name, value in make_state().items()}, folder / "base.safetensors")
    write_controlnet(folder / "control.safetensors", folder / "base.safetensors")
    return comfy.controlnet.load_controlnet(str(folder / "control.safetensors"))


def controlled(positive, negative, control_net, hint: torch.Tensor, times: int = 1):
    for _ in range(times):
        positive, negative = ControlNetApplyAdvanced().apply_controlnet(
            positive, negative, control_net, hint, 1.0, 0.0, 1.0
        )
    return positive, negative


@pytest.mark.parametrize("place", ["behind", "before", "both"])
def test_a_controlnet_tells_each_region_by_its_part_of_the_hint(base, pair, control_net, place):
    hint = HINT
    given = encode(base[1], "two people"), encode(base[1], "blurry")
    if place != "behind":
        given = controlled(*given, control_net, hint)
    model, positive, negative, _ = regions(base, *pair, each_region=OWN, conditionings=given)
    if place != "before":
        positive, negative = controlled(positive, negative, control_net, hint)
    made = sample(model, positive, negative, noise())
    for concept, side in ((pair[0], LEFT), (pair[1], RIGHT)):
        own, clip = applied(base[0], base[1], concept, STORE)
        prompts = encode(clip, f"a photo of {concept.trigger}"), encode(clip, "blurry")
        part = hint[:, :, side.start * 8 : side.stop * 8]
        wanted = sample(own, *controlled(*prompts, control_net, part, 2 if place == "both" else 1), noise()[..., side])
        assert (made[..., side] - wanted).norm() < 1e-3 * wanted.norm()
        squeezed = sample(own, *controlled(*prompts, control_net, hint), noise()[..., side])
        assert (squeezed - wanted).norm() > 0.02 * wanted.norm(), "the hint says nothing"


def test_a_region_that_sees_the_whole_picture_is_told_by_the_whole_hint(base, pair, control_net):
    one, two = (dataclasses.replace(c, predictor=None) for c in pair)
    hint = HINT
    model, positive, negative, _ = regions(base, one, two, each_region=WHOLE)
    made = sample(model, *controlled(positive, negative, control_net, hint), noise(), steps=1)
    for concept, side in ((one, LEFT), (two, RIGHT)):
        own, clip = applied(base[0], base[1], concept, STORE)
        prompts = encode(clip, "a photo of S*"), encode(clip, "blurry")
        wanted = sample(own, *controlled(*prompts, control_net, hint), noise(), steps=1)
        torch.testing.assert_close(made[..., side], wanted[..., side], rtol=1e-3, atol=1e-3)


def test_what_is_nobodys_region_is_the_bases(base, pair):
    masks = {"mask_1": half_mask(slice(0, 4)), "mask_2": half_mask(slice(4, 8))}
    model, positive, negative, _ = regions(base, *pair, each_region=WHOLE, **masks)
    made = sample(model, positive, negative, noise(), steps=1)
    stock = sample(base[0], encode(base[1], "two people"), encode(base[1], "blurry"), noise(), steps=1)
    torch.testing.assert_close(made[..., RIGHT], stock[..., RIGHT], rtol=1e-4, atol=1e-4)
    assert (made[..., LEFT] - stock[..., LEFT]).norm() > 0.05 * stock[..., LEFT].norm()


def test_seeing_the_whole_picture_a_region_is_drawn_with_its_own_weights(base, pair):
    one, two = (dataclasses.replace(c, predictor=None) for c in pair)
    model, positive, negative, _ = regions(base, one, two, each_region=WHOLE)
    made = sample(model, positive, negative, noise(), steps=1)
    for concept, side in ((one, LEFT), (two, RIGHT)):
        own, clip = applied(base[0], base[1], concept, STORE)
        wanted = sample(own, encode(clip, "a photo of S*"), encode(clip, "blurry"), noise(), steps=1)
        torch.testing.assert_close(made[..., side], wanted[..., side], rtol=1e-3, atol=1e-3)


def test_the_same_graph_gives_the_same_picture_and_a_batch_its_pictures(base, pair):
    model, positive, negative, _ = regions(base, *pair)
    first = sample(model, positive, negative, noise())
    assert torch.equal(first, sample(model, positive, negative, noise()))
    both = sample(model, positive, negative, torch.cat([noise(), noise().flip(-1)]))
    torch.testing.assert_close(both[:1], first, rtol=1e-3, atol=1e-3)


def test_a_model_that_holds_a_concept_of_the_domain_has_its_offset_once(base, domain, pair):
    third = known_concept(domain, 3, "T*")
    holding, _ = applied(base[0], base[1], third, STORE)

    def parts(model) -> list[int]:
        _, positive, _, _ = regions(base, *pair, model=model)
        hooks = [values["hooks"].hooks[0] for _, values in positive if "hooks" in values]
        assert all(isinstance(hook, ConceptHook) for hook in hooks)
        return [len(hook.patches) for hook in hooks]

    assert parts(base[0]) == [2, 2] and parts(holding) == [1, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": "a photo\na painting of {}"}, "does not name its concept"),
        ({"prompts": "{}\n{}\n{}"}, "3 lines for 2 concepts"),
        ({"mask_1": torch.ones(1, 8, 8)}, "mask_2 is missing"),
        ({"mask_1": torch.ones(1, 8, 8), "mask_2": torch.zeros(1, 8, 8)}, "mask_2 is empty"),
        ({"mask_1": torch.ones(3, 8, 8), "mask_2": torch.ones(1, 8, 8)}, "mask_1 holds 3 masks"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(base, pair, options, said):
    with pytest.raises(ValueError, match=said):
        regions(base, *pair, **options)


def test_one_concept_twice_and_a_recipe_are_refused(base, pair):
    with pytest.raises(ValueError, match="concept_2 is the same as concept_1"):
        regions(base, pair[0], pair[0])
    with pytest.raises(ValueError, match="concept_2 .* is a recipe"):
        regions(base, pair[0], dataclasses.replace(pair[1], to_learn=True))


def test_an_empty_line_and_spaces_do_not_count_and_a_trigger_may_stand_for_itself(base, pair):
    one, two = dataclasses.replace(pair[0], trigger="Anna*"), dataclasses.replace(pair[1], trigger="Ben*")
    regions(base, one, two, prompts="\n  Anna* smiling \n\nBen*\n")


@pytest.mark.parametrize("layout", [ACROSS, DOWN])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("feather", [0.0, 0.1, 1.0])
def test_drawn_regions_share_the_picture(layout, count, feather):
    masks = drawn(count, layout, feather)
    whole = torch.stack(masks).sum(dim=0)
    torch.testing.assert_close(whole, torch.ones(SIDE, SIDE), rtol=0, atol=1e-4)
    assert rest(masks, 0.0).max() < 1e-4
    for number, mask in enumerate(masks):
        top, left, bottom, right = box_of(mask)
        along = (left, right) if layout == ACROSS else (top, bottom)
        assert along == pytest.approx((number / count, (number + 1) / count), abs=0.01)


def test_given_masks_are_softened_within_bounds_and_keep_their_place():
    mask = torch.zeros(2000, 3000)
    mask[500:1500, 0:1500] = 1
    (soft,) = given([mask], 0.1)
    assert max(soft.shape) <= 1024 and 0 <= soft.min() and soft.max() <= 1.0001
    assert box_of(soft) == pytest.approx((0.25, 0.0, 0.75, 0.5), abs=0.02)
    assert ((soft > 0.01) & (soft < 0.99)).any()
    (hard,) = given([mask], 0.0)
    assert box_of(hard) == pytest.approx((0.25, 0.0, 0.75, 0.5), abs=0.005)


@pytest.mark.parametrize("height", [8, 9, 16, 61, 64])
@pytest.mark.parametrize(
    "box", [(0.0, 0.0, 1.0, 1.0), (0.4, 0.4, 0.41, 0.41), (0.0, 0.5, 0.5, 1.0), (0.99, 0.99, 1.0, 1.0)]
)
def test_a_piece_of_the_picture_covers_its_box_on_whole_cells(height, box):
    latents = torch.arange(height)[None, None, :, None].expand(1, 4, height, height).float()
    piece = Place(None, box).piece(latents)
    rows = piece[0, 0, :, 0]
    assert len(rows) >= min(8, height) and rows[0] % 8 == 0 or len(rows) == 8
    assert rows[0] <= box[0] * height and rows[-1] + 1 >= box[2] * height - 1
