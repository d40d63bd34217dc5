"""A look at what a run would draw: right by its formula, and without a trace in what is learned."""

from __future__ import annotations

import pytest
import torch
from tiny import TinyText, TinyUNet, tiny_photos
from tuned import METHODS, method_of, quick

from e4t_core.diffusion import draw_samples
from e4t_core.memory_plan import PLANS
from e4t_core.noise_schedule import NoiseSchedule
from e4t_core.preview import draw
from e4t_core.run import BaseModel
from e4t_core.training import train


class _Knows:
    """A UNet that knows the picture: what it says of a noisy latent is exact, on the prompt and without alike."""

    def __init__(self, picture, prediction):
        self.picture, self.prediction, self.schedule = picture, prediction, NoiseSchedule.scaled_linear()
        self.asked = []

    def denoise(self, z, t, context):
        self.asked.append((int(t), float(context)))
        kept = self.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = (z - kept.sqrt() * self.picture) / (1 - kept).sqrt()
        return noise if self.prediction == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * self.picture


class _Run:
    """As much of a run as a preview asks for."""

    def __init__(self, unet, picture, seed=3):
        self.seed, self.templates = seed, ("a photo of {}",)
        self.photos = type("Photos", (), {"latents": torch.zeros_like(picture)})
        text = type("Text", (), {"empty": lambda _self: torch.zeros((1, 1, 1))})()
        self.base = type("Base", (), {"unet": unet, "text": text})

    def context(self, _z, _t):
        return torch.ones((1, 1, 1))


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_network_that_knows_the_picture_draws_it(prediction):
    picture = torch.randn((1, 4, 6, 6), generator=torch.Generator().manual_seed(1))
    unet = _Knows(picture, prediction)
    drawn = draw(_Run(unet, picture), steps=5)
    assert torch.allclose(drawn, picture, atol=2e-3)
    levels = [t for t, _ in unet.asked]
    assert len(unet.asked) == 10 and levels[0] == 999 and levels == sorted(levels, reverse=True)
    assert {asked for _, asked in unet.asked} == {0.0, 1.0}, "it was not asked with and without the prompt"


def test_it_starts_from_noise_of_the_seed_and_touches_no_other_random_state():
    picture = torch.zeros((1, 4, 6, 6))
    first = []

    class Remembers(_Knows):
        def denoise(self, z, t, context):
            first.append(z.clone())
            return super().denoise(z, t, context)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    for seed in (3, 3, 4):
        draw(_Run(Remembers(picture, "epsilon"), picture, seed), steps=1, guidance=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    tuned = draw_samples(3, [0], latent_shape=(4, 6, 6), batch=1).noise
    assert not torch.equal(first[0], tuned), "what is learned from is shown as what is drawn"


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_looking_changes_nothing_of_what_is_learned(method, plan):
    settings = quick(method, steps=3, batch=2)

    def learn(on_step=None):
        unet = TinyUNet()
        return train(
            method_of(method, unet, settings),
            BaseModel(unet, TinyText()),
            tiny_photos(),
            settings,
            7,
            "S*",
            on_step,
            plan,
        )

    drawn = []

    def look(report):
        if report.draw is not None:
            drawn.append((report.step, report.draw()))

    watched, unwatched = learn(look), learn()
    assert watched.fingerprint == unwatched.fingerprint and watched.losses == unwatched.losses
    assert torch.equal(watched.embedding, unwatched.embedding)
    assert [step for step, _ in drawn] == [1, 2, 3]
    pictures = [picture for _, picture in drawn]
    assert all(picture.shape == (1, 4, 8, 8) and torch.isfinite(picture).all() for picture in pictures)
    assert not torch.equal(pictures[0], pictures[2]), "what was learned since is not in the picture"
