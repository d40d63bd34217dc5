"""Saving a concept: both of its files whole or not at all, and what a save leaves behind that was killed."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..concept import Concept
from .attention_tensors import attention_tensors
from .checked_file import Header, TensorInfo, check_finite, write_tensors
from .compact_body import CompactSettings
from .concept_compact import compact_tensors
from .concept_file import (
    CONCEPT,
    FORMAT,
    START,
    SUFFIX,
    UNSAVED,
    VERSION,
    WEIGHTS,
    WEIGHTS_FORMAT,
    ConceptFileError,
    check_main,
    read_concept_info,
)
from .concept_info import COMPACT, EXACT, RECIPE, WORD, ConceptInfo, as_table, thinned
from .concept_tensors import check_exact, check_values, exact_tensors, predictor_infos, recipe_of, recipe_tensors
from .file_lock import lock
from .file_name import check_inside, checked_name, free_path
from .stock_embedding import stock_state
from .stock_metadata import stock_metadata
from .unfinished import note, noted, tidy

LOCK = ".e4t.lock"
# The header of an embedding file that ComfyUI still reads the metadata of (1 MiB), with room for the tensors' names.
TEXTS_LIMIT = 900_000


@dataclass(frozen=True)
class Places:
    """The two folders of concept files.

    Attributes:
        words: of the concept files, ``embeddings/e4t``.
        weights: of the second files of exact concepts.
    """

    words: Path
    weights: Path


@dataclass(frozen=True)
class About:
    """What a person says of a concept that is saved.

    Attributes:
        title: empty: the file's name.
        author, license: may be empty.
        created: date and time, ISO 8601.
        pack_version: of the extension.
        thumbnail: a picture as a data URI, which everybody who gets the file sees.
    """

    title: str = ""
    author: str = ""
    license: str = ""
    created: str = ""
    pack_version: str = ""
    thumbnail: str = ""


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: the concept file.
        weights: the second file, if there is one.
        bytes: of both.
    """

    path: Path
    weights: Path | None
    bytes: int


def body_for(concept: Concept, body: str) -> str:
    """The body that a concept is kept in where this one was asked for: a word that is all of the concept needs no other.

    Raises:
        ValueError: it cannot be kept so.
    """
    if concept.to_learn and body not in (RECIPE, WORD):
        raise ValueError(
            f"{concept.trigger!r} is a recipe that was not learned again yet: save it as a recipe, or save the concept that"
            " Apply E4T Concept gives."
        )
    if body == RECIPE and concept.recipe is None:
        raise ValueError(
            f"{concept.trigger!r} has no recipe (a mix has none, nor has a concept from an exact file): save it as exact."
        )
    # What single layers read is always kept with the word.
    if body in (EXACT, COMPACT) and not concept.weights and concept.predictor is None:
        return WORD
    return body


def save_concept(
    places: Places,
    name: str,
    concept: Concept,
    body: str,
    about: About | None = None,
    overwrite: bool = False,
    on_part: Callable[[int, int], object] = lambda done, total: None,
    compact: CompactSettings | None = None,
) -> Saved:
    """Write a concept; both files whole or not at all.

    A file that is there stays, and the new one gets a number, unless ``overwrite``. Writers of one folder wait for each other.
    What a save left that was killed is removed first.

    Args:
        places: folders that exist.
        name: of the file, see ``file_name.checked_name``; with or without its ending.
        concept: to keep.
        body: one of ``concept_info.BODIES``.
        about: what the person says of it.
        overwrite: replace a file of that name, and its second file.
        on_part: called while a compact body is made, with how many of its parts are done, and of how many.
        compact: how small a compact body is made.

    Raises:
        FileNameError: no file can have this name.
        ConceptFileError: it could not be written, or holds what could not be read again, such as NaN.
        ValueError: the concept cannot be kept so.
    """
    name, about, body = checked_name(_without_ending(name)), about or About(), body_for(concept, body)
    tensors, described = _main_tensors(concept, body, compact, on_part)
    weights = exact_tensors(concept) if body == EXACT else {}
    info = _info(concept, body, about, name, described)
    _check_readable(places.words / f"{name}{SUFFIX}", info, tensors, weights)
    try:
        with lock(places.words / LOCK) as alone:
            if alone:
                note(places.words, _tidy(places, noted(places.words)))
            path = places.words / f"{name}{SUFFIX}"
            path = check_inside(path if overwrite else free_path(path))
            # A name of its own for every save: whoever reads the old concept meanwhile finds both of its files.
            second = places.weights / f"{path.stem}.{secrets.token_hex(4)}{SUFFIX}" if weights else None
            named = dataclasses.replace(
                info, title=about.title or path.stem, weights_file=second.name if second else ""
            )
            metadata = _metadata(concept, named, about)
            new, old = [second.name] if second else [], _second_files(path)
            if alone:
                note(places.words, [path.name, *new, *old])
            useless = new
            try:
                if second is not None:
                    texts = {
                        "e4t.format": WEIGHTS_FORMAT,
                        "e4t.version": VERSION,
                        "e4t.fingerprint": concept.fingerprint,
                        "modelspec.title": metadata["modelspec.title"],
                    }
                    write_tensors(second, weights, texts, WEIGHTS)
                write_tensors(path, tensors, metadata, CONCEPT)
                useless = old
                saved = Saved(path, second, sum(file.stat().st_size for file in (path, second) if file))
            finally:
                stay = _tidy(places, useless)
                if alone:
                    note(places.words, stay)
            return saved
    except OSError as error:
        raise CONCEPT.fault(
            places.words / f"{name}{SUFFIX}",
            f"could not be written ({error})",
            "check that its folder may be written to",
        ) from error


