"""Save E4T Concept, compact, with MODEL and CLIP wired in: the small copy is tuned before it is written."""

from __future__ import annotations

import dataclasses

import comfy.model_management
import pytest
import torch
from e4t_pack.nodes.host.networks.effective_weights import LowRankPatch, is_ours
from e4t_pack.nodes.save_concept import SaveConcept
from kept_by_nodes import apply, load, said
from personalized import draw
from world import QUICK

from e4t_core.files.domain_file import save_domain

STRONG = dataclasses.replace(QUICK, train_unet=True, steps=4, learning_rate=3e-4)
WIRE = "Wire in MODEL and CLIP to keep more of the likeness."


@pytest.fixture
def learned(domain, run, places):
    save_domain(places.domains / "faces.safetensors", domain)
    return run(settings=STRONG)


def off_by(base, concept, wanted: torch.Tensor, stock: torch.Tensor) -> float:
    """How far a picture is from the concept's own, as a share of what the concept changes."""
    model, clip, _ = apply(base, concept)
    return float((draw(model, clip) - wanted).norm() / (stock - wanted).norm())


def test_the_fitted_copy_draws_more_like_the_concept(base, learned, untouched):
    model, clip, concept, _ = learned
    wanted, stock = draw(model, clip), draw(*base[:2])
    plain = SaveConcept.execute(concept, "plain", "compact")
    fitted = SaveConcept.execute(concept, "fitted", "compact", model=model, clip=clip)
    assert WIRE in said(plain) and WIRE not in said(fitted)
    assert "What the small copy predicts is off by" in said(fitted)
    cut, tuned = (off_by(base, load(name), wanted, stock) for name in ("plain", "fitted"))
    assert tuned < 0.8 * cut
    untouched()


def test_a_compact_concept_stays_small_in_a_model(base, learned):
    concept = learned[2]
    SaveConcept.execute(concept, "small", "compact")
    found = load("small")
    drawn, _, _ = apply(base, found)
    ours = [patch for patches in drawn.patches.values() for patch in patches if is_ours(patch)]
    thin = [patch for patch in ours if isinstance(patch[1], LowRankPatch)]
    assert len(thin) > 10
    held = {id(t) for change in found.weights if hasattr(change, "up") for t in (change.up, change.down)}
    assert {id(t) for patch in thin for t in patch[1].weights[:2]} == held, "copied in place of shared"


def test_cancelling_a_fit_writes_nothing(base, learned, places):
    model, clip, concept, _ = learned
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        SaveConcept.execute(concept, "small", "compact", model=model, clip=clip)
    assert not list(places.words.glob("*.safetensors"))


def test_without_its_photo_a_concept_is_cut_down(learned):
    model, clip, concept, _ = learned
    SaveConcept.execute(concept, "whole", "exact")
    output = SaveConcept.execute(load("whole"), "small", "compact", model=model, clip=clip)
    assert "off by" not in said(output) and WIRE not in said(output)
    assert load("small").weights
