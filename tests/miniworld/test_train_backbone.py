"""The backbone's contrastive loss, where a caption may be true of several pictures."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from miniworld.attributes import random_identity, random_scene
from miniworld.train_backbone import matching_loss, one_phrase_captions


def test_one_caption_each_is_the_plain_contrastive_loss() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    wanted = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(matching_loss(logits, torch.eye(5, dtype=torch.bool)), wanted)


def test_all_pictures_that_a_caption_is_true_of_are_to_be_found() -> None:
    matches = torch.tensor([[True, False], [True, False], [False, True]])
    both = torch.tensor([[9.0, -9.0], [9.0, -9.0], [-9.0, 9.0]])
    only_first = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [-9.0, 9.0]])
    assert matching_loss(both, matches) < 0.5 < matching_loss(only_first, matches)


def test_every_caption_says_one_thing_and_is_true() -> None:
    rng = np.random.default_rng(0)
    identity, scene = random_identity(rng, "face", "train"), random_scene(rng)
    captions = one_phrase_captions(identity, scene)
    assert len(set(captions)) == len(identity.spec.named)
    for attribute, caption in zip(identity.spec.named, captions, strict=True):
        value = identity.value(attribute)
        assert (f"no {attribute}" if value == "none" else value) in caption
        assert caption.count(",") == 1
