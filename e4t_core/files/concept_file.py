"""The concept file ``models/embeddings/e4t/<name>.safetensors``: a concept on disk.

It always holds the fixed word where the stock prompt ``embedding:e4t/<name>`` finds it, its description as JSON, and what other
programs read of it (:mod:`~.stock_metadata`). The rest is one of the bodies of :mod:`~.concept_info`. The exact one lies in
a second file in another folder, because the stock loader reads the whole embedding file at every prompt.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..concept import Concept, WordPredictor
from ..weight_changes import WeightChange
from .checked_file import (
    Header,
    TensorInfo,
    check_dtypes,
    check_finite,
    check_keys,
    check_shapes,
    read_header,
    read_tensors,
    write_tensors,
)
from .concept_info import EXACT, RECIPE, WORD, ConceptInfo, as_table, info_from_json, thinned
from .concept_tensors import (
    RECIPE as RECIPE_PREFIX,
)
from .concept_tensors import (
    check_exact,
    check_values,
    exact_parts,
    exact_tensors,
    predictor_infos,
    recipe_of,
    recipe_tensors,
)
from .description import read_json
from .file_errors import FileError, FileKind, shown
from .file_lock import lock
from .file_name import FileNameError, check_inside, checked_name, free_path
from .stock_embedding import KEYS, stock_state
from .stock_metadata import stock_metadata
from .unfinished import note, noted, tidy
from .whole_file import file_state

logger = logging.getLogger(__name__)

FORMAT, WEIGHTS_FORMAT = "e4t-concept", "e4t-concept-weights"
VERSION = "1"
SUFFIX = ".safetensors"
START = "start"
LOCK = ".e4t.lock"
TOKENS = 64
"""Tokens that a word is at most."""
# The header of an embedding file that ComfyUI still reads the metadata of (1 MiB), with room for the tensors' names.
TEXTS_LIMIT = 900_000
READINGS = 100
"""How often a file is read that is replaced while it is read."""

Read = TypeVar("Read")


class ConceptFileError(FileError):
    """A concept file that cannot be used or written; the message is one sentence that names file, fault and what to do."""


CONCEPT = FileKind("Concept file", "save it again", ConceptFileError, "put it there, or save the concept again")
UNSAVED = FileKind("Concept file", "it was not written, so learn the concept again", ConceptFileError)
WEIGHTS = FileKind(
    "Concept weights file",
    "copy it again, or save the concept again",
    ConceptFileError,
    "copy it there from where the concept was saved: an exact concept is two files",
)


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
    if body == EXACT and not concept.weights and concept.predictor is None:
        return WORD
    return body


def save_concept(
    places: Places, name: str, concept: Concept, body: str, about: About | None = None, overwrite: bool = False
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

    Raises:
        FileNameError: no file can have this name.
        ConceptFileError: it could not be written, or holds what could not be read again, such as NaN.
        ValueError: the concept cannot be kept so.
    """
    name, about, body = checked_name(_without_ending(name)), about or About(), body_for(concept, body)
    tensors = _main_tensors(concept, body)
    weights = exact_tensors(concept) if body == EXACT else {}
    info = _info(concept, body, about, name, "")
    _check_readable(places.words / f"{name}{SUFFIX}", info, tensors, weights)
    try:
        with lock(places.words / LOCK) as alone:
            if alone:
                note(places.words, _tidy(places, noted(places.words)))
            path = places.words / f"{name}{SUFFIX}"
            path = check_inside(path if overwrite else free_path(path))
            # A name of its own for every save: whoever reads the old concept meanwhile finds both of its files.
            second = places.weights / f"{path.stem}.{secrets.token_hex(4)}{SUFFIX}" if weights else None
            metadata = _metadata(concept, _info(concept, body, about, path.stem, second.name if second else ""), about)
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
    _check_main(path, header, info, UNSAVED)
    check_finite(path, UNSAVED, tensors)
    if info.body == RECIPE:
        recipe_of(path, UNSAVED, tensors, info)
    if info.body == EXACT:
        check_exact(path, UNSAVED, second, info)
        check_values(path, UNSAVED, weights)


