import pytest
import torch

from e4t_core.noise_schedule import NoiseSchedule


def test_stable_diffusions_schedule_has_its_known_ends() -> None:
    schedule = NoiseSchedule.scaled_linear()
    assert schedule.timesteps == 1000
    # Published values of SD 1.x: 1 - beta_0, and the last cumulative product.
    assert schedule.alphas_cumprod[0] == pytest.approx(0.99915, abs=1e-6)
    assert schedule.alphas_cumprod[-1] == pytest.approx(0.00466, abs=1e-5)
    assert (schedule.alphas_cumprod.diff() < 0).all()


def test_noisy_latents_mix_signal_and_noise_by_each_samples_own_timestep() -> None:
    schedule = NoiseSchedule(torch.tensor([0.64, 0.36]))
    latent, noise = torch.ones(2, 4, 2, 2), torch.full((2, 4, 2, 2), 10.0)
    noisy = schedule.add_noise(latent, noise, torch.tensor([0, 1]))
    assert torch.allclose(noisy[0], torch.tensor(0.8 + 6.0)) and torch.allclose(noisy[1], torch.tensor(0.6 + 8.0))


def test_the_v_target_gives_back_the_latent() -> None:
    schedule = NoiseSchedule.scaled_linear()
    latent, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    t = torch.tensor([0, 500, 999])
    v = schedule.target(latent, noise, t, "v")
    kept = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    again = kept.sqrt() * schedule.add_noise(latent, noise, t) - (1 - kept).sqrt() * v
    assert torch.allclose(again, latent, atol=1e-5)


def test_the_epsilon_target_is_the_noise() -> None:
    noise = torch.randn(1, 4, 2, 2)
    schedule = NoiseSchedule.scaled_linear()
    assert torch.equal(schedule.target(torch.zeros(1, 4, 2, 2), noise, torch.tensor([3]), "epsilon"), noise)


def test_an_unknown_prediction_type_is_named() -> None:
    with pytest.raises(ValueError, match="'sample'"):
        NoiseSchedule.scaled_linear().target(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([0]), "sample")
