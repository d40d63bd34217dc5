"""A concept as named tensors, and back: the exact body, and the recipe.

Exact: ``weights.<name>`` with ``scales`` (one for each, in the order of names), ``factors.<name>.up`` ``(M, R)`` and ``.down`` ``(R,
...)`` with the weight's other axes for those kept thin, ``shared.<name>.p`` and ``.q``, and for each word predictor ``predictor.<i>.encoder.<key>``, ``.clip_features`` and ``.domain_word``. Recipe: ``recipe.latents``,
``.clip_features``, ``.masks``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..concept import Concept, WordPredictor
from ..memory_plan import PLANS
from ..methods.e4t.concept_encoder import OffsetEncoder
from ..methods.e4t.domain import ENCODERS
from ..methods.e4t.domain_info import CLS_LAYERS, PATCH_TOKENS
from ..methods.e4t.patch_token_encoder import PatchTokenEncoder
from ..methods.e4t.word_predictor import E4TPredictor
from ..mix import MixedPredictor
from ..photos import Photos, TuningError
from ..recipe import Recipe
from ..stored_difference import SMALLEST_SCALE, StoredDifference
from ..weight_changes import Full, LowRank, Scaled, WeightChange, own_differences, shared_factors
from .checked_file import Header, TensorInfo, check_dtypes, check_finite, check_keys, check_shapes
from .compact_body import AXES, RANK
from .concept_info import ConceptInfo, PredictorInfo
from .file_errors import FileKind, shown_name

WEIGHTS, SHARED, PREDICTOR, RECIPE, SCALES = "weights.", "shared.", "predictor.", "recipe.", "scales"
FACTORS = "factors."
CHANNELS = 4
"""Of a latent."""
_WEIGHT_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
# P and Q of the paper's offsets have 3 columns, those of offsets learned directly as many as the weight.
COLUMNS = 3
# The largest number of float16 times it is still one of float32.
_LARGEST_SCALE = 2.0**112


def parts_of(predictor: WordPredictor | None) -> list[tuple[E4TPredictor, float]]:
    """The E4T predictors of a concept with their shares, which sum to 1; none for a fixed word.

    Raises:
        ValueError: there is one of another kind.
    """
    if predictor is None:
        return []
    parts: Sequence[WordPredictor] = (predictor,)
    shares: Sequence[float] = (1.0,)
    if isinstance(predictor, MixedPredictor):
        parts, shares = predictor.parts, predictor.shares
    found = []
    for part, share in zip(parts, shares, strict=True):
        if not isinstance(part, E4TPredictor):
            raise ValueError(
                f"A {type(part).__name__} cannot be kept in a file: save the concept as it was learned, at word strength 1."
            )
        found.append((part, share))
    return found


def predictor_infos(predictor: WordPredictor | None) -> tuple[PredictorInfo, ...]:
    """Shapes of a concept's predictors.

    Raises:
        ValueError: see :func:`parts_of`.
    """
    return tuple(_info(part, share) for part, share in parts_of(predictor))


def _info(part: E4TPredictor, share: float) -> PredictorInfo:
    encoder = part.encoder
    reading = PATCH_TOKENS if isinstance(encoder, PatchTokenEncoder) else CLS_LAYERS
    widths = encoder.feature_width, encoder.word_width
    return PredictorInfo(reading, encoder.layers, encoder.clip_width, *widths, float(part.scale), share)


def exact_tensors(concept: Concept) -> dict[str, Tensor]:
    """All that a concept's fixed word lacks to be the concept; empty where there is nothing.

    Raises:
        ValueError: see :func:`parts_of`.
    """
    own = own_differences(concept.weights)
    stored = {name: kept for name, kept in own.items() if not isinstance(kept, LowRank)}
    tensors = {f"{WEIGHTS}{name}": stored[name].values for name in sorted(stored)}
    if stored:
        tensors[SCALES] = torch.tensor([stored[name].scale for name in sorted(stored)], dtype=torch.float32)
    for name, kept in own.items():
        if isinstance(kept, LowRank):
            down = kept.down.reshape(kept.rank, *kept.shape[1:])
            tensors |= {f"{FACTORS}{name}.up": kept.up.contiguous(), f"{FACTORS}{name}.down": down.contiguous()}
    for name, (p, q) in shared_factors(concept.weights).items():
        tensors |= {f"{SHARED}{name}.p": p, f"{SHARED}{name}.q": q}
    for number, (part, _) in enumerate(parts_of(concept.predictor)):
        prefix = f"{PREDICTOR}{number}."
        tensors |= {f"{prefix}encoder.{key}": value for key, value in part.encoder.state_dict().items()}
        tensors |= {
            f"{prefix}clip_features": part.clip_features,
            f"{prefix}domain_word": part.domain_word_embedding,
        }
    return tensors


def check_exact(path: Path, kind: FileKind, header: Header, info: ConceptInfo) -> list[OffsetEncoder]:
    """Check the exact body's header against the description, before a number is read.

    Returns:
        The predictors' networks on the "meta" device.

    Raises:
        FileError: of the kind; something is missing, unknown, or of another shape or type.
    """
    found = header.tensors
    predictors = {key: part for key, part in found.items() if key.startswith(PREDICTOR)}
    layers = sum(one.vectors for one in info.predictors)
    # A weight and a bias each.
    if 2 * layers > len(predictors):
        raise kind.fault(path, f"describes {layers} layers of its word, but holds {len(predictors)} tensors of it")
    networks: list[OffsetEncoder] = []
    expected: dict[str, tuple[int, ...]] = {}
    for number, one in enumerate(info.predictors):
        network = ENCODERS[one.reading](one.vectors, one.width, one.feature_width, one.context_width, device="meta")
        prefix = f"{PREDICTOR}{number}."
        expected |= {f"{prefix}encoder.{key}": tuple(value.shape) for key, value in network.state_dict().items()}
        expected |= {
            f"{prefix}clip_features": (1, one.vectors, one.width),
            f"{prefix}domain_word": (one.context_width,),
        }
        networks.append(network)
    check_keys(path, kind, predictors, expected)
    check_shapes(path, kind, predictors, expected)
    check_dtypes(path, kind, predictors, (torch.float32,))
    weights = {key: part for key, part in found.items() if key.startswith(WEIGHTS)}
    check_dtypes(path, kind, weights, (torch.float16, torch.float32))
    shared = {key: part for key, part in found.items() if key.startswith(SHARED)}
    check_dtypes(path, kind, shared, (torch.float32,))
    for key in weights:
        if not _WEIGHT_NAME.fullmatch(key.removeprefix(WEIGHTS)):
            raise kind.fault(path, f"holds {shown_name(key)}, which no weight is called")
    scales = {SCALES: (len(weights),)} if weights else {}
    check_shared(path, kind, shared)
    factors = {key: part for key, part in found.items() if key.startswith(FACTORS)}
    check_dtypes(path, kind, factors, (torch.float32,))
    _check_factors(path, kind, factors, {key.removeprefix(WEIGHTS) for key in weights})
    known = [*predictors, *weights, *factors, *shared, *scales]
    check_keys(path, kind, found, known)
    check_shapes(path, kind, found, scales)
    check_dtypes(path, kind, {key: found[key] for key in scales}, (torch.float32,))
    return networks


def check_shared(path: Path, kind: FileKind, shared: Mapping[str, TensorInfo]) -> None:
    """Check that the factors of a domain's offsets come in pairs that fit.

    Raises:
        FileError: of the kind; the first that do not.
    """
    names = {key.removeprefix(SHARED).removesuffix(".p").removesuffix(".q") for key in shared}
    check_keys(path, kind, shared, [f"{SHARED}{name}.{part}" for name in names for part in "pq"])
    for name in names:
        p, q = (shared[f"{SHARED}{name}.{part}"].shape for part in "pq")
        if (
            len(p) != 2
            or len(q) != 2
            or p[1] != q[1]
            or p[1] > max(COLUMNS, p[0], q[0])
            or not _WEIGHT_NAME.fullmatch(name)
        ):
            raise kind.fault(path, f"holds factors of the shapes {p} and {q} for {shown_name(name)}, which cannot be")


def _check_factors(path: Path, kind: FileKind, factors: Mapping[str, TensorInfo], others: Collection[str]) -> None:
    """Check that thin changes come in pairs that fit, each of a weight that nothing else of the file changes."""
    names = {key.removeprefix(FACTORS).removesuffix(".up").removesuffix(".down") for key in factors}
    check_keys(path, kind, factors, [f"{FACTORS}{name}.{part}" for name in names for part in ("up", "down")])
    for name in names:
        up, down = (factors[f"{FACTORS}{name}.{part}"].shape for part in ("up", "down"))
        fits = len(up) == 2 and 2 <= len(down) <= AXES and up[1] == down[0] and 0 not in (*up, *down)
        if not fits or up[1] > RANK or name in others or not _WEIGHT_NAME.fullmatch(name):
            raise kind.fault(
                path, f"holds factors of the shapes {up} and {down} for {shown_name(name)}, which cannot be"
            )


def check_values(path: Path, kind: FileKind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Check the numbers of an exact body; the scales of its weight differences by name.

    Raises:
        FileError: of the kind; they hold NaN or infinity, or scales that no difference has.
    """
    check_finite(path, kind, tensors)
    names = sorted(key.removeprefix(WEIGHTS) for key in tensors if key.startswith(WEIGHTS))
    scales = dict(zip(names, tensors[SCALES].tolist() if names else [], strict=True))
    for name, scale in scales.items():
        if not (SMALLEST_SCALE <= scale <= _LARGEST_SCALE and math.frexp(scale)[0] == 0.5):
            raise kind.fault(path, "holds scales of weight differences that are no powers of two, or too large")
        if scale != 1 and tensors[f"{WEIGHTS}{name}"].dtype == torch.float32:
            raise kind.fault(path, f"holds a scale for {shown_name(name)}, which is stored in float32 and has none")
    return scales


