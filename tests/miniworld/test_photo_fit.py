"""The mini world's domains know photos of their own kind, which they have never seen, from others."""

from __future__ import annotations

import pytest
import torch

from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.photo_fit import shows_nothing, unusual
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.trained_weight import made
from miniworld.domains import load_backbone, narrow_domain
from miniworld.heldout import concept_photo, held_out
from miniworld.pretraining import load_base

PHOTOS = 4


@pytest.mark.parametrize(("weights", "word", "other"), [("faces", "face", "cat"), ("cats", "cat", "face")])
def test_a_domain_knows_its_own_photos_from_others(weights: str, word: str, other: str) -> None:
    base, domain = load_base(), narrow_domain(weights)
    own, others = (
        torch.stack([concept_photo(person)[1] for person in held_out(of, "validation", PHOTOS)]) for of in (word, other)
    )
    noise = torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    images = torch.cat([own, others, noise])
    photos = Photos(base.vae.encode(images), load_backbone().cls_features(images).detach())
    run = E4T(domain).start(BaseModel(base.unet, base.text, "mini world"), photos, TuningSettings(), 0, "S*")
    with torch.no_grad(), base.unet.using(made(run.weights())):
        gains = run.gains()
    assert unusual(gains, domain.info.fit_threshold) == tuple(range(PHOTOS, 2 * PHOTOS + 1)), gains
    assert not any(shows_nothing(photo) for photo in images)
    assert shows_nothing(torch.full((3, 128, 128), 0.3))
