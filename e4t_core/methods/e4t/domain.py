"""A domain: a pre-trained concept encoder with its weight offsets. ``files/domain_file.py`` keeps it on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...fingerprint import fingerprint
from .concept_encoder import ConceptEncoder, OffsetEncoder
from .domain_info import CLS_LAYERS, PATCH_TOKENS, DomainInfo
from .patch_token_encoder import PatchTokenEncoder
from .weight_offsets import Offsets

ENCODERS: dict[str, type[ConceptEncoder | PatchTokenEncoder]] = {
    CLS_LAYERS: ConceptEncoder,
    PATCH_TOKENS: PatchTokenEncoder,
}
"""What is read from the image backbone -> the encoder that reads on."""


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
        described = dataclasses.asdict(self.info)
        # It says which photos to expect, and changes nothing that is learned.
        del described["fit_threshold"]
        # A concept says itself how it was tuned, and one that is older than these must find its domain, converted anew or not.
        for name in {*self.info.preset.idle(), "more_steps", "regularization_limit"}:
            del described["preset"][name]
        return fingerprint(tensors, json.dumps(_numbers_as_float(described), sort_keys=True))


def new_encoder(info: DomainInfo, device: torch.device | str | None = None) -> OffsetEncoder:
    """The encoder network of a domain's variant and widths; on the "meta" device shapes only."""
    kind = ENCODERS[info.backbone.reading]
    return kind(info.backbone.vectors, info.backbone.width, info.feature_width, info.context_width, device=device)


def _numbers_as_float(value: Any) -> Any:
    """A scale of 1 and of 1.0 are one domain: JSON keeps them apart, their hash must not."""
    if isinstance(value, Mapping):
        return {key: _numbers_as_float(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers_as_float(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
