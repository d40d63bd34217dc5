"""The domain file ``models/e4t_domains/<name>.safetensors``: a domain on disk, safetensors with JSON metadata.

Tensors: ``encoder.*``, ``offsets.*`` (four-layer form) and, if ``weights_inside``, ``backbone.*``. Metadata:
``e4t.format``, ``e4t.version``, ``e4t.info`` (:class:`~..methods.e4t.domain_info.DomainInfo` as JSON) and ``modelspec.*``
for model libraries. Encoder and offsets may be stored in half precision; they are always loaded as float32.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..methods.e4t.concept_encoder import OffsetEncoder
from ..methods.e4t.domain import Domain, new_encoder
from ..methods.e4t.domain_info import BackboneInfo, DomainInfo
from ..methods.e4t.offset_forms import make_offsets
from ..methods.e4t.settings import TuningSettings
from ..methods.e4t.weight_offsets import Offsets
from .checked_file import (
    FLOATS,
    Header,
    check_dtypes,
    check_finite,
    check_keys,
    check_shapes,
    is_finite,
    read_header,
    read_tensors,
    write_tensors,
)
from .description import from_json, read_json
from .file_errors import FileError, FileKind, shown

FORMAT = "e4t-domain"
VERSION = "1"
STORED = (torch.float16, torch.bfloat16, torch.float32)
ENCODER, OFFSETS, BACKBONE = "encoder.", "offsets.", "backbone."


class DomainFileError(FileError):
    """A domain file that cannot be used or written; the message is one sentence that names file, fault and what to do."""


DOMAIN = FileKind(
    "Domain file",
    "download or make it again",
    DomainFileError,
    "put it there, convert a published checkpoint, pre-train one, or try the mini world",
)


def save_domain(path: str | os.PathLike[str], domain: Domain, dtype: torch.dtype = torch.float32) -> None:
    """Write a domain file atomically: a fault on the way leaves no file, or the old one.

    Args:
        path: of the file; its folder must exist.
        domain: what to write.
        dtype: how encoder and offsets are stored (float32, or float16 to halve the file); the backbone as it is.

    Raises:
        DomainFileError: it could not be written (folder missing, disk full), or the domain holds NaN or infinity.
    """
    info = domain.info
    tensors = {f"{ENCODER}{key}": value.to(dtype) for key, value in domain.encoder.state_dict().items()}
    tensors |= {f"{OFFSETS}{key}": value.to(dtype) for key, value in domain.offsets.state_dict().items()}
    if info.backbone.weights_inside:
        if not domain.backbone_state:
            raise DOMAIN.fault(
                path,
                f"was not written: domain {info.name!r} says that its backbone's weights are inside, but holds none",
                "give them, or set weights_inside to false",
            )
        tensors |= {f"{BACKBONE}{key}": value for key, value in domain.backbone_state.items()}
    spoiled = next((key for key, value in tensors.items() if not is_finite(value)), None)
    if spoiled is not None:
        raise DOMAIN.fault(
            path,
            f"was not written: {spoiled} of domain {info.name!r} holds NaN or infinity",
            "train again from an earlier state, or store it as float32",
        )
    metadata = {
        "e4t.format": FORMAT,
        "e4t.version": VERSION,
        "e4t.info": json.dumps(dataclasses.asdict(info), sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": f"E4T domain {info.name}",
        "modelspec.architecture": f"{info.base_family}/e4t-domain",
        "modelspec.license": info.license,
    }
    write_tensors(path, tensors, metadata, DOMAIN)


def load_domain(path: str | os.PathLike[str]) -> Domain:
    """Read and check a domain file.

    Returns:
        The domain on the CPU: float32, in eval mode, frozen. It lies in memory, and the file may change or go.

    Raises:
        DomainFileError: it is missing, no safetensors file, truncated, of another version, or its description, keys,
            shapes or values are off; one sentence says which.
    """
    path = Path(path)
    header = read_header(path, DOMAIN)
    info = _info(path, header)
    encoder, offsets = _checked_networks(path, header, info)
    tensors = read_tensors(path, header.tensors, DOMAIN)
    check_finite(path, DOMAIN, tensors)
    _fill(encoder, tensors, ENCODER)
    _fill(offsets, tensors, OFFSETS)
    backbone = {key.removeprefix(BACKBONE): value for key, value in tensors.items() if key.startswith(BACKBONE)}
    return Domain(encoder, offsets, info, backbone or None)


def read_domain_info(path: str | os.PathLike[str]) -> DomainInfo:
    """The description of a domain alone, without reading its tensors.

    Raises:
        DomainFileError: as :func:`load_domain`, as far as it can be seen without them.
    """
    return _info(Path(path), read_header(path, DOMAIN))


def _info(path: Path, header: Header) -> DomainInfo:
    found = header.metadata.get("e4t.format")
    if found != FORMAT:
        raise DOMAIN.fault(
            path,
            f"is not an E4T domain (its metadata has no e4t.format = {FORMAT!r})",
            "choose a domain file, or convert a published checkpoint",
        )
    version = header.metadata.get("e4t.version")
    if version != VERSION:
        raise DOMAIN.fault(
            path,
            f"has format version {shown(version, 20)}, but this version of the extension reads {VERSION!r}",
            "update the extension, or make the file again",
        )
    try:
        data = read_json(header.metadata.get("e4t.info", ""))
        if isinstance(data.get("projections"), dict):
            data["projections"] = {
                name: tuple(shape) if isinstance(shape, list) else shape for name, shape in data["projections"].items()
            }
        data["backbone"] = from_json(BackboneInfo, data.get("backbone"))
        data["preset"] = from_json(TuningSettings, data.get("preset"))
        info: DomainInfo = from_json(DomainInfo, data)
    except ValueError as error:
        raise DOMAIN.fault(path, f"has a damaged description ({str(error).rstrip('.')})") from error
    return info


def _checked_networks(path: Path, header: Header, info: DomainInfo) -> tuple[OffsetEncoder, Offsets]:
    """The domain's networks on the "meta" device, once it is known that the file has every tensor of them."""
    layers = info.backbone.vectors + len(info.projections)
    if layers > len(header.tensors):
        raise DOMAIN.fault(path, f"describes {layers} layers, but holds only {len(header.tensors)} tensors")
    encoder = new_encoder(info, device="meta")
    offsets = make_offsets(info.offset_form, info.projections, info.v_size, device="meta")
    expected = {f"{ENCODER}{key}": tuple(value.shape) for key, value in encoder.state_dict().items()}
    expected |= {f"{OFFSETS}{key}": tuple(value.shape) for key, value in offsets.state_dict().items()}
    backbone = {key: tensor for key, tensor in header.tensors.items() if key.startswith(BACKBONE)}
    own = {key: tensor for key, tensor in header.tensors.items() if key not in backbone}
    check_keys(path, DOMAIN, own, expected)
    check_shapes(path, DOMAIN, own, expected)
    # Wider floats would overflow where they are loaded as float32.
    check_dtypes(path, DOMAIN, own, STORED)
    # A backbone may count something in whole numbers.
    check_dtypes(path, DOMAIN, backbone, (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool))
    if info.backbone.weights_inside != bool(backbone):
        fault = "lacks the" if info.backbone.weights_inside else "holds unannounced"
        raise DOMAIN.fault(path, f"{fault} weights of its image backbone")
    return encoder, offsets


def _fill(network: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    state = {key.removeprefix(prefix): value.float() for key, value in tensors.items() if key.startswith(prefix)}
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