def exact_parts(
    path: Path, kind: FileKind, tensors: Mapping[str, Tensor], info: ConceptInfo, networks: Sequence[OffsetEncoder]
) -> tuple[tuple[WeightChange, ...], WordPredictor | None]:
    """Weight changes and predictor from tensors that :func:`check_exact` has let pass.

    Raises:
        FileError: of the kind; they hold NaN or infinity, or scales that no difference has.
    """
    scales = check_values(path, kind, tensors)
    changes: list[WeightChange] = []
    for key, p in tensors.items():
        if key.startswith(SHARED) and key.endswith(".p"):
            name = key.removeprefix(SHARED).removesuffix(".p")
            changes.append(Scaled(name, p, tensors[f"{SHARED}{name}.q"], info.domain_fingerprint))
    for key, up in tensors.items():
        if key.startswith(FACTORS) and key.endswith(".up"):
            name = key.removeprefix(FACTORS).removesuffix(".up")
            down = tensors[f"{FACTORS}{name}.down"]
            changes.append(LowRank(name, up, down.flatten(1), (len(up), *down.shape[1:])))
    for name, scale in scales.items():
        changes.append(Full(name, StoredDifference(tensors[f"{WEIGHTS}{name}"], scale)))
    predictors = []
    for number, (one, network) in enumerate(zip(info.predictors, networks, strict=True)):
        prefix = f"{PREDICTOR}{number}."
        place = f"{prefix}encoder."
        state = {key.removeprefix(place): value for key, value in tensors.items() if key.startswith(place)}
        network.load_state_dict(state, assign=True)
        network.eval().requires_grad_(False)
        word = tensors[f"{prefix}domain_word"]
        predictors.append(E4TPredictor(network, tensors[f"{prefix}clip_features"], word, one.scale))
    return tuple(changes), predictor_of(predictors, info)


