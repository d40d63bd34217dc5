"""Training resumes exactly, and weights come back from 8 bits within their bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from miniworld.training import Run, Schedule
from miniworld.weights import SMALL, load_weights, save_weights


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10, decay=0.25)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(9) == schedule.rate(50) == schedule.rate(75) == 1.0
    assert schedule.rate(88) == pytest.approx(12 / 25)
    assert schedule.rate(100) == 0.0


def _train(folder: Path, stop_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    run = Run(folder, model, Schedule(12, 0.05, warmup=2, ema=0.9, checkpoint_every=4), autocast=False)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        error = (model(x) - x.sum(1, keepdim=True)).square().mean()
        return error, {"error": float(error.detach())}

    run.train(loss)
    return run.finish()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "broken", stop_at=10)  # between the checkpoints of steps 8 and 12
    resumed = _train(tmp_path / "broken")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_eight_bit_weights_are_within_half_a_step_of_their_row(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 128, generator=generator) * torch.logspace(-3, 2, 64)[:, None]
    state = {"matrix": rows, "bias": torch.randn(64, generator=generator), "count": torch.arange(5)}
    assert rows.numel() >= SMALL
    save_weights(tmp_path / "w.safetensors", state, {"step": "7"})
    loaded, metadata = load_weights(tmp_path / "w.safetensors")
    # Half a step, and the scale's own float16 rounding (2^-11) over up to 127 steps.
    bound = rows.abs().amax(1, keepdim=True) / 127 * (0.5 + 127 * 2**-11)
    assert ((loaded["matrix"] - rows).abs() <= bound).all()
    assert torch.allclose(loaded["bias"], state["bias"], rtol=2**-11)
    assert torch.equal(loaded["count"], state["count"])
    assert metadata == {"step": "7"}
    assert (tmp_path / "w.safetensors").stat().st_size < rows.numel() * 1.3


def test_a_row_of_zeros_comes_back_as_zeros(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"matrix": torch.zeros(64, 128)})
    assert not load_weights(tmp_path / "w.safetensors")[0]["matrix"].any()
