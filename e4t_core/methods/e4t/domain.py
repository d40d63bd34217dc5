"""A domain: a pre-trained concept encoder with its weight offsets, and its one file on disk.

The domain checkpoint ``models/e4t_domains/<name>.safetensors`` is safetensors with JSON metadata.

Tensors: ``encoder.*``, ``offsets.*`` (four-layer form) and, if ``weights_inside``, ``backbone.*``. Metadata:
``e4t.format``, ``e4t.version``, ``e4t.info`` (:class:`~.domain_info.DomainInfo` as JSON) and ``modelspec.*`` for model
libraries. Encoder and offsets may be stored in half precision; they are always loaded as float32.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...fingerprint import fingerprint
from ...presets import TuningSettings
from .concept_encoder import ConceptEncoder, OffsetEncoder
from .domain_info import CLS_LAYERS, PATCH_TOKENS, BackboneInfo, DomainInfo, DomainMismatchError, check_base
from .offset_forms import make_offsets
from .patch_token_encoder import PatchTokenEncoder
from .weight_offsets import NETWORK, Offsets

__all__ = [
    "BackboneInfo",
    "Domain",
    "DomainFileError",
    "DomainInfo",
    "DomainMismatchError",
    "check_base",
    "load_domain",
    "new_encoder",
    "read_domain_info",
    "save_domain",
]

FORMAT = "e4t-domain"
VERSION = "1"


class DomainFileError(ValueError):
    """A domain file that cannot be used; the message is one sentence that names file, fault and what to do."""


@dataclass(frozen=True, eq=False)
class Domain:
    """A loaded or freshly trained domain. Tuning copies what it trains, so a domain is never changed by use.

    Attributes:
        encoder: predicts the word offset.
        offsets: of the attention projections, in the form that ``info.offset_form`` says.
        info: see :class:`DomainInfo`.
        backbone_state: the image backbone's weights, if ``info.backbone.weights_inside``.
    """

    encoder: OffsetEncoder
    offsets: Offsets
    info: DomainInfo
    backbone_state: dict[str, Tensor] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of weights and info; computed at the first use and kept."""
        tensors: dict[str, Tensor] = {f"encoder.{key}": value for key, value in self.encoder.state_dict().items()}
        tensors |= {f"offsets.{key}": value for key, value in self.offsets.state_dict().items()}
        tensors |= {f"backbone.{key}": value for key, value in (self.backbone_state or {}).items()}
        described = _described(self.info)
        # They say what to expect, and change nothing that is learned.
        for name in ("trained_with_masks", "fit_threshold"):
            described.pop(name, None)
        return fingerprint(tensors, json.dumps(_numbers_as_float(described), sort_keys=True))


def new_encoder(info: DomainInfo, device: torch.device | str | None = None) -> OffsetEncoder:
    """The encoder network of a domain's variant and widths; on the "meta" device shapes only."""
    kind = {CLS_LAYERS: ConceptEncoder, PATCH_TOKENS: PatchTokenEncoder}[info.backbone.reading]
    return kind(info.backbone.vectors, info.backbone.width, info.feature_width, info.context_width, device=device)


