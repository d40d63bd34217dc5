"""Concept files bring back what was saved, bit for bit, and say the same to programs that never heard of concepts."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kept import (
    OTHER_SAMPLING,
    QUICK,
    by_layers,
    e4t,
    edited,
    equal,
    inverted,
    mixed,
    photos_of,
    places,
    tensors_of,
    texts_of,
    word_only,
)
from safetensors import safe_open
from tiny import tiny_photos

from e4t_core.concept import Concept
from e4t_core.files.concept_file import ConceptFileError, load_concept, read_concept_info
from e4t_core.files.concept_info import BODIES, LOSSES, thinned
from e4t_core.files.concept_saving import About, body_for, save_concept
from e4t_core.files.file_errors import MESSAGE_LIMIT
from e4t_core.photos import Photos
from e4t_core.weight_changes import Full
from e4t_core.word_strength import at_word_strength

TITLED = About(
    "Anna \u5b89\u5a1c",
    "Me",
    "CC BY 4.0\nAsk first.",
    "2026-01-02T03:04:05+01:00",
    "0.1.0",
    "data:image/png;base64,iVBO",
)
HALF_LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)).half().float()


def halved(photos: Photos) -> Photos:
    assert photos.clip_features is not None
    return Photos(HALF_LATENTS, photos.clip_features.half().float())


def stored(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def header_of(path: Path) -> tuple[int, dict[str, str]]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return length, json.loads(data[8 : 8 + length])["__metadata__"]


CONCEPTS: dict[str, Callable[[], Concept]] = {
    "one photo": e4t,
    "three photos with masks": lambda: e4t(tiny_photos(3, masks=True)),
    "photos that half precision holds": lambda: e4t(halved(tiny_photos())),
    "direct offsets": lambda: e4t(form="direct"),
    "a hypernetwork's offsets": lambda: e4t(form="hypernetwork"),
    "the encoder alone": lambda: e4t(settings=dataclasses.replace(QUICK, train_unet=False, train_offsets=False)),
    "Stable Diffusion 2": lambda: e4t(width=1024),
    "one vector": inverted,
    "three vectors": lambda: inverted(3, width=1024),
    "two vectors, two photos": lambda: inverted(2, tiny_photos(2, masks=True)),
    "a word for each layer": lambda: by_layers(2),
    "a word for each layer of Stable Diffusion 2": lambda: by_layers(width=1024),
    "an edit of layers": edited,
    "a mix": mixed,
    "the coarse word, with weights": lambda: at_word_strength(e4t(), 0),
}


@pytest.fixture(scope="module", params=CONCEPTS)
def concept(request: pytest.FixtureRequest) -> Concept:
    made = CONCEPTS[request.param]()
    return dataclasses.replace(made, sampling=OTHER_SAMPLING, seed=2**64 - 1)


def test_an_exact_concept_comes_back_bit_for_bit(concept: Concept, tmp_path: Path) -> None:
    folders = places(tmp_path)
    saved = save_concept(folders, "anna", concept, "exact", TITLED)
    loaded, info = load_concept(saved.path, [folders.weights])
    assert equal(tensors_of(loaded), tensors_of(concept)) and texts_of(loaded) == texts_of(concept)
    assert loaded.recipe is None and not loaded.to_learn and loaded.refines == concept.refines
    own = bool(concept.weights) or concept.predictor is not None
    assert (saved.weights is not None) == own and info.body == ("exact" if own else "word")
    assert all(a.owner == b.owner for a, b in zip(loaded.weights, concept.weights, strict=True) if hasattr(a, "owner"))
    if concept.predictor is not None:
        features = torch.randn(3, concept.predictor.feature_width, generator=torch.Generator().manual_seed(1))
        assert loaded.predictor is not None
        assert torch.equal(loaded.predictor.word(features), concept.predictor.word(features))
    again = save_concept(folders, "again", loaded, "exact", TITLED)
    assert equal(tensors_of(load_concept(again.path, [folders.weights])[0]), tensors_of(concept))


def test_a_recipe_of_several_photos_takes_the_steps_that_it_took_whatever_its_age(tmp_path: Path) -> None:
    made = e4t(tiny_photos(3))
    folders = places(tmp_path)
    _, info = load_concept(save_concept(folders, "anna", made, "recipe", TITLED).path, [folders.weights])
    old = {
        name: value
        for name, value in info.settings.items()
        if name not in ("more_steps", "high_noise", "regularization_limit")
    }
    for settings in (info.settings, old):
        read = dataclasses.replace(info, settings=settings).loop_settings()
        assert read == made.settings and read.for_photos(3).steps == len(made.losses)


def test_a_recipe_comes_back_bit_for_bit_and_is_yet_to_learn(concept: Concept, tmp_path: Path) -> None:
    folders = places(tmp_path)
    if concept.recipe is None:
        with pytest.raises(ValueError, match="has no recipe"):
            save_concept(folders, "anna", concept, "recipe")
        assert not list(folders.words.iterdir())
        return
    saved = save_concept(folders, "anna", concept, "recipe", TITLED)
    loaded, _ = load_concept(saved.path, [folders.weights])
    assert loaded.recipe is not None and loaded.to_learn and saved.weights is None
    assert equal(photos_of(loaded.recipe), photos_of(concept.recipe)) and loaded.recipe.plan == concept.recipe.plan
    assert loaded.recipe.photos.masks_by_cell == concept.recipe.photos.masks_by_cell
    assert texts_of(loaded) == texts_of(concept) and loaded.weights == () and loaded.predictor is None
    again = save_concept(folders, "again", loaded, "recipe", TITLED)
    assert equal(stored(saved.path), stored(again.path))


def test_a_word_alone_comes_back_bit_for_bit(concept: Concept, tmp_path: Path) -> None:
    folders = places(tmp_path)
    saved = save_concept(folders, "anna", concept, "word", TITLED)
    loaded, info = load_concept(saved.path, [])
    assert torch.equal(loaded.embedding, concept.embedding) and texts_of(loaded) == texts_of(concept)
    assert (loaded.start is None) == (concept.start is None) and info.body == "word" and saved.weights is None
    assert body_for(loaded, "exact") == "word" and not list(folders.weights.iterdir())


def test_a_recipe_is_stored_in_half_precision_only_without_loss(tmp_path: Path) -> None:
    folders = places(tmp_path)
    whole = stored(save_concept(folders, "a", e4t(), "recipe").path)
    halves = stored(save_concept(folders, "b", e4t(halved(tiny_photos())), "recipe").path)
    masked = stored(save_concept(folders, "c", e4t(tiny_photos(2, masks=True)), "recipe").path)
    assert whole["recipe.latents"].dtype == torch.float32 and halves["recipe.latents"].dtype == torch.float16
    assert masked["recipe.masks"].shape == (2, 1, 8, 8) and masked["recipe.masks"].dtype == torch.float16
    assert torch.equal(halves["recipe.latents"].float(), HALF_LATENTS)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("width, family, trainer", [(768, "SD 1", "sd_v1"), (1024, "SD 2", "sd_v2_v")])
def test_both_dialects_say_what_it_is(tmp_path: Path, body: str, width: int, family: str, trainer: str) -> None:
    made = dataclasses.replace(
        e4t(width=width), trigger='a "quoted", word', losses=(0.5,) * 3000, notes=("\u4e2d" * 2000,) * 20
    )
    saved = save_concept(places(tmp_path), "anna", made, body, TITLED)
    length, told = header_of(saved.path)
    assert length < 2**20
    assert told["modelspec.title"] == TITLED.title and told["modelspec.trigger_phrase"] == made.trigger
    assert json.loads(told["trained_words"]) == [made.trigger] and told["ss_base_model_version"] == trainer
    assert told["modelspec.base_model"] == family and told["modelspec.thumbnail"] == TITLED.thumbnail
    assert told["modelspec.architecture"] == f"stable-diffusion-v{family[-1]}/textual-inversion"
    assert told["modelspec.author"] == "Me" and told["modelspec.license"] == TITLED.license
    assert told["modelspec.date"] == TITLED.created and told["modelspec.sai_model_spec"] == "1.0.0"
    embedding = stored(saved.path)["clip_l" if width == 768 else "clip_h"]
    assert torch.equal(embedding, made.embedding) and embedding.dtype == torch.float32
    info = read_concept_info(saved.path)
    assert (info.title, info.author, info.license) == (TITLED.title, TITLED.author, TITLED.license)
    assert info.created == TITLED.created and info.pack_version == "0.1.0" and info.base_name == "tiny.safetensors"


def test_without_a_title_it_is_called_as_its_file(tmp_path: Path) -> None:
    folders = places(tmp_path)
    names = [save_concept(folders, "anna", word_only(1.0, "f"), "word").path for _ in range(3)]
    assert [path.name for path in names] == ["anna.safetensors", "anna_00002.safetensors", "anna_00003.safetensors"]
    assert [read_concept_info(path).title for path in names] == ["anna", "anna_00002", "anna_00003"]


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500, 100_000])
def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path: Path, count: int) -> None:
    losses = tuple(float(index) for index in range(count))
    kept = load_concept(
        save_concept(places(tmp_path), "a", dataclasses.replace(word_only(1.0, "f"), losses=losses), "word").path, []
    )[0].losses
    assert kept == thinned(losses) and len(kept) == min(count, LOSSES)
    assert list(kept) == sorted(set(kept)) and (not count or (kept[0], kept[-1]) == (losses[0], losses[-1]))


@pytest.mark.parametrize("note", ['"', "\n", "\\", "\u4e2d", "\U0001f600", "x"])
def test_a_header_stays_below_what_comfyui_reads_or_nothing_is_written(tmp_path: Path, note: str) -> None:
    folders = places(tmp_path)
    written = 0
    for count in (10, 40, 70, 100):
        made = dataclasses.replace(word_only(1.0, "f"), notes=(note * 2000,) * count)
        thumbnail = "x" * 390_000
        try:
            path = save_concept(folders, "a", made, "word", About(thumbnail=thumbnail), overwrite=True).path
        except ValueError as error:
            assert "too long" in str(error)
        else:
            written += 1
            assert header_of(path)[0] < 2**20 and load_concept(path, [])[0].notes == made.notes
    assert written >= 1


def nan_in(concept: Concept) -> Concept:
    return dataclasses.replace(concept, embedding=torch.full_like(concept.embedding, float("nan")))


def nan_in_a_weight(concept: Concept) -> Concept:
    first = next(change for change in concept.weights if isinstance(change, Full))
    values = first.stored.values.clone()
    values.view(-1)[0] = float("inf")
    spoiled = Full(first.name, dataclasses.replace(first.stored, values=values))
    return dataclasses.replace(
        concept, weights=(*(change for change in concept.weights if change is not first), spoiled)
    )


@pytest.mark.parametrize(
    "change, body, told",
    [
        (nan_in, "word", "holds NaN or infinity in clip_l"),
        (nan_in_a_weight, "exact", "holds NaN or infinity in weights"),
        (lambda c: dataclasses.replace(c, embedding=torch.zeros(1, 5)), "word", "width 5 is none of"),
        (lambda c: dataclasses.replace(c, embedding=torch.zeros(65, 768)), "word", "1 to 64 rows"),
        (lambda c: dataclasses.replace(c, embedding=torch.zeros(2, 768)), "exact", "predicts one word, but holds 2"),
        (lambda c: dataclasses.replace(c, start=torch.zeros(3)), "word", "the shape .3,. in place of .768,. for start"),
        (lambda c: dataclasses.replace(c, losses=(float("nan"),)), "word", "losses = nan"),
        (lambda c: dataclasses.replace(c, seed=2**64), "word", "must be below 2..64"),
        (lambda c: dataclasses.replace(c, seed=-1), "word", "seed = '-1' must be digits"),
        (lambda c: dataclasses.replace(c, trigger="\x1b[2J"), "word", "control characters"),
        (lambda c: dataclasses.replace(c, trigger="x"), "word", "2 to 100"),
        (lambda c: dataclasses.replace(c, notes=("\ud800",)), "word", "control characters"),
        (lambda c: dataclasses.replace(c, recipe=None), "recipe", "has no recipe"),
        (lambda c: at_word_strength(c, 0.5), "exact", "at word strength 1"),
        (lambda c: c, "compressed", "must be one of"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, change: Callable[[Concept], Concept], body: str, told: str
) -> None:
    folders = places(tmp_path)
    before = save_concept(folders, "a", e4t(), "exact")
    assert before.weights is not None
    data = before.path.read_bytes(), before.weights.read_bytes()
    with pytest.raises(ValueError, match=told) as caught:
        save_concept(folders, "a", change(e4t()), body, overwrite=True)
    assert len(str(caught.value)) <= MESSAGE_LIMIT
    assert (before.path.read_bytes(), before.weights.read_bytes()) == data
    assert {path.name for path in folders.words.iterdir()} == {"a.safetensors", ".e4t.lock"}
    assert list(folders.weights.iterdir()) == [before.weights]


def test_a_recipe_is_kept_as_a_recipe_or_a_word_only(tmp_path: Path) -> None:
    folders = places(tmp_path)
    recipe, _ = load_concept(save_concept(folders, "a", e4t(), "recipe").path, [])
    with pytest.raises(ValueError, match="not learned again yet"):
        save_concept(folders, "b", recipe, "exact")
    assert body_for(recipe, "recipe") == "recipe" and body_for(recipe, "word") == "word"
    assert body_for(inverted(), "exact") == "word" and body_for(e4t(), "exact") == "exact"
    with pytest.raises(ConceptFileError, match="b.safetensors was not found"):
        load_concept(folders.words / "b.safetensors", [])


def test_a_recipe_at_stable_diffusion_s_shapes_takes_at_most_200_kilobytes(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    masks = torch.rand(1, 1, 64, 64, generator=draw)
    photos = Photos(
        torch.randn(1, 4, 64, 64, generator=draw), torch.randn(1, 16, 1280, generator=draw), masks, masks_by_cell=True
    )
    concept = e4t()
    assert concept.recipe is not None
    full = dataclasses.replace(concept, recipe=dataclasses.replace(concept.recipe, photos=photos))
    assert save_concept(places(tmp_path), "recipe", full, "recipe").bytes <= 200_000
