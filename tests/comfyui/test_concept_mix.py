"""Mix E4T Concepts: the weighted average, against the naive formula, kept and drawn like any other concept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from e4t_pack.nodes.mix_concepts import MixConcepts
from kept_by_nodes import content, drawn, known_concept, load, said, save
from test_textual_inversion import learn as learn_word
from world import make_domain, photo

from e4t_core.mix import MixError
from e4t_core.weight_changes import full_differences, shared_factors


def mix(*concepts, trigger="M*", **weights):
    """By the node."""
    return MixConcepts.execute(*concepts, trigger=trigger, **weights).args[0]


@pytest.fixture
def pair(domain):
    return known_concept(domain, 1, "A*"), known_concept(domain, 2, "B*")


@pytest.mark.parametrize("kept", [0, 1])
def test_a_weight_of_zero_leaves_the_other_concept_itself(base, pair, kept):
    weights = {f"weight_{1 + kept}": 0.4, f"weight_{2 - kept}": 0.0}
    mixed = mix(*pair, trigger=pair[kept].trigger, **weights)
    assert content(mixed) == content(pair[kept])
    assert torch.equal(drawn(base, mixed), drawn(base, pair[kept]))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0)])
def test_it_is_the_naive_average(domain, pair, weights):
    mixed = mix(*pair, weight_1=weights[0], weight_2=weights[1])
    shares = [weight / sum(weights) for weight in weights]

    def average(values):
        return sum(share * value.double() for share, value in zip(shares, values, strict=True))

    assert mixed.trigger == "M*" and (mixed.word, mixed.recipe) == ("face", None)
    assert (mixed.embedding.double() - average([one.embedding for one in pair])).abs().max() < 1e-7
    stored, given = full_differences(mixed.weights), [full_differences(one.weights) for one in pair]
    assert stored.keys() == given[0].keys() == given[1].keys()
    for name, one in stored.items():
        wanted = average([part[name].value() for part in given])
        # Kept in half precision: 11 bits of the largest number.
        assert (one.value().double() - wanted).abs().max() <= 2.0**-11 * wanted.abs().max(), name
    assert all(
        torch.equal(own, its)
        for name, pq in shared_factors(mixed.weights).items()
        for own, its in zip(pq, shared_factors(pair[0].weights)[name], strict=True)
    )
    features = torch.randn((4, domain.info.feature_width), generator=torch.Generator().manual_seed(2))
    wanted = average([one.predictor.word(features) for one in pair])
    assert (mixed.predictor.word(features).double() - wanted).abs().max() < 1e-6


def test_only_the_ratio_of_the_weights_counts_and_the_order_hardly(base, pair):
    mixed = mix(*pair, weight_1=1.0, weight_2=3.0)
    assert content(mix(*pair, weight_1=0.5, weight_2=1.5)) == content(mixed)
    turned = mix(*reversed(pair), weight_1=3.0, weight_2=1.0)
    assert torch.allclose(drawn(base, turned), drawn(base, mixed), atol=1e-3)
    assert not torch.allclose(drawn(base, mix(*pair)), drawn(base, mixed), atol=1e-3)


def test_four_concepts_and_a_mix_of_mixes_are_the_same(domain):
    four = [known_concept(domain, seed, f"{seed}*") for seed in range(1, 5)]
    one = mix(*four)
    other = mix(mix(*four[:2]), mix(*four[2:]))
    features = torch.randn((2, domain.info.feature_width), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(one.predictor.word(features), other.predictor.word(features), atol=1e-6)
    assert torch.allclose(one.embedding, other.embedding, atol=1e-7)
    assert len(one.predictor.parts) == len(other.predictor.parts) == 4


def test_a_saved_mix_is_the_same_mix(base, domain, pair, places):
    mixed = mix(*pair, known_concept(domain, 3, "C*"), weight_3=0.2)
    save(mixed, "mixed")
    again = load("mixed")
    assert content(again) == content(mixed)
    assert torch.equal(drawn(base, again), drawn(base, mixed))
    assert torch.equal(drawn(base, again, 0.5, 0.5), drawn(base, mixed, 0.5, 0.5))
    with pytest.raises(ValueError, match="has no recipe"):
        save(mixed, "recipe", "recipe")


def test_words_of_textual_inversion_are_mixed_and_kept(base, places):
    one = learn_word(base, trigger="A*")[2]
    two = learn_word(base, trigger="B*", image=photo(seed=2))[2]
    mixed = mix(one, two)
    assert torch.allclose(mixed.embedding, (one.embedding + two.embedding) / 2, atol=1e-8)
    assert mixed.weights == () and mixed.predictor is None
    save(mixed, "both")
    assert torch.equal(drawn(base, load("both")), drawn(base, mixed))
    assert not places.weights.exists() or not list(places.weights.iterdir())


def test_what_is_said(pair):
    output = MixConcepts.execute(*pair, weight_1=3.0, weight_2=1.0, trigger="M*")
    assert said(output) == "M* = 75 % A* + 25 % B*"
    other = dataclasses.replace(pair[1], base_fingerprint="another")
    assert "different base models of one family" in said(MixConcepts.execute(pair[0], other, trigger="M*"))


def changed(**values):
    return lambda one, two, domain: (one, dataclasses.replace(two, **values))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (changed(domain_fingerprint="other", domain_name="cats"), r"domain file 'faces', the other to 'cats'"),
        (changed(method="textual_inversion"), "one was learned by e4t, the other by textual_inversion"),
        (changed(to_learn=True), r"'B\*' is a recipe, so wire in the concept that Apply E4T Concept gives"),
        (changed(embedding=torch.zeros(2, 768)), r"\(1, 768\) and \(2, 768\)"),
        (changed(embedding=torch.zeros(1, 1024)), r"\(1, 768\) and \(1, 1024\)"),
        (changed(predictor=None), "the word of only one of them is refined"),
        (
            lambda one, two, _: (
                dataclasses.replace(one, prediction="epsilon"),
                dataclasses.replace(two, prediction="v"),
            ),
            "their base models predict epsilon and v",
        ),
    ],
    ids=["domain", "method", "recipe", "tokens", "width", "refined", "prediction"],
)
def test_what_does_not_belong_together_is_refused(domain, pair, make, fault):
    with pytest.raises(MixError, match=fault) as error:
        mix(*make(*pair, domain))
    assert "'A*' and 'B*' cannot be mixed" in str(error.value)


def test_real_concepts_that_do_not_belong_together_are_refused(base, domain, run, places):
    from e4t_pack.nodes.host.networks.base_model import ComfyUNet

    learned = run()[2]
    with pytest.raises(MixError, match="learned by e4t, the other by textual_inversion"):
        mix(learned, learn_word(base, trigger="T*")[2])
    with pytest.raises(MixError, match="domain file 'faces', the other to 'cats'"):
        mix(learned, known_concept(make_domain(ComfyUNet(base[0]), "cats", seed=4), 1))
    save(learned, "seen", "recipe")
    with pytest.raises(MixError, match="is a recipe"):
        mix(known_concept(domain), load("seen"))


@pytest.mark.parametrize("weights", [(0.0, 0.0), (float("nan"), 1.0), (-1.0, 2.0)])
def test_weights_that_mix_nothing_are_refused(pair, weights):
    with pytest.raises(MixError, match="mix nothing"):
        mix(*pair, weight_1=weights[0], weight_2=weights[1])
