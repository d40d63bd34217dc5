"""The mini world's domains find the subject of a photo they have never seen; where it is, the renderer knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from e4t_core.methods.e4t.subject import find_subject
from e4t_core.methods.e4t.word_model import WordModel
from miniworld.concept_photos import subject_masks
from miniworld.domains import load_backbone, load_mini_domain
from miniworld.heldout import concept_photo, held_out
from miniworld.models import load_unet
from miniworld.pretraining import load_base
from miniworld.renderer import render
from miniworld.training_unet import TrainingUNet
from miniworld.unet import STOCK_WIDTH, UNetModel
from miniworld.widen import widen_unet

PHOTOS = 3


@torch.no_grad()
def _wide_unet() -> TrainingUNet:
    narrow = load_unet()
    wide = UNetModel(replace(narrow.shape, width=STOCK_WIDTH))
    wide.load_state_dict(widen_unet(narrow.state_dict()))
    return TrainingUNet(wide)


def _cells(pixels: torch.Tensor) -> torch.Tensor:
    """Masks ``(B, 1, 128, 128)`` at the latent's size."""
    return F.interpolate(pixels, size=(16, 16), mode="bilinear", antialias=True)


@pytest.mark.parametrize(("weights", "word"), [("faces", "face"), ("cats", "cat")])
def test_a_domain_finds_its_subject_and_leaves_out_background_and_accessory(weights: str, word: str) -> None:
    base, unet, domain = load_base(), _wide_unet(), load_mini_domain(weights)
    people = [(identity, *concept_photo(identity)) for identity in held_out(word, "validation")]
    people = [(identity, scene, photo) for identity, scene, photo in people if scene.accessory > 0][:PHOTOS]
    assert len(people) == PHOTOS
    photos = torch.stack([photo for _, _, photo in people])
    identities, scenes = [identity for identity, _, _ in people], [scene for _, scene, _ in people]
    offsets, parameters = domain.offsets.fixed(), unet.parameters()
    with unet.using({name: offsets.apply(name, parameters[name]) for name in domain.offsets.names}):
        words = WordModel.of(unet, base.text, domain.encoder, word, domain.info.scale, domain.info.templates)
        latents, clip_features = base.vae.encode(photos), load_backbone().cls_features(photos)
        found = find_subject(words, latents, clip_features, 0, lambda: None)
    without = render(identities, [replace(scene, accessory=0) for scene in scenes])
    true = _cells(subject_masks(identities, scenes, photos))
    worn = _cells(((photos - without).abs().amax(1, keepdim=True) > 0.02).float())
    recall, precision = (found * true).sum() / true.sum(), (found * true).sum() / found.sum()
    assert recall > 0.65 and precision > 0.7, (float(recall), float(precision))
    assert (found * worn).sum() / worn.sum() < 0.25
