"""The domain file that a run leaves: what the nodes load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from commands.pretrain.config.sections import Config
from e4t_core.files.domain_file import save_domain
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainInfo
from e4t_core.methods.e4t.settings import for_new_domain
from e4t_core.methods.e4t.weight_offsets import Offsets

from .encoder_and_offsets import EncoderAndOffsets
from .extractor import Extractor


def write_domain(config: Config, extractor: Extractor, networks: EncoderAndOffsets, step: int) -> Path:
    """Write ``<output.folder>/<domain.name>.safetensors``, encoder and offsets as float16.

    Raises:
        DomainFileError: it could not be written, or holds NaN or infinity.
    """
    path = Path(config.output.folder) / f"{config.domain.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_domain(path, make_domain(config, extractor, networks, step), torch.float16)
    return path


def make_domain(config: Config, extractor: Extractor, networks: EncoderAndOffsets, step: int) -> Domain:
    """The domain of these networks, fit for the base that it is for."""
    base, backbone = extractor.base, extractor.backbone
    encoder: ConceptEncoder = networks.encoder
    offsets = networks.offsets
    finish: Any = getattr(base, "finish", None)
    if finish is not None:
        encoder, offsets = finish(encoder, offsets)
    info = domain_info(
        config,
        encoder,
        offsets,
        base_name=base.name,
        base_family=base.family,
        prediction=base.unet.prediction,
        backbone=backbone.info,
        step=step,
    )
    inside = info.backbone.weights_inside
    state = {name: value.half().cpu() for name, value in backbone.tower.state_dict().items()} if inside else None
    return Domain(encoder, offsets, info, state)


def domain_info(
    config: Config,
    encoder: ConceptEncoder,
    offsets: Offsets,
    *,
    base_name: str,
    base_family: str,
    prediction: str,
    backbone: BackboneInfo,
    step: int,
) -> DomainInfo:
    """What a domain file says of a run after ``step`` steps; encoder and offsets are those it holds.

    A factory's backbone can be had nowhere else, so its weights are said to be inside.
    """
    domain, training = config.domain, config.training
    return DomainInfo(
        name=domain.name,
        word=domain.word,
        base_family=base_family,
        prediction=prediction,
        context_width=encoder.word_width,
        feature_width=encoder.feature_width,
        projections=offsets.shapes,
        backbone=replace(backbone, weights_inside=config.backbone.kind == "python"),
        scale=domain.scale,
        templates=domain.templates,
        preset=for_new_domain(domain.preset),
        image_size=domain.image_size,
        crop_margin=domain.crop_margin,
        v_size=offsets.v_size,
        offset_form=offsets.form,
        training={
            "data": [Path(s.path).name or s.factory for s in config.data.sources],
            "batch": training.batch,
            "learning_rate": training.learning_rate,
            "offset_rate": training.offset_rate,
            "regularization": training.regularization,
            "seed": training.seed,
            "use_mask": training.use_mask,
        },
        license=domain.licence,
        step=step,
        base_name=base_name,
        trained_with_masks=training.use_mask,
    )
