"""The compact body of a concept file: one small file that is nearly the concept, with and without its domain."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kept import base, domain_of, e4t, inverted, mixed, places
from safetensors import safe_open
from safetensors.torch import save_file

from e4t_core.concept import Concept
from e4t_core.files.compact_body import CompactSettings
from e4t_core.files.concept_compact import compact_tensors
from e4t_core.files.concept_file import ConceptFileError, load_concept, read_concept_info
from e4t_core.files.concept_saving import save_concept
from e4t_core.files.file_errors import MESSAGE_LIMIT
from e4t_core.methods.e4t.domain import Domain
from e4t_core.stored_difference import energy_lost
from e4t_core.weight_changes import full_differences, shared_factors

FINE = CompactSettings(rank=1024, bits=8, vector_bits=8, gain=0.0, encoder_rank=1024, encoder_bits=8)


def domain(concept: Concept) -> Domain:
    found = domain_of("network", base())
    assert found.fingerprint == concept.domain_fingerprint
    return found


def words(concept: Concept) -> torch.Tensor:
    assert concept.predictor is not None
    features = torch.randn(6, concept.predictor.feature_width, generator=torch.Generator().manual_seed(8))
    return concept.predictor.word(features)


@pytest.mark.parametrize("made", [e4t, mixed], ids=["E4T", "a mix"])
def test_finely_kept_it_is_the_concept_up_to_eight_bits(tmp_path: Path, made: Callable[[], Concept]) -> None:
    concept = made()
    saved = save_concept(places(tmp_path), "small", concept, "compact", compact=FINE)
    assert saved.weights is None
    found, info = load_concept(saved.path, [], domain)
    assert (info.body, found.to_learn, found.fingerprint) == ("compact", False, concept.fingerprint)
    assert torch.equal(found.embedding, concept.embedding)
    wanted, got = full_differences(concept.weights), full_differences(found.weights)
    assert wanted.keys() == got.keys() and len(wanted) > 3
    for name, stored in wanted.items():
        assert energy_lost(stored.value(), got[name].value()) < 1e-3, name
    for name, (p, q) in shared_factors(concept.weights).items():
        for one, other in zip((p, q), shared_factors(found.weights)[name], strict=True):
            assert torch.equal(one.half().float(), other)
    moved = (words(concept) - concept.start).norm()
    assert float((words(found) - words(concept)).norm() / moved) < 0.02


def test_without_its_domain_the_word_is_fixed_and_the_weights_are_the_same(tmp_path: Path) -> None:
    concept = e4t()
    path = save_concept(places(tmp_path), "small", concept, "compact").path
    (with_domain, _), (without, _) = load_concept(path, [], domain), load_concept(path, [])
    assert without.predictor is None and with_domain.predictor is not None
    one, other = full_differences(with_domain.weights), full_differences(without.weights)
    assert all(torch.equal(one[name].value(), other[name].value()) for name in one)
    with pytest.raises(ConceptFileError, match="does not fit its domain"):
        load_concept(path, [], lambda _: narrow_domain(concept))


def narrow_domain(concept: Concept) -> Domain:
    """A domain whose encoder reads fewer UNet features."""
    whole = domain(concept)
    encoder = type(whole.encoder)(
        whole.encoder.layers, whole.encoder.clip_width, whole.encoder.feature_width - 1, whole.encoder.word_width
    )
    return dataclasses.replace(whole, encoder=encoder)


def test_a_compact_concept_is_kept_again_without_further_loss_worth_naming(tmp_path: Path) -> None:
    concept = e4t()
    first, _ = load_concept(save_concept(places(tmp_path), "one", concept, "compact", compact=FINE).path, [], domain)
    second, _ = load_concept(save_concept(places(tmp_path), "two", first, "compact", compact=FINE).path, [], domain)
    one, two = full_differences(first.weights), full_differences(second.weights)
    for name, stored in one.items():
        assert energy_lost(stored.value(), two[name].value()) < 1e-3
    exact = save_concept(places(tmp_path), "three", first, "exact")
    third, _ = load_concept(exact.path, [tmp_path / "e4t_concepts"])
    assert torch.equal(words(third), words(first))


def test_a_word_that_is_everything_needs_no_body_and_one_without_its_domain_cannot_be_kept_small(
    tmp_path: Path,
) -> None:
    saved = save_concept(places(tmp_path), "word", inverted(), "compact")
    assert read_concept_info(saved.path).body == "word"
    path = save_concept(places(tmp_path), "small", e4t(), "exact").path
    loaded, _ = load_concept(path, [tmp_path / "e4t_concepts"])
    with pytest.raises(ValueError, match="its domain is not at hand"):
        compact_tensors(loaded)


def test_progress_is_told_and_may_stop_the_save(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    save_concept(places(tmp_path), "small", e4t(), "compact", on_part=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] == len(steps)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_concept(places(tmp_path), "other", e4t(), "compact", on_part=stop)
    assert not (tmp_path / "embeddings" / "e4t" / "other.safetensors").exists()


def break_rank(info: dict[str, Any]) -> None:
    name = next(name for name, part in info["compact"]["weights"].items() if part[1])
    info["compact"]["weights"][name][1] += 1


def huge(info: dict[str, Any]) -> None:
    info["compact"]["weights"]["a.weight"] = [8, 0, 2**30, 2**30]


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another rank": break_rank,
    "a huge part": huge,
    "no table": lambda info: info.update(compact=[1]),
    "no encoder": lambda info: info["compact"].pop("encoder"),
    "empty": lambda info: info.update(compact={}),
    "another body": lambda info: info.update(body="word"),
    "parts of text": lambda info: info["compact"].update(weights={"a": "b"}),
    "other predictors": lambda info: info.update(predictors=[]),
    "encoder of another": lambda info: info["compact"].update(
        encoder={f"7{name[1:]}": part for name, part in info["compact"]["encoder"].items()}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_body_is_one_sentence(tmp_path: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    path = save_concept(places(tmp_path), "small", e4t(), "compact").path
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    info = json.loads(metadata["e4t.info"])
    damage(info)
    save_file(tensors, path, {**metadata, "e4t.info": json.dumps(info)})
    with pytest.raises(ConceptFileError) as told:
        load_concept(path, [], domain)
    assert len(str(told.value)) <= MESSAGE_LIMIT and "small.safetensors" in str(told.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e9])
def test_steps_out_of_range_are_refused(tmp_path: Path, value: float) -> None:
    path = save_concept(places(tmp_path), "small", e4t(), "compact").path
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["compact.steps"][0] = value
    save_file(tensors, path, metadata)
    with pytest.raises(ConceptFileError):
        load_concept(path, [], domain)