def save_domain(path: str | os.PathLike[str], domain: Domain, dtype: torch.dtype = torch.float32) -> None:
    """Write a domain file atomically: a fault on the way leaves no file, or the old one.

    Args:
        path: of the file; its folder must exist.
        domain: what to write.
        dtype: how encoder and offsets are stored (float32, or float16 to halve the file); the backbone as it is.

    Raises:
        DomainFileError: it could not be written (folder missing, disk full), or the domain holds NaN or infinity.
    """
    path = Path(path)
    tensors = {f"encoder.{key}": value.to(dtype) for key, value in domain.encoder.state_dict().items()}
    tensors |= {f"offsets.{key}": value.to(dtype) for key, value in domain.offsets.state_dict().items()}
    if domain.info.backbone.weights_inside:
        if not domain.backbone_state:
            raise DomainFileError(
                f"Domain {domain.info.name!r} says that its backbone's weights are inside, but holds none: give them,"
                " or set weights_inside to false."
            )
        tensors |= {f"backbone.{key}": value for key, value in domain.backbone_state.items()}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise DomainFileError(
                f"Domain {domain.info.name!r} was not written to {path}: {key} holds NaN or infinity, so train again"
                " from an earlier state, or store it as float32."
            )
    metadata = {
        "e4t.format": FORMAT,
        "e4t.version": VERSION,
        "e4t.info": json.dumps(_described(domain.info), sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": f"E4T domain {domain.info.name}",
        "modelspec.architecture": f"{domain.info.base_family}/e4t-domain",
        "modelspec.license": domain.info.licence,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise DomainFileError(
            f"Domain file {path} could not be written ({error}): check that the folder exists, may be written to, and"
            " that the disk has room."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_domain(path: str | os.PathLike[str]) -> Domain:
    """Read and check a domain file.

    Returns:
        The domain on the CPU: float32, in eval mode, frozen.

    Raises:
        DomainFileError: it is missing, no safetensors file, truncated, of another version, or its keys, shapes or
            values are off; one sentence says which.
    """
    path = Path(path)
    info, tensors = _read(path)
    encoder = new_encoder(info, device="meta")
    offsets = make_offsets(info.offset_form, info.projections, info.v_size, device="meta")
    expected = {f"encoder.{key}": value.shape for key, value in encoder.state_dict().items()}
    expected |= {f"offsets.{key}": value.shape for key, value in offsets.state_dict().items()}
    backbone = {key: value for key, value in tensors.items() if key.startswith("backbone.")}
    _check_tensors(path, {key: value for key, value in tensors.items() if key not in backbone}, expected)
    if info.backbone.weights_inside != bool(backbone):
        raise DomainFileError(
            f"Domain file {path} {'lacks the' if info.backbone.weights_inside else 'holds unannounced'} weights of its"
            " image backbone: it is damaged, so download or make it again."
        )
    _check_finite(path, tensors)
    for module, prefix in ((encoder, "encoder."), (offsets, "offsets.")):
        state = {key.removeprefix(prefix): value.float() for key, value in tensors.items() if key.startswith(prefix)}
        module.load_state_dict(state, assign=True)
        module.eval().requires_grad_(False)
    state = {key.removeprefix("backbone."): value for key, value in backbone.items()}
    return Domain(encoder, offsets, info, state or None)


def read_domain_info(path: str | os.PathLike[str]) -> DomainInfo:
    """The description of a domain alone, without reading its tensors.

    Raises:
        DomainFileError: as :func:`load_domain`, as far as it can be seen without them.
    """
    return _read(Path(path), only_info=True)[0]


def _described(info: DomainInfo) -> dict[str, Any]:
    """A domain's description as it is stored and hashed; files of the paper's variants do not name them."""
    described = dataclasses.asdict(info)
    if info.backbone.reading == CLS_LAYERS:
        del described["backbone"]["reading"], described["backbone"]["tokens"]
    if info.offset_form == NETWORK:
        del described["offset_form"]
    if info.fit_threshold is None:
        del described["fit_threshold"]
    return described


def _numbers_as_float(value: Any) -> Any:
    """A scale of 1 and of 1.0 are one domain: JSON keeps them apart, their hash must not."""
    if isinstance(value, Mapping):
        return {key: _numbers_as_float(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers_as_float(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _read(path: Path, only_info: bool = False) -> tuple[DomainInfo, dict[str, Tensor]]:
    if not path.is_file():
        raise DomainFileError(
            f"Domain file {path.name} was not found in {path.parent}: put it there, convert a published checkpoint,"
            " pre-train one, or try the mini world."
        )
    try:
        with safe_open(path, framework="pt") as file:
            info = _parse_metadata(path, file.metadata() or {})
            tensors = {} if only_info else {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        text = str(error)
        if "Incomplete" in text or "not fully covered" in text or "too small" in text.lower():
            raise DomainFileError(
                f"Domain file {path} is truncated ({path.stat().st_size} bytes are there, its header says more):"
                " download or copy it again."
            ) from error
        raise DomainFileError(
            f"Domain file {path} is not a safetensors file ({text}): choose an E4T domain checkpoint."
        ) from error
    except OSError as error:
        raise DomainFileError(f"Domain file {path} could not be read ({error}): check its permissions.") from error
    return info, tensors


def _parse_metadata(path: Path, metadata: Mapping[str, str]) -> DomainInfo:
    if metadata.get("e4t.format") != FORMAT:
        raise DomainFileError(
            f"File {path} is not an E4T domain (its metadata has no e4t.format = {FORMAT!r}): choose a domain"
            " checkpoint, or convert a published one."
        )
    if metadata.get("e4t.version") != VERSION:
        raise DomainFileError(
            f"Domain file {path} has format version {metadata.get('e4t.version')!r}, but this version of the"
            f" extension reads {VERSION!r}: update the extension, or make the file again."
        )
    try:
        data = json.loads(metadata.get("e4t.info", ""))
        data["projections"] = {str(key): (int(m), int(n)) for key, (m, n) in data["projections"].items()}
        if not isinstance(data.get("training", {}), dict):
            raise TypeError("training must be an object")
        data["backbone"] = _from_json(BackboneInfo, data["backbone"])
        data["preset"] = _from_json(TuningSettings, data["preset"])
        info: DomainInfo = _from_json(DomainInfo, data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DomainFileError(
            f"The description inside domain file {path} is damaged ({type(error).__name__}: {error}): download or make"
            " the file again."
        ) from error
    return info


def _from_json(kind: type, data: dict[str, Any]) -> Any:
    """A frozen settings object from JSON: no unknown names, plain values of the declared types, lists as tuples."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(data.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        hint = hints[name]
        origin = typing.get_origin(hint) or hint
        if origin is tuple:
            element = typing.get_args(hint)[0]
            value = tuple(_plain(kind, name, element, part) for part in value)
        elif origin in (str, int, float, bool):
            value = _plain(kind, name, origin, value)
        values[name] = value
    return kind(**values)


def _plain(kind: type, name: str, wanted: type, value: Any) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise TypeError(f"{kind.__name__}.{name} = {value!r} is no {wanted.__name__}")
    return value


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise DomainFileError(
            f"Domain file {path} lacks {len(missing)} tensors, the first is {missing[0]}: download or make it again."
        )
    if extra:
        raise DomainFileError(
            f"Domain file {path} holds {len(extra)} unknown tensors, the first is {extra[0]}: download or make it again."
        )
    for key, shape in expected.items():
        if tensors[key].shape != shape:
            raise DomainFileError(
                f"Tensor {key} in domain file {path} has shape {tuple(tensors[key].shape)} in place of"
                f" {tuple(shape)}: download or make it again."
            )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        inside = key.startswith("backbone.")
        if not value.is_floating_point() and not inside:
            raise DomainFileError(
                f"Tensor {key} in domain file {path} holds {value.dtype}, not float numbers: make the file again."
            )
        if not torch.isfinite(value).all():
            raise DomainFileError(
                f"Tensor {key} in domain file {path} holds NaN or infinity: download or make the file again."
            )
