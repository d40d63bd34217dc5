"""The node "Learn Photo (HyperNetwork)": at once, from a domain whose weights depend on the photo."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from e4t_pack.nodes.host.learning.request import LoadedDomain
from e4t_pack.nodes.host.learning.settings_choice import SettingsChoice
from e4t_pack.nodes.hypernetwork import LearnHyperNetwork
from kept_by_nodes import apply, content, load, save
from personalized import draw
from world import QUICK, ComfyUNet, make_domain, photo

from e4t_core.files.domain_file import save_domain
from e4t_core.loop_settings import SamplingSettings
from e4t_core.weight_changes import full_differences, shared_factors


@pytest.fixture(scope="module")
def hyper(base):
    made, generator = make_domain(ComfyUNet(base[0]), "hyper", offset_form="hypernetwork", v_size=32), torch.Generator()
    with torch.no_grad():
        for module in made.offsets.modules():
            if hasattr(module, "row"):
                # Without weights behind what CLIP says, all photos would have the same offsets.
                weight = module.row.weight
                weight.add_(torch.randn(weight.shape, generator=generator.manual_seed(1)) / weight.shape[1])
    return made


def learn(base, domain, **changes):
    """(MODEL, CLIP, concept, losses) by the node."""
    values = {"seed": 1, **changes}
    return LearnHyperNetwork.execute(*base, LoadedDomain(domain), values.pop("image", photo()), **values).args


def test_at_once_it_is_what_the_domain_says_of_the_photo_and_nothing_is_tuned(base, hyper, run, untouched):
    model, clip, concept, losses = learn(base, hyper)
    assert losses["loss"] == [] and concept.method == "hypernetwork" and concept.losses == ()
    assert not shared_factors(concept.weights)
    own = full_differences(concept.weights)
    weights = ComfyUNet(base[0]).parameters()
    factors = hyper.offsets.fixed(concept.predictor.clip_features).pairs
    assert own.keys() == factors.keys()
    for name, (p, q) in factors.items():
        wanted = weights[name] * (p @ q.T)
        # Kept in half precision.
        assert (own[name].value() - wanted).abs().max() <= 2.0**-10 * wanted.abs().max(), name
    other = full_differences(learn(base, hyper, image=photo(seed=3))[2].weights)
    assert any(not torch.equal(other[name].value(), own[name].value()) for name in own)
    # E4T without steps is the same.
    plain = run(of=hyper, settings=dataclasses.replace(QUICK, steps=0))
    assert torch.equal(draw(model, clip), draw(*plain[:2]))
    untouched()


def test_with_steps_it_is_tuned_and_kept_as_e4t_is(base, hyper, places):
    quick = SettingsChoice("", {"batch": 2, "micro_batch": 2, "train_unet": False, "find_subject": False})
    _, _, concept, losses = learn(base, hyper, steps=1, settings=quick)
    assert len(losses["loss"]) == 1
    save_domain(places.domains / "hyper.safetensors", hyper)
    at_once = learn(base, hyper)[2]
    for name, one in (("tuned", concept), ("instant", at_once)):
        for keeps in ("exact", "recipe"):
            save(one, f"{name}_{keeps}", keeps)
            again = apply(base, load(f"{name}_{keeps}"))[2]
            assert content(again) == content(one) and again.method == "hypernetwork"
    assert (places.words / "instant_recipe.safetensors").stat().st_size < 200_000


def test_a_domain_of_another_form_is_refused_in_a_sentence(base, domain):
    with pytest.raises(ValueError, match=r"'faces' has the same weight offsets for every photo \('network'\)"):
        learn(base, domain)


def test_the_domains_preset_counts_but_for_the_steps_which_are_the_nodes(base, hyper):
    preset = dataclasses.replace(hyper.info.preset, learning_rate=3e-5, steps=7, train_unet=False, find_subject=False)
    other = dataclasses.replace(hyper, info=dataclasses.replace(hyper.info, preset=preset))
    settings = learn(base, other)[2].settings
    assert (settings.steps, settings.learning_rate, settings.train_unet) == (0, 3e-5, False)
    choice = SettingsChoice("", {"steps": 4, "batch": 2}, SamplingSettings(refine_every=2))
    concept = learn(base, other, steps=1, settings=choice)[2]
    assert (concept.settings.steps, concept.settings.batch, concept.settings.learning_rate) == (1, 2, 3e-5)
    assert concept.sampling.refine_every == 2
