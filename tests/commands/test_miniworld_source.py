"""The mini world's photos as a source: the very pictures that its own pre-training learns from."""

import numpy as np
import pytest
import torch

from commands.pretrain.data.micro_batches import make_loader, micro_batches
from commands.pretrain.data.training_data import TrainingData
from miniworld.concept_photos import CHUNK, concept_scene, subject_masks, training_identities
from miniworld.pretraining import TrainingPhotos, load_base
from miniworld.renderer import render


@pytest.mark.parametrize("domain", ["face", "cat"])
def test_a_photo_is_the_one_that_pre_training_draws(domain: str) -> None:
    source = TrainingPhotos(domain, count=2 * CHUNK, seed=11)
    rng = np.random.default_rng([11, 1])
    identities = training_identities(domain, 1, rng)
    scenes = [concept_scene(rng) for _ in identities]
    pictures = render(identities[:3], scenes[:3])
    masks = subject_masks(identities[:3], scenes[:3], pictures)
    for number in range(3):
        photo = source.read(CHUNK + number, 128)
        assert torch.equal(photo.image, (pictures[number] * 255).round().byte())
        assert torch.equal(photo.mask, (masks[number] * 255).byte())
        assert identities[number].split() == "train"


def test_photos_reach_the_loader_with_their_masks() -> None:
    data = TrainingData([TrainingPhotos("cat", 64, 11)], [1], 128, seed=0)
    (batch,) = make_loader(data, micro_batches(0, 1, 4, 4), workers=0)
    assert batch.images.shape == (4, 3, 128, 128)
    assert batch.masks is not None
    assert batch.masks.shape == (4, 1, 128, 128)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="no domain 'dog'"):
        TrainingPhotos("dog", 64, 0)
    with pytest.raises(ValueError, match="multiple of 64"):
        TrainingPhotos("cat", 100, 0)


def test_the_base_takes_pictures_between_zero_and_one_and_gives_them_back() -> None:
    base = load_base()
    pictures = TrainingPhotos("face", 64, 11).read(0, 128).image[None].float() / 255
    back = base.vae.decode(base.vae.encode(pictures))
    assert (back - pictures).square().mean() < 1e-3  # the autoencoder's 30 dB
