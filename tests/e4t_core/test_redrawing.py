"""How well a word redraws a square, with a UNet that can draw one thing when it is told to, and nothing otherwise."""

from collections.abc import Sequence

import pytest
import torch
from tiny import CLIP_WIDTH, LAYERS, TinyText, TinyUNet, tiny_domain
from torch import Tensor

from e4t_core.crop import Square
from e4t_core.methods.e4t import redrawing
from e4t_core.methods.e4t.redrawing import Redrawing, structure
from e4t_core.methods.e4t.word_model import WordModel
from e4t_core.noise_schedule import NoiseSchedule, Prediction

SUBJECT = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
OTHER = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
COLOR = torch.full((1, 4, 8, 8), 0.7)


class Draws(TinyUNet):
    """Predicts what makes the clean latent the subject where a word is said, and nothing (0) where none is.

    Args:
        always: also where none is said.
        deaf_to: a context that says nothing to it.
    """

    def __init__(self, prediction: Prediction = "epsilon", always: bool = False, deaf_to: Tensor | None = None) -> None:
        super().__init__(prediction=prediction)
        self.silence, self.always = TinyText().empty(), always
        self.deaf_to = self.silence if deaf_to is None else deaf_to

    def denoise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        super().denoise(z, t, context)
        said = torch.stack([(context - one).abs().amax(dim=(1, 2)) > 1e-6 for one in (self.silence, self.deaf_to)]).all(
            0
        )
        told = (said | self.always).float()[:, None, None, None]
        kept = self.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = (z - kept.sqrt() * told * SUBJECT) / (1 - kept).sqrt()
        return noise if self.prediction == "epsilon" else (kept.sqrt() * z - told * SUBJECT) / (1 - kept).sqrt()


class Photo:
    """Squares are numbered by their left side: which latents are in them."""

    def __init__(self, *latents: Tensor) -> None:
        self.of = latents

    def latents(self, squares: Sequence[Square]) -> Tensor:
        return torch.cat([self.of[square.left] for square in squares])

    def clip_features(self, squares: Sequence[Square]) -> Tensor:
        numbers = torch.tensor([1.0 + square.left for square in squares])
        return numbers[:, None, None].expand(-1, LAYERS, CLIP_WIDTH)


def seen(photo: Photo, care, count: int, prediction: Prediction = "epsilon", always=False, deaf_to=None, **options):
    unet = Draws(prediction, always, deaf_to)
    domain = tiny_domain(unet)
    with unet.using({}):
        words = WordModel.of(unet, TinyText(), domain.encoder, "face", 0.5, ("a photo of {}",))
        return Redrawing(words, photo, **options)([Square(0, number, 8) for number in range(count)], care)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_what_the_word_redraws_convinces_and_another_thing_does_not(prediction) -> None:
    subject, other, color = seen(Photo(SUBJECT, OTHER, COLOR), "confirm", 3, prediction)
    assert subject.convinces and not other.convinces and not color.convinces
    assert subject.score == pytest.approx(3, abs=1e-3), "all of it is redrawn, at three levels"
    assert other.score < 0 and color.score == 0


def test_the_score_is_the_share_that_is_redrawn() -> None:
    mixed = 0.8 * SUBJECT + 0.3 * OTHER

    def without_mean(latent: Tensor) -> Tensor:
        return latent - latent.mean(dim=(2, 3), keepdim=True)

    expected = 1 - without_mean(SUBJECT - mixed).square().mean() / without_mean(mixed).square().mean()
    assert 0.5 < expected < 0.95
    (looked,), (checked,) = (seen(Photo(mixed), care, 1) for care in ("look", "check"))
    assert looked.score == pytest.approx(float(expected), rel=1e-3)
    # Without a word nothing is redrawn, so that the gain is the share.
    assert checked.score == pytest.approx(3 * float(expected), rel=1e-3)


def test_a_color_of_the_background_tells_nothing() -> None:
    plain, tinted = seen(Photo(SUBJECT, SUBJECT + COLOR), "look", 2)
    assert plain.score == pytest.approx(tinted.score, rel=1e-3)
    assert structure(COLOR).item() == pytest.approx(0, abs=1e-6)


def test_what_is_redrawn_without_a_word_as_well_gains_nothing_by_it() -> None:
    (anyway,) = seen(Photo(SUBJECT), "check", 1, always=True)
    assert anyway.score == pytest.approx(1, abs=1e-3), "its share, and no gain"


def test_an_individual_whom_the_domains_word_does_not_draw_is_told_by_the_encoders() -> None:
    domain_word = TinyText().encode(["a photo of {}"], TinyText().word("face")[None])
    (looked,), (checked,) = (seen(Photo(SUBJECT), care, 1, deaf_to=domain_word) for care in ("look", "check"))
    assert looked.score == pytest.approx(0, abs=1e-3)
    assert checked.score == pytest.approx(1.5, abs=1e-3) and checked.hints, "by one word of the two"


def test_a_look_convinces_of_nothing() -> None:
    looked, checked, confirmed = (seen(Photo(SUBJECT), care, 1)[0] for care in ("look", "check", "confirm"))
    assert not looked.hints and not looked.convinces
    assert checked.hints and checked.convinces
    assert confirmed == checked


def test_what_the_word_makes_worse_in_detail_is_no_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thing that scores as a subject does where noise leaves the outline."""
    monkeypatch.setattr(redrawing.Redrawing, "details", lambda self, latents, clip_features: torch.tensor([0.0, -0.05]))
    checked, (kept, dropped) = (seen(Photo(SUBJECT, SUBJECT), care, 2) for care in ("check", "confirm"))
    assert checked[1].convinces and kept.convinces and not dropped.convinces and kept.score == dropped.score


def test_squares_are_seen_alike_however_many_pass_together() -> None:
    photo = Photo(SUBJECT, OTHER, 0.5 * SUBJECT, COLOR)
    together, alone = (seen(photo, "check", 4, at_once=count) for count in (16, 1))
    for one, other in zip(together, alone, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5) and one.convinces == other.convinces


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_prediction_turned_round_is_the_latent(prediction) -> None:
    schedule, t = NoiseSchedule.scaled_linear(), torch.tensor([0, 500, 999])
    latent, noise = SUBJECT.expand(3, -1, -1, -1), OTHER.expand(3, -1, -1, -1)
    z = schedule.add_noise(latent, noise, t)
    target = schedule.target(latent, noise, t, prediction)
    assert torch.allclose(schedule.clean(z, target, t, prediction), latent, atol=1e-4)
    with pytest.raises(ValueError, match="'sample'"):
        schedule.clean(z, target, t, "sample")
