"""Base models in half precision, as most are loaded: tuned and drawn."""

from __future__ import annotations

import pytest
import torch
from e4t_pack.nodes.host.learning.request import LoadedDomain
from e4t_pack.nodes.personalize import Personalize
from personalized import draw
from world import QUICK, chosen, make_base, photo


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_photo_is_learned_and_drawn(base, domain, dtype):
    half = make_base(dtype=dtype)[0]
    assert half.model_dtype() == dtype
    loaded_domain = LoadedDomain(domain, None)
    model, clip, parts, _ = Personalize.execute(
        half, *base[1:], loaded_domain, photo(), "S*", 1, None, chosen(QUICK)
    ).args
    assert parts.differences and torch.isfinite(torch.tensor(parts.concept.losses)).all()
    with_word, without = draw(model, clip), draw(model, clip, "a photo of a cat")
    assert torch.isfinite(with_word).all() and not torch.equal(with_word, without)
