"""Tuning that is cancelled, fails or is given what does not fit: nothing is changed, and one sentence says why."""

from collections.abc import Callable

import pytest
import torch
from tiny import TinyText, TinyUNet, tiny_domain, tiny_photos
from torch import Tensor
from tuned import METHODS, SMOOTH, method_of, quick, run, tune

from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import DomainMismatchError
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.word_model import WordModel
from e4t_core.methods.perfusion import Perfusion
from e4t_core.photos import Photos, TuningError
from e4t_core.run import BaseModel, Method, StepReport
from e4t_core.training import train
from e4t_core.unet import WordError


class Interrupt(BaseException):
    """As ComfyUI's: not an Exception."""


def snapshot(unet: TinyUNet, domain: Domain, photos: Photos) -> dict[str, Tensor]:
    given = {f"unet.{key}": value for key, value in unet.network.state_dict().items()}
    given |= {f"encoder.{key}": value for key, value in domain.encoder.state_dict().items()}
    given |= {f"offsets.{key}": value for key, value in domain.offsets.state_dict().items()}
    assert photos.masks is not None
    given |= {"latents": photos.latents, "clip": photos.clip_features, "masks": photos.masks}
    return {key: value.clone() for key, value in given.items()}


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("cancel_at", [1, 2, 3, 4, 5, 6, 7, None])
@pytest.mark.parametrize("error", [Interrupt, RuntimeError])
def test_nothing_given_is_changed_by_a_run_a_cancel_or_a_fault(
    kind: type[Method], cancel_at: int | None, error: type[BaseException]
) -> None:
    unet = TinyUNet()
    domain, photos = tiny_domain(unet), tiny_photos(masks=True)
    before = snapshot(unet, domain, photos)
    identities = {name: id(parameter) for name, parameter in unet.network.named_parameters()}

    def on_step(report: StepReport) -> None:
        if report.done == cancel_at:
            raise error("stop")

    def go() -> None:
        settings = quick(kind)
        method = E4T(domain) if kind is E4T else method_of(kind, unet, settings)
        train(method, BaseModel(unet, TinyText()), photos, settings, 1, on_step=on_step)

    # A method with less to look at is over before.
    if cancel_at is None or (kind not in (E4T, Perfusion) and cancel_at > 4):
        go()
    else:
        with pytest.raises(error, match="stop"):
            go()
    after = snapshot(unet, domain, photos)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert identities == {name: id(parameter) for name, parameter in unet.network.named_parameters()}
    assert unet.depth == 0
    for module in (unet.network, domain.encoder, domain.offsets):
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_running_out_of_memory_in_a_pass_passes_through_and_changes_nothing(
    kind: type[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = TinyUNet()
    before = {name: value.clone() for name, value in unet.parameters().items()}
    original: Callable[..., Tensor] = unet.denoise

    def denoise(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if unet.calls.count("denoise") == 2:
            raise torch.OutOfMemoryError("no room")
        return original(z, t, context)

    monkeypatch.setattr(unet, "denoise", denoise)
    settings = quick(kind)
    with pytest.raises(torch.OutOfMemoryError):
        train(method_of(kind, unet, settings), BaseModel(unet, TinyText()), tiny_photos(), settings, 1)
    assert unet.depth == 0 and all(torch.equal(unet.parameters()[name], value) for name, value in before.items())


def test_another_base_is_refused_before_anything_runs() -> None:
    unet = TinyUNet(prediction="v")
    with pytest.raises(DomainMismatchError, match="'epsilon'"):
        tune(unet, TinyText(), tiny_domain(TinyUNet()), tiny_photos(), SMOOTH, 1)
    assert unet.calls == []


def test_a_domain_word_of_several_tokens_is_named() -> None:
    unet = TinyUNet()
    with pytest.raises(WordError, match="'noses'"):
        tune(unet, TinyText(), tiny_domain(unet, word="noses"), tiny_photos(), SMOOTH, 1)


def test_features_of_another_backbone_are_refused() -> None:
    unet = TinyUNet()
    photos = Photos(torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 5))
    with pytest.raises(TuningError, match=r"\(3, 5\) .* reads \(2, 5\): use the image backbone 'ViT-tiny'"):
        tune(unet, TinyText(), tiny_domain(unet), photos, SMOOTH, 1)


@pytest.mark.parametrize(
    "latents, clip, masks, told",
    [
        (torch.zeros(0, 4, 8, 8), torch.zeros(0, 2, 5), None, "no photo"),
        (torch.zeros(4, 8, 8), torch.zeros(1, 2, 5), None, "no photo"),
        (torch.zeros(2, 4, 8, 8), torch.zeros(1, 2, 5), None, "CLIP features .* 2 photos"),
        (torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 5), torch.zeros(2, 1, 8, 8), "Masks .* 1 photos"),
        (torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 5), torch.zeros(1, 3, 8, 8), "Masks"),
        (torch.full((1, 4, 8, 8), float("nan")), torch.zeros(1, 2, 5), None, "latents hold NaN"),
        (torch.zeros(1, 4, 8, 8), torch.full((1, 2, 5), float("inf")), None, "clip_features hold NaN"),
    ],
)
def test_photos_that_do_not_belong_together_are_refused(
    latents: Tensor, clip: Tensor, masks: Tensor | None, told: str
) -> None:
    with pytest.raises(TuningError, match=told):
        Photos(latents, clip, masks)


def test_a_loss_that_is_no_longer_finite_ends_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = TinyUNet()
    original: Callable[..., Tensor] = unet.denoise
    monkeypatch.setattr(unet, "denoise", lambda z, t, context: original(z, t, context) * float("inf"))
    with pytest.raises(TuningError, match=r"step 1 of 2: lower the learning rate \(0\.01\)"):
        run(unet=unet)


def test_a_word_that_is_no_longer_finite_ends_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> Tensor:
        return torch.full((1, 6), float("nan"))

    monkeypatch.setattr(WordModel, "offset", broken)
    with pytest.raises(TuningError, match="word embedding became NaN"):
        run(TuningSettings(steps=0))
