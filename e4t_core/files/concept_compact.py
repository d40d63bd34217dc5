"""The compact body inside a concept file: small changes of the weights, and of what predicts the word.

Beside the tensors of ``compact_body``: ``shared.<name>.p`` and ``.q`` in float16, so that the concept is drawn where its domain is
not installed (with its fixed word), and ``predictor.<i>.clip_features`` in float16. The encoders are the domain's plus small
differences, which are called ``<i>.<name>`` there.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..concept import Concept, WordPredictor
from ..methods.e4t.domain import Domain
from ..methods.e4t.word_predictor import E4TPredictor
from ..mix import MixedPredictor
from ..weight_changes import Full, LowRank, Scaled, WeightChange, shared_factors
from .checked_file import TensorInfo, check_dtypes, check_keys, check_shapes
from .compact_body import CompactSettings, description_from_json, expected_tensors, pack, unpack
from .concept_info import ConceptInfo
from .concept_tensors import PREDICTOR, SHARED, check_shared, parts_of, predictor_of
from .file_errors import FileError, FileKind

OnPart = Callable[[int, int], object]


class _Differences(Mapping[str, Tensor | LowRank]):
    """A concept's own differences; whole ones are made when they are asked for."""

    def __init__(self, concept: Concept) -> None:
        self._changes = {change.name: change for change in concept.weights if isinstance(change, Full | LowRank)}

    def __getitem__(self, name: str) -> Tensor | LowRank:
        change = self._changes[name]
        return change if isinstance(change, LowRank) else change.difference()

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)


def compact_tensors(
    concept: Concept, settings: CompactSettings | None = None, on_part: OnPart = lambda done, total: None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The body's tensors and its description as JSON.

    Args:
        on_part: called after every difference with how many are done, and of how many; what it raises passes through.

    Raises:
        ValueError: the domain's own encoder is not at hand, a predictor cannot be kept, or something is not finite.
    """
    tensors: dict[str, Tensor] = {}
    encoders: dict[str, Tensor] = {}
    for number, (part, _) in enumerate(parts_of(concept.predictor)):
        if part.untuned is None:
            raise ValueError(
                f"{concept.trigger!r} cannot be kept compact, because its domain is not at hand: load the concept where the"
                f" domain {concept.domain_name!r} is installed, or save it as exact."
            )
        features = part.clip_features.detach().cpu().half()
        tensors[f"{PREDICTOR}{number}.clip_features"] = features
        # ComfyUI may have moved it to the card.
        tuned, untuned = (copy.deepcopy(network).cpu() for network in (part.encoder, part.untuned))
        found = tuned.difference_from(untuned, features.float())
        encoders |= {f"{number}.{name}": value for name, value in found.items()}
    for name, (p, q) in shared_factors(concept.weights).items():
        tensors |= {f"{SHARED}{name}.p": p.half(), f"{SHARED}{name}.q": q.half()}
    packed, described = pack(_Differences(concept), encoders, settings, on_part)
    return tensors | packed, described.to_json()


def check_compact(path: Path, kind: FileKind, found: Mapping[str, TensorInfo], info: ConceptInfo) -> None:
    """Check the tensors of a compact body against the description, before a number is read.

    Args:
        found: the file's tensors but for the word.

    Raises:
        FileError: of the kind; something is missing, unknown, or of another shape or type.
    """
    try:
        described = description_from_json(info.compact)
    except ValueError as error:
        raise _damaged(path, kind, error) from error
    wanted = expected_tensors(described)
    shapes = {name: shape for name, (shape, _) in wanted.items()}
    features = {
        f"{PREDICTOR}{number}.clip_features": (1, one.vectors, one.width) for number, one in enumerate(info.predictors)
    }
    shared = {name: part for name, part in found.items() if name.startswith(SHARED)}
    check_keys(path, kind, found, [*shapes, *features, *shared])
    check_shapes(path, kind, found, shapes | features)
    for name, (_, dtype) in wanted.items():
        check_dtypes(path, kind, {name: found[name]}, (dtype,))
    check_dtypes(path, kind, {name: found[name] for name in (*features, *shared)}, (torch.float16,))
    check_shared(path, kind, shared)
    numbers = {name.split(".", 1)[0] for name in described.encoder}
    if numbers != {str(number) for number in range(len(info.predictors))}:
        raise kind.fault(path, f"describes {len(info.predictors)} predictors of its word, but holds others")


@dataclasses.dataclass(frozen=True, eq=False)
class CompactParts:
    """What a compact body holds.

    Attributes:
        weights: its changes.
        encoders: for each predictor, the difference from the domain's encoder, by name.
        features: for each predictor, its CLIP features ``(1, L, C)``.
    """

    weights: tuple[WeightChange, ...]
    encoders: tuple[dict[str, Tensor], ...]
    features: tuple[Tensor, ...]


def compact_parts(path: Path, kind: FileKind, tensors: Mapping[str, Tensor], info: ConceptInfo) -> CompactParts:
    """The parts of a body that :func:`check_compact` has let pass.

    Raises:
        FileError: of the kind; its numbers are out of range.
    """
    try:
        body = unpack(tensors, description_from_json(info.compact))
    except ValueError as error:
        raise _damaged(path, kind, error) from error
    changes: list[WeightChange] = []
    for key, p in tensors.items():
        if key.startswith(SHARED) and key.endswith(".p"):
            name = key.removeprefix(SHARED).removesuffix(".p")
            changes.append(Scaled(name, p.float(), tensors[f"{SHARED}{name}.q"].float(), info.domain_fingerprint))
    encoders: list[dict[str, Tensor]] = [{} for _ in info.predictors]
    for name, value in body.encoder.items():
        number, rest = name.split(".", 1)
        encoders[int(number)][rest] = value
    features = tuple(tensors[f"{PREDICTOR}{number}.clip_features"].float() for number in range(len(info.predictors)))
    return CompactParts((*changes, *body.weights), tuple(encoders), features)


def lacks_domain(concept: Concept) -> bool:
    """Whether a compact file of it would need its domain, which is not at hand."""
    return any(part.untuned is None for part, _ in parts_of(concept.predictor))


def with_untuned(concept: Concept, domain: Domain) -> Concept:
    """A concept whose predictors know their domain's own encoder, from which a compact file keeps differences."""
    parts = [dataclasses.replace(part, untuned=domain.encoder) for part, _ in parts_of(concept.predictor)]
    predictor: WordPredictor | None = parts[0] if parts else None
    if isinstance(concept.predictor, MixedPredictor):
        predictor = dataclasses.replace(concept.predictor, parts=tuple(parts))
    return dataclasses.replace(concept, predictor=predictor)


def with_domain(concept: Concept, info: ConceptInfo, parts: CompactParts, domain: Domain) -> Concept:
    """A compact concept with what refines its word, now that its domain is at hand.

    Raises:
        ValueError: the domain's encoder is of other shapes.
    """
    if concept.start is None:
        raise ValueError("it does not say what word it started from")
    predictors = [
        E4TPredictor(domain.encoder.plus(difference), features, concept.start, one.scale, domain.encoder)
        for one, difference, features in zip(info.predictors, parts.encoders, parts.features, strict=True)
    ]
    return dataclasses.replace(concept, predictor=predictor_of(predictors, info))


def _damaged(path: Path, kind: FileKind, error: ValueError) -> FileError:
    return kind.fault(path, f"has a damaged compact body ({str(error).rstrip('.')})")