def _without_ending(name: str) -> str:
    while name.lower().endswith(SUFFIX):
        name = name[: -len(SUFFIX)]
    return name


def _tidy(places: Places, names: Sequence[str]) -> list[str]:
    return tidy(places.words, places.weights, names, WEIGHTS_FORMAT)


def _second_files(path: Path) -> list[str]:
    """The second file of a concept that is replaced, if there is one."""
    try:
        return [name for name in [read_concept_info(path).weights_file] if name]
    except ConceptFileError:
        return []


def _check_readable(
    path: Path, info: ConceptInfo, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    """Check what is to be written as :func:`load_concept` checks it."""
    header, second = (
        Header({}, {name: TensorInfo(part.dtype, tuple(part.shape)) for name, part in parts.items()}, 0)
        for parts in (tensors, weights)
    )
    check_main(path, header, info, UNSAVED)
    check_finite(path, UNSAVED, tensors)
    if info.body == RECIPE:
        recipe_of(path, UNSAVED, tensors, info)
    if info.body == EXACT:
        check_exact(path, UNSAVED, second, info)
        check_values(path, UNSAVED, weights)


def _main_tensors(
    concept: Concept, body: str, compact: CompactSettings | None, on_part: Callable[[int, int], object]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The concept file's own tensors, and the description of a compact body."""
    tensors = stock_state(concept.embedding)
    if concept.start is not None:
        tensors[START] = concept.start.detach().to("cpu", torch.float32).contiguous().clone()
    if body == RECIPE and concept.recipe is not None:
        tensors |= recipe_tensors(concept.recipe)
    else:
        tensors |= attention_tensors(concept.attention)
    if body != COMPACT:
        return tensors, {}
    body_tensors, described = compact_tensors(concept, compact, on_part)
    return tensors | body_tensors, described


def _info(concept: Concept, body: str, about: About, name: str, compact: dict[str, Any]) -> ConceptInfo:
    plan = concept.recipe.plan if body == RECIPE and concept.recipe is not None else None
    return ConceptInfo(
        trigger=concept.trigger,
        title=about.title or name,
        method=concept.method,
        body=body,
        fingerprint=concept.fingerprint,
        base_fingerprint=concept.base_fingerprint,
        settings=as_table(concept.settings),
        sampling=as_table(concept.sampling),
        seed=str(concept.seed),
        word=concept.word,
        prediction=concept.prediction,
        base_name=concept.base_name[:300],
        domain_name=concept.domain_name,
        domain_fingerprint=concept.domain_fingerprint,
        losses=thinned(concept.losses),
        notes=concept.notes,
        created=about.created,
        pack_version=about.pack_version,
        author=about.author,
        license=about.license,
        predictors=predictor_infos(concept.predictor) if body in (EXACT, COMPACT) else (),
        plan="" if plan is None else plan.name,
        micro_batch=0 if plan is None else plan.micro_batch,
        compact=compact,
    )


def _metadata(concept: Concept, info: ConceptInfo, about: About) -> dict[str, str]:
    metadata = stock_metadata(
        "textual-inversion",
        info.title,
        info.trigger,
        concept.embedding,
        prediction=info.prediction,
        date=info.created,
        author=info.author,
        license=info.license,
        thumbnail=about.thumbnail,
    )
    metadata |= {
        "e4t.format": FORMAT,
        "e4t.version": VERSION,
        "e4t.info": json.dumps(dataclasses.asdict(info), sort_keys=True),
    }
    # As the header holds them: quotes and line breaks take two characters there.
    if len(json.dumps(metadata, ensure_ascii=False).encode("utf-8")) > TEXTS_LIMIT:
        raise ValueError("The concept's texts and preview are too long for a file's header: shorten them.")
    return metadata