def _main_tensors(concept: Concept, body: str) -> dict[str, Tensor]:
    tensors = stock_state(concept.embedding)
    if concept.start is not None:
        tensors[START] = concept.start.detach().to("cpu", torch.float32).contiguous().clone()
    if body == RECIPE and concept.recipe is not None:
        tensors |= recipe_tensors(concept.recipe)
    return tensors


def _info(concept: Concept, body: str, about: About, name: str, weights_file: str) -> ConceptInfo:
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
        weights_file=weights_file,
        predictors=predictor_infos(concept.predictor) if body == EXACT else (),
        plan="" if plan is None else plan.name,
        micro_batch=0 if plan is None else plan.micro_batch,
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


def read_concept_info(path: str | os.PathLike[str]) -> ConceptInfo:
    """The description of a concept alone, without reading its tensors.

    Raises:
        ConceptFileError: as :func:`load_concept`, as far as it can be seen without them.
    """
    path = Path(path)
    return _steady(path, lambda: _described(path, read_header(path, CONCEPT)))


def load_concept(path: str | os.PathLike[str], weights: Sequence[Path]) -> tuple[Concept, ConceptInfo]:
    """Read and check a concept file, and its second one if it has one.

    Args:
        path: of the concept file.
        weights: folders of second files; it may lie beside the concept file as well.

    Returns:
        The concept, in memory, and its description. Of a recipe or a word alone, ``weights`` and ``predictor`` are empty.

    Raises:
        ConceptFileError: it is missing, no concept file, truncated, of another version, or its description, keys,
            shapes or values are off; one sentence says which.
    """
    path = Path(path)
    return _steady(path, lambda: _loaded(path, weights))


def _steady(path: Path, read: Callable[[], Read]) -> Read:
    """What ``read`` reads of a file, all of it of one state: if the file is replaced meanwhile, it is read again."""
    for _ in range(READINGS):
        before = file_state(path)
        try:
            found = read()
        except ConceptFileError:
            if file_state(path) == before:
                raise
        else:
            if file_state(path) == before:
                return found
    raise CONCEPT.fault(path, "is replaced all the time while it is read", "try again later")


def _loaded(path: Path, weights: Sequence[Path]) -> tuple[Concept, ConceptInfo]:
    header = read_header(path, CONCEPT)
    info = _described(path, header)
    key = _check_main(path, header, info, CONCEPT)
    tensors = read_tensors(path, header.tensors, CONCEPT)
    check_finite(path, CONCEPT, tensors)
    changes, predictor = _read_weights(path, weights, info) if info.weights_file else ((), None)
    recipe = recipe_of(path, CONCEPT, tensors, info) if info.body == RECIPE else None
    concept = Concept(
        trigger=info.trigger,
        method=info.method,
        fingerprint=info.fingerprint,
        base_fingerprint=info.base_fingerprint,
        embedding=tensors[key],
        weights=changes,
        settings=info.loop_settings(),
        seed=int(info.seed),
        predictor=predictor,
        word=info.word,
        start=tensors.get(START),
        prediction=info.prediction,
        base_name=info.base_name,
        domain_name=info.domain_name,
        domain_fingerprint=info.domain_fingerprint,
        sampling=info.sampling_settings(),
        recipe=recipe,
        to_learn=info.body == RECIPE,
        losses=info.losses,
        notes=info.notes,
    )
    return concept, info


def _described(path: Path, header: Header) -> ConceptInfo:
    if header.metadata.get("e4t.format") != FORMAT:
        raise CONCEPT.fault(path, *_what_else(header))
    version = header.metadata.get("e4t.version")
    if version != VERSION:
        raise CONCEPT.fault(
            path,
            f"has format version {shown(version, 20)}, but this version of the extension reads {VERSION!r}",
            "update the extension, or save the concept again",
        )
    try:
        info = info_from_json(read_json(header.metadata.get("e4t.info", "")))
    except ValueError as error:
        raise CONCEPT.fault(path, f"has a damaged description ({str(error).rstrip('.')})") from error
    if (info.body == EXACT) != bool(info.weights_file):
        raise CONCEPT.fault(path, "does not say where its weights are, or says it without having any")
    return info


