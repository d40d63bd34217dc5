"""Prior pictures: the base draws them once, they are kept, and what does not fit is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TinyText, TinyUNet, tiny_photos
from torch import Tensor
from tuned import quick

from e4t_core.files.prior_file import kept_prior
from e4t_core.methods.dreambooth import DreamBooth
from e4t_core.methods.lora import LoRASettings
from e4t_core.photos import TuningError
from e4t_core.prior import WantedPrior, draw_prior
from e4t_core.run import BaseModel, Method
from e4t_core.training import train


def drawn(wanted: WantedPrior, base: BaseModel | None = None, size: tuple[int, int] = (8, 6)) -> Tensor:
    base = base or BaseModel(TinyUNet(), TinyText())
    return torch.cat([draw_prior(base, wanted, group, size) for group in wanted.groups()])[: wanted.count]


def test_prior_pictures_are_the_base_s_and_each_is_its_number_s() -> None:
    some = drawn(WantedPrior("face", 6, 0))
    assert some.shape == (6, 4, 8, 6) and not some.requires_grad
    assert torch.equal(drawn(WantedPrior("face", 9, 0))[:6], some), "more of them draw the first anew"
    assert not any(torch.equal(some[0], other) for other in some[1:])
    for other in (WantedPrior("face", 6, 1), WantedPrior("dog", 6, 0)):
        assert not torch.equal(drawn(other), some)
    assert not torch.equal(drawn(WantedPrior("face", 6, 0), BaseModel(TinyUNet(seed=1), TinyText())), some)


def test_groups_begin_where_pictures_are_missing() -> None:
    wanted = WantedPrior("face", 6, 0)
    assert [wanted.groups(known) for known in (0, 4, 6, 8, 100)] == [
        [range(4), range(4, 8)],
        *[[range(4, 8)]] * 2,
        [],
        [],
    ]


def test_drawing_prior_pictures_can_be_stopped_and_leaves_the_base() -> None:
    unet, seen = TinyUNet(), []
    before = {name: value.clone() for name, value in unet.parameters().items()}

    def stop() -> None:
        seen.append(1)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_prior(BaseModel(unet, TinyText()), WantedPrior("face", 6, 0), range(4), (8, 8), stop)
    assert len(seen) == 7 and unet.depth == 0
    assert all(torch.equal(value, before[name]) for name, value in unet.parameters().items())


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "another shape", "NaN"])
def test_kept_pictures_are_read_and_damaged_ones_drawn_again(tmp_path: Path, damage: str) -> None:
    path, wanted, groups = tmp_path / "prior" / "faces.safetensors", WantedPrior("face", 6, 0), []

    def draw(group: range) -> Tensor:
        groups.append(group)
        return torch.arange(group.start, group.stop).view(-1, 1, 1, 1).expand(-1, 4, 2, 3).float()

    latents, fault = kept_prior(path, wanted, (2, 3), draw)
    assert fault == "" and latents[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5] and len(groups) == 2
    assert torch.equal(kept_prior(path, wanted, (2, 3), draw)[0], latents) and len(groups) == 2
    if damage == "missing":
        path.unlink()
    elif damage in ("empty", "half"):
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-40])
    else:
        bad = torch.full((8, 4, 2, 3), float("nan")) if damage == "NaN" else torch.zeros(8, 4, 3, 2)
        save_file({"latents": bad.half()}, path)
    assert torch.equal(kept_prior(path, wanted, (2, 3), draw)[0], latents) and len(groups) == 4


def test_what_was_drawn_before_it_was_stopped_is_kept(tmp_path: Path) -> None:
    path, wanted = tmp_path / "faces.safetensors", WantedPrior("face", 12, 0)

    def draw(group: range) -> Tensor:
        if group.start == 8:
            raise KeyboardInterrupt
        return torch.ones(4, 4, 2, 2)

    with pytest.raises(KeyboardInterrupt):
        kept_prior(path, wanted, (2, 2), draw)
    assert len(load_file(path)["latents"]) == 8


def test_a_place_that_cannot_be_written_to_is_said_and_pictures_are_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "faces.safetensors"
    latents, fault = kept_prior(place, WantedPrior("face", 1, 0), (2, 2), lambda group: torch.ones(4, 4, 2, 2))
    assert latents.shape == (1, 4, 2, 2)
    assert re.fullmatch(
        r"The prior pictures could not be kept in .*file \(.+\), so they are drawn .* be written to\.", fault
    )


def test_no_pictures_are_asked_for_where_they_would_not_count() -> None:
    method = DreamBooth("face")
    assert method.wanted_prior(DreamBooth.Settings(prior_seed=3)) == WantedPrior("face", 100, 3)
    for settings in (DreamBooth.Settings(prior_weight=0.0), DreamBooth.Settings(steps=0), LoRASettings()):
        assert method.wanted_prior(settings) is None


@pytest.mark.parametrize(
    ("prior", "fault"),
    [
        (None, "needs 3 pictures of 'face' .* was given None: draw them first, or set prior_weight to 0"),
        (torch.zeros(2, 4, 8, 8), r"was given \(2, 4, 8, 8\)"),
        (torch.zeros(3, 4, 8, 6), r"was given \(3, 4, 8, 6\)"),
        (torch.full((3, 4, 8, 8), float("nan")), "drew NaN or infinity for 'a photo of face'"),
    ],
)
def test_pictures_that_are_missing_or_do_not_fit_are_refused(prior: Tensor | None, fault: str) -> None:
    method: Method = DreamBooth("face") if prior is None else DreamBooth("face").with_prior(prior)
    with pytest.raises(TuningError, match=fault):
        train(method, BaseModel(TinyUNet(), TinyText()), tiny_photos(), quick(DreamBooth), 0)
