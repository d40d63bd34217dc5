import dataclasses
import math

import pytest
import torch
from tiny import CLIP_WIDTH, LAYERS, TinyText, TinyUNet, tiny_domain, tiny_photos
from torch import Tensor
from tuned import SMOOTH, identical, run, tune

from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.subject import PASSES, change_map, find_subject, gain_map, otsu_threshold, subject_mask
from e4t_core.methods.e4t.word_model import WordModel
from e4t_core.photos import Photos
from e4t_core.run import StepReport

SIZE = 16


def box(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., rows, columns] = 1
    return mask


LEFT = box(slice(None), slice(0, 8))
FACE, HAT = box(slice(6, 14), slice(4, 12)), box(slice(1, 6), slice(4, 12))


def naive_otsu(values: list[float]) -> float:
    """Every split tried, in plain Python."""
    ordered = sorted(values)

    def between(split: int) -> float:
        low, high = ordered[:split], ordered[split:]
        return len(low) * len(high) * (sum(low) / len(low) - sum(high) / len(high)) ** 2

    return ordered[max(range(1, len(ordered)), key=between)]


@pytest.mark.parametrize("seed", range(5))
def test_otsu_finds_the_split_that_trying_all_of_them_finds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.cat([torch.rand(30, generator=generator), 0.6 + torch.rand(12, generator=generator)]).double()
    assert otsu_threshold(values) == naive_otsu(values.tolist())


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0], [1.0, math.nan, 2.0], [1.0, math.inf]])
def test_otsu_says_so_where_there_is_nothing_to_split(values: list[float]) -> None:
    assert math.isnan(otsu_threshold(torch.tensor(values)))


def test_every_noise_level_counts_alike_in_the_change() -> None:
    one = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros_like(one)
    maps = change_map(torch.cat([one, 100 * one]), torch.cat([zero, zero]))
    assert torch.allclose(maps.mean(dim=(1, 2, 3)), torch.ones(2)) and torch.allclose(maps[0], maps[1])
    assert not change_map(one, one).any()


def test_a_gain_is_what_the_word_predicts_better_and_a_loss_is_below_zero() -> None:
    target, silent, individual = torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), 3.0)
    individual[..., 0, 0], individual[..., 1, 1] = -1, 5
    assert torch.equal(gain_map(individual, silent, target)[0, 0], torch.tensor([[8.0, 0.0], [0.0, -16.0]]))


def overlap(found: Tensor, true: Tensor) -> float:
    return float((found * true).sum() / ((found + true) > 0).sum())


def test_the_subject_is_where_the_word_changes_something_for_the_better() -> None:
    noise = 0.1 * torch.rand(8, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    changes, gains = 0.2 + FACE + HAT + noise, FACE - HAT + noise
    assert overlap(subject_mask(changes, gains), FACE) > 0.8
    # By the change alone, the hat would be the subject's.
    assert overlap(subject_mask(changes, torch.ones_like(gains)), FACE + HAT) > 0.8


@pytest.mark.parametrize("maps", [torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), math.nan)])
def test_maps_that_tell_nothing_leave_the_whole_photo(maps: Tensor) -> None:
    assert torch.equal(subject_mask(maps, maps), torch.ones(1, 1, 8, 8))
    assert torch.equal(subject_mask(torch.rand(2, 1, 8, 8), -torch.ones(2, 1, 8, 8)), torch.ones(1, 1, 8, 8))


class HalfUNet(TinyUNet):
    """Predicts the noise in the left half as well as the prompt tells of the individual, and nothing in the right one."""

    def __init__(self) -> None:
        super().__init__()
        self.empty_context = TinyText().empty()

    def denoise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        super().denoise(z, t, context)
        told = (context - self.empty_context).abs().mean(dim=(1, 2)).clamp(max=1)[:, None, None, None]
        return z * LEFT * told


def found_by(unet: TinyUNet, photos: Photos, seed: int = 1) -> tuple[Tensor, int]:
    domain, text, calls = tiny_domain(unet), TinyText(), []
    with unet.using({}):
        words = WordModel.of(unet, text, domain.encoder, "face", 0.5, ("a photo of {}", "a picture of {}"))
        masks = find_subject(words, photos.latents, photos.clip_features, seed, lambda: calls.append(1))
    return masks, len(calls)


def two_photos() -> Photos:
    generator = torch.Generator().manual_seed(4)
    return Photos(
        torch.randn(2, 4, SIZE, SIZE, generator=generator), torch.randn(2, LAYERS, CLIP_WIDTH, generator=generator)
    )


def test_each_photo_s_subject_is_found() -> None:
    masks, calls = found_by(HalfUNet(), two_photos())
    assert masks.shape == (2, 1, SIZE, SIZE) and calls == 2 * PASSES
    for mask in masks:
        assert overlap(mask[None], LEFT) > 0.8


def test_out_of_memory_the_noise_levels_pass_one_by_one() -> None:
    class SmallUNet(HalfUNet):
        def denoise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
            if len(z) > 1:
                raise torch.OutOfMemoryError("simulated")
            return super().denoise(z, t, context)

    photos = two_photos()
    masks, calls = found_by(SmallUNet(), photos)
    assert torch.equal(masks, found_by(HalfUNet(), photos)[0]) and calls == 2 * PASSES


def test_tuning_without_a_mask_is_tuning_with_the_mask_that_is_found() -> None:
    unet, photos = TinyUNet(), tiny_photos()
    reports: list[StepReport] = []
    alone = tune(unet, TinyText(), tiny_domain(unet), photos, SMOOTH, 1, on_step=reports.append)
    masks = reports[-1].masks
    assert masks is not None and 0 < masks.mean() < 1 and reports[0].phase == "subject" and reports[0].masks is None
    given = run(photos=dataclasses.replace(photos, masks=masks), seed=1)
    assert alone.losses == given.losses and identical(alone, given)
    smaller: list[StepReport] = []
    settings = dataclasses.replace(SMOOTH, micro_batch=1)
    tune(unet, TinyText(), tiny_domain(unet), photos, settings, 1, on_step=smaller.append)
    assert torch.equal(smaller[-1].masks, masks), "the micro-batch moves the outline"  # type: ignore[arg-type]
    whole = run(dataclasses.replace(SMOOTH, find_subject=False), seed=1)
    assert whole.losses != alone.losses


@pytest.mark.parametrize("changes", [{"find_subject": False}, {"use_mask": False}, {"steps": 0}])
def test_nothing_is_looked_for_where_it_would_not_be_used(changes: dict[str, bool | int]) -> None:
    reports: list[StepReport] = []
    unet = TinyUNet()
    settings = dataclasses.replace(SMOOTH, **changes)  # type: ignore[arg-type]
    tune(unet, TinyText(), tiny_domain(unet), tiny_photos(), settings, 1, on_step=reports.append)
    assert {report.phase for report in reports} <= {"tuning", "word"} and all(r.masks is None for r in reports)


def test_a_domain_that_knows_nothing_yet_learns_the_whole_photo() -> None:
    """An encoder that predicts no offset changes no prediction."""
    unet = TinyUNet()
    domain = tiny_domain(unet)
    assert isinstance(domain.encoder, ConceptEncoder)
    domain.encoder.final.weight.data.zero_()
    domain.encoder.final.bias.data.zero_()
    reports: list[StepReport] = []
    tune(unet, TinyText(), domain, tiny_photos(), SMOOTH, 1, on_step=reports.append)
    assert reports[-1].masks is not None and torch.equal(reports[-1].masks, torch.ones(1, 1, 8, 8))