def _what_else(header: Header) -> tuple[str, str]:
    """What a file is that is no concept, and which node takes it."""
    names = list(header.tensors)
    known = header.metadata.get("e4t.format", "")
    if known == "e4t-domain":
        return "is an E4T domain", "put it into models/e4t_domains and use Load E4T Domain"
    if known == WEIGHTS_FORMAT:
        return "holds the weights of an exact concept", "choose the concept file it belongs to, in embeddings/e4t"
    if any("lora" in name or "lycoris" in name or name.endswith((".diff", ".diff_b")) for name in names):
        return "is a LoRA, not an E4T concept", "put it into models/loras and use Load LoRA"
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "is a checkpoint, not an E4T concept", "put it into models/checkpoints and use Load Checkpoint"
    if 0 < len(names) <= 2 and all(len(part.shape) <= 2 for part in header.tensors.values()):
        return (
            "is a plain embedding, not an E4T concept",
            "write embedding: and its name into a prompt of a stock text node",
        )
    return (
        f"is not an E4T concept (its metadata has no e4t.format = {FORMAT!r})",
        "choose a file that Save E4T Concept wrote",
    )


def _check_main(path: Path, header: Header, info: ConceptInfo, kind: FileKind) -> str:
    """Check the concept file's own tensors; the key of its word."""
    found = header.tensors
    key = next((key for key in KEYS.values() if key in found), "")
    if not key:
        raise kind.fault(path, f"lacks its word: it has none of {', '.join(KEYS.values())}")
    width = next(width for width, name in KEYS.items() if name == key)
    shape = found[key].shape
    if len(shape) != 2 or shape[1] != width or not 1 <= shape[0] <= TOKENS:
        raise kind.fault(path, f"holds a word of the shape {shown(shape, 40)}; 1 to {TOKENS} rows of {width} are read")
    recipe = {name for name in found if info.body == RECIPE and name.startswith(RECIPE_PREFIX)}
    expected = {key, *({START} & set(found)), *recipe}
    check_keys(path, kind, found, expected)
    if START in found:
        check_shapes(path, kind, found, {START: (width,)})
    check_dtypes(path, kind, {name: found[name] for name in recipe}, (torch.float16, torch.float32))
    check_dtypes(path, kind, {name: found[name] for name in expected - recipe}, (torch.float32,))
    if any(one.context_width != width for one in info.predictors):
        raise kind.fault(path, "predicts words of another width than its own")
    if info.predictors and shape[0] != 1:
        raise kind.fault(path, f"predicts one word, but holds {shape[0]} rows of it")
    return key


def weights_path(path: Path, info: ConceptInfo, folders: Sequence[Path]) -> Path:
    """Where the second file of an exact concept is, or belongs."""
    places = [path.with_name(info.weights_file), *(folder / info.weights_file for folder in folders)]
    # Unlike Path.is_file, it takes a name that is too long for the system as one that is not there.
    return next((place for place in places if os.path.isfile(place)), places[-1])


def _read_weights(
    path: Path, folders: Sequence[Path], info: ConceptInfo
) -> tuple[tuple[WeightChange, ...], WordPredictor | None]:
    second = weights_path(path, info, folders)
    header = read_header(second, WEIGHTS)
    if header.metadata.get("e4t.format") != WEIGHTS_FORMAT or header.metadata.get("e4t.version") != VERSION:
        raise WEIGHTS.fault(second, "is no file of a concept's weights, or of another version")
    if header.metadata.get("e4t.fingerprint") != info.fingerprint:
        raise WEIGHTS.fault(second, f"belongs to another concept than {shown(path.name, 60)}")
    networks = check_exact(second, WEIGHTS, header, info)
    return exact_parts(second, WEIGHTS, read_tensors(second, header.tensors, WEIGHTS), info, networks)


__all__ = [
    "About",
    "ConceptFileError",
    "FileNameError",
    "Places",
    "Saved",
    "body_for",
    "load_concept",
    "read_concept_info",
    "save_concept",
    "weights_path",
]
