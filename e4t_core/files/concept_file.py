"""The concept file ``models/embeddings/e4t/<name>.safetensors``: a concept on disk.

It always holds the fixed word where the stock prompt ``embedding:e4t/<name>`` finds it, its description as JSON, and what other
programs read of it (:mod:`~.stock_metadata`). The rest is one of the bodies of :mod:`~.concept_info`. The exact one lies in
a second file in another folder, because the stock loader reads the whole embedding file at every prompt.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ..concept import Concept, WordPredictor
from ..methods.e4t.domain import Domain
from ..weight_changes import WeightChange
from .attention_tensors import attention_keys, attention_of, check_attention
from .checked_file import (
    Header,
    check_dtypes,
    check_finite,
    check_keys,
    check_shapes,
    read_header,
    read_tensors,
)
from .concept_compact import CompactParts, check_compact, compact_parts, with_domain
from .concept_info import COMPACT, EXACT, RECIPE, ConceptInfo, info_from_json
from .concept_tensors import (
    RECIPE as RECIPE_PREFIX,
)
from .concept_tensors import (
    check_exact,
    exact_parts,
    recipe_of,
)
from .description import read_json
from .file_errors import FileError, FileKind, shown
from .stock_embedding import KEYS
from .whole_file import file_state

logger = logging.getLogger(__name__)

FORMAT, WEIGHTS_FORMAT = "e4t-concept", "e4t-concept-weights"
VERSION = "1"
SUFFIX = ".safetensors"
START = "start"
TOKENS = 64
"""Tokens that a word is at most."""
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


def read_concept_info(path: str | os.PathLike[str]) -> ConceptInfo:
    """The description of a concept alone, without reading its tensors.

    Raises:
        ConceptFileError: as :func:`load_concept`, as far as it can be seen without them.
    """
    path = Path(path)
    return _steady(path, lambda: _described(path, read_header(path, CONCEPT)))


DomainOf = Callable[[Concept], Domain | None]


def load_concept(
    path: str | os.PathLike[str], weights: Sequence[Path], domain_of: DomainOf = lambda concept: None
) -> tuple[Concept, ConceptInfo]:
    """Read and check a concept file, and its second one if it has one.

    Args:
        path: of the concept file.
        weights: folders of second files; it may lie beside the concept file as well.
        domain_of: the domain of a compact concept, which it needs to refine its word; what it raises passes through. None:
            it is not at hand, and the word stays fixed.

    Returns:
        The concept, in memory, and its description. Of a recipe or a word alone, ``weights`` and ``predictor`` are empty.

    Raises:
        ConceptFileError: it is missing, no concept file, truncated, of another version, or its description, keys,
            shapes or values are off; one sentence says which.
    """
    path = Path(path)
    concept, info, parts = _steady(path, lambda: _loaded(path, weights))
    domain = domain_of(concept) if parts is not None and parts.encoders else None
    if parts is None or domain is None:
        return concept, info
    try:
        return with_domain(concept, info, parts, domain), info
    except ValueError as error:
        raise CONCEPT.fault(path, f"does not fit its domain ({str(error).rstrip('.')})") from error


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


def _loaded(path: Path, weights: Sequence[Path]) -> tuple[Concept, ConceptInfo, CompactParts | None]:
    header = read_header(path, CONCEPT)
    info = _described(path, header)
    key = check_main(path, header, info, CONCEPT)
    tensors = read_tensors(path, header.tensors, CONCEPT)
    check_finite(path, CONCEPT, tensors)
    changes, predictor = _read_weights(path, weights, info) if info.weights_file else ((), None)
    parts = None
    if info.body == COMPACT:
        layers = attention_keys(tensors)
        parts = compact_parts(path, CONCEPT, {name: part for name, part in tensors.items() if name not in layers}, info)
        changes = parts.weights
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
        attention=attention_of(path, CONCEPT, tensors),
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
    return concept, info, parts


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


def check_main(path: Path, header: Header, info: ConceptInfo, kind: FileKind) -> str:
    """Check the concept file's own tensors, before a number is read; the key of its word.

    Raises:
        FileError: of the kind; something is missing, unknown, or of another shape or type.
    """
    found = header.tensors
    key = next((key for key in KEYS.values() if key in found), "")
    if not key:
        raise kind.fault(path, f"lacks its word: it has none of {', '.join(KEYS.values())}")
    width = next(width for width, name in KEYS.items() if name == key)
    shape = found[key].shape
    if len(shape) != 2 or shape[1] != width or not 1 <= shape[0] <= TOKENS:
        raise kind.fault(path, f"holds a word of the shape {shown(shape, 40)}; 1 to {TOKENS} rows of {width} are read")
    layers = attention_keys(found) if info.body != RECIPE else set()
    words = {key, *({START} & set(found))}
    check_attention(path, kind, {name: found[name] for name in layers}, shape)
    if info.body == COMPACT:
        check_compact(path, kind, {name: part for name, part in found.items() if name not in words | layers}, info)
    else:
        recipe = {name for name in found if info.body == RECIPE and name.startswith(RECIPE_PREFIX)}
        check_keys(path, kind, found, words | recipe | layers)
        check_dtypes(path, kind, {name: found[name] for name in recipe}, (torch.float16, torch.float32))
    if START in found:
        check_shapes(path, kind, found, {START: (width,)})
    check_dtypes(path, kind, {name: found[name] for name in words}, (torch.float32,))
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