def predictor_of(predictors: Sequence[E4TPredictor], info: ConceptInfo) -> WordPredictor | None:
    """What a concept's word is predicted by, from its parts."""
    if len(predictors) > 1:
        return MixedPredictor.of(predictors, [one.share for one in info.predictors])
    return predictors[0] if predictors else None


def recipe_tensors(recipe: Recipe) -> dict[str, Tensor]:
    """A recipe's photos as tensors; in half precision what is so without loss."""
    photos = recipe.photos
    parts = {"latents": photos.latents, "clip_features": photos.clip_features, "masks": photos.masks}
    return {f"{RECIPE}{name}": _halved(part) for name, part in parts.items() if part is not None}


def _halved(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def recipe_of(path: Path, kind: FileKind, tensors: Mapping[str, Tensor], info: ConceptInfo) -> Recipe:
    """The recipe of a file.

    Raises:
        FileError: of the kind; its tensors do not belong together or are not finite.
    """
    parts = {key.removeprefix(RECIPE): value.float() for key, value in tensors.items() if key.startswith(RECIPE)}
    check_keys(path, kind, parts, {"latents", *(parts.keys() & {"clip_features", "masks"})})
    try:
        photos = Photos(
            parts["latents"], parts.get("clip_features"), parts.get("masks"), masks_by_cell="masks" in parts
        )
    except TuningError as error:
        raise kind.fault(path, f"has a damaged recipe ({str(error).rstrip('.')})") from error
    if photos.latents.shape[1] != CHANNELS:
        raise kind.fault(path, f"has a recipe with latents of {photos.latents.shape[1]} channels, not {CHANNELS}")
    if photos.masks is not None and not 0 <= photos.masks.min() <= photos.masks.max() <= 1:
        raise kind.fault(path, "has a recipe with masks that are not between 0 and 1")
    if info.plan not in PLANS or info.micro_batch < 1:
        raise kind.fault(path, "has a recipe without the memory plan it was learned under")
    return Recipe(photos, PLANS[info.plan].within(info.micro_batch))
