"""The files that a check is given: what is known of each, and which of them can be used."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from commands.batch.photos import as_sent
from e4t_core.files.checked_file import read_header
from e4t_core.files.domain_file import load_domain
from e4t_core.files.file_errors import FileKind
from e4t_core.methods.e4t.clip_backbone import BACKBONE, ClipBackbone, backbone_source, read_backbone_weights
from e4t_core.methods.e4t.domain_info import DomainInfo, check_base

from .faults import CheckError
from .parts import Part

CHECKPOINT = FileKind(
    "Checkpoint", missing="put a Stable Diffusion 1.x or 2.x .safetensors checkpoint there, or correct the path"
)
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
DTYPES = {"torch.float16": "float16", "torch.bfloat16": "bfloat16"}
INSTALL = "python -m pip install diffusers transformers accelerate"


@dataclass(frozen=True)
class Given:
    """The files.

    Attributes:
        checkpoint, domain, photo: always named.
        clip_vision: weights of the image backbone, for domains that do not bring their own.
    """

    checkpoint: Path
    domain: Path
    photo: Path
    clip_vision: Path | None = None


@dataclass
class Usable:
    """What of the files can be used; false or none where there is a fault that the report names.

    Attributes:
        checkpoint: ComfyUI may load it.
        dtype: of its UNet.
        diffusers: the other side can load it.
        domain: description of the domain.
        fits: the domain was made for this base.
        photo: as a PNG that servers read.
        size: of the photo in pixels.
        backbone: there is one for the domain.
    """

    checkpoint: bool = False
    dtype: str = "float32"
    diffusers: bool = False
    domain: DomainInfo | None = None
    fits: bool = True
    photo: bytes = b""
    size: tuple[int, int] = (0, 0)
    backbone: bool = False

    @property
    def learns(self) -> bool:
        """Whether a photo can be learned with them."""
        return self.checkpoint and self.domain is not None and self.fits and bool(self.photo) and self.backbone


def look_at(given: Given, part: Part) -> Usable:
    """Opens every file; its facts and faults go to the part."""
    usable = Usable()
    for name, path, look in (
        ("checkpoint", given.checkpoint, _checkpoint),
        ("domain", given.domain, _domain),
        ("photo", given.photo, _photo),
        ("image backbone", given.clip_vision, _backbone),
    ):
        with part.noting():
            facts = look(given, usable)
            # Of the photo nothing but its size, not even its name.
            if path is not None and name != "photo":
                facts = {"file": path.name, "bytes": f"{path.stat().st_size:,}", "SHA-256": sha256(path)} | facts
            part.table((name, ""), list(facts.items()))
    if usable.diffusers and usable.domain is not None:
        with part.noting():
            usable.fits = False
            _check_fits(given.checkpoint, usable.domain)
            usable.fits = True
    return usable


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _checkpoint(given: Given, usable: Usable) -> dict[str, str]:
    header = read_header(given.checkpoint, CHECKPOINT)
    first = header.tensors.get(FIRST)
    usable.dtype = DTYPES.get(str(first.dtype), "float32") if first is not None else "float32"
    facts = {"tensors": str(len(header.tensors)), "type of its UNet": usable.dtype}
    try:
        from commands.base.single_file import SingleFile
    except ImportError as error:
        # ComfyUI says by itself whether it can use the file.
        usable.checkpoint = True
        raise CheckError(
            f"The checkpoint could not be looked into, nor compared with diffusers', because a package is missing ({error}):"
            f" {INSTALL}."
        ) from error
    file = SingleFile(given.checkpoint)
    facts |= {"base family": file.family, "predicts": file.prediction()}
    usable.checkpoint = usable.diffusers = True
    return facts


def _check_fits(checkpoint: Path, info: DomainInfo) -> None:
    from commands.base.diffusers_base import load_base

    base = load_base(checkpoint, device="meta")
    unet = base.unet
    check_base(info, base.text.width, unet.prediction, unet.feature_width, unet.attention_projections())


def _domain(given: Given, usable: Usable) -> dict[str, str]:
    domain = load_domain(given.domain)
    info = usable.domain = domain.info
    backbone, preset = info.backbone, info.preset
    return {
        "name": info.name,
        "domain word": info.word,
        "base family": info.base_family,
        "predicts": info.prediction,
        "trained on": info.base_name or "not said",
        "steps of training": f"{info.step:,}",
        "attention matrices": str(len(info.projections)),
        "feature width": str(info.feature_width),
        "form of its offsets": info.offset_form,
        "scale": f"{info.scale:g}",
        "picture": f"{info.image_size} pixels",
        "preset": f"{preset.steps} steps of {preset.batch}, rate {preset.learning_rate:g},"
        f" regularization {preset.regularization:g}, memory {preset.memory}",
        "image backbone": f"{_architecture(backbone.architecture)} {backbone.pretrained}".strip()
        + f", {backbone.reading}, {'inside' if backbone.weights_inside else 'in a file of its own'}",
    }


def _architecture(written: str) -> str:
    if not written.lstrip().startswith("{"):
        return written
    vision = json.loads(written).get("vision_cfg", {})
    return f"a vision transformer of {vision.get('layers')} blocks, width {vision.get('width')}"


def _photo(given: Given, usable: Usable) -> dict[str, str]:
    usable.photo = as_sent(given.photo)
    with Image.open(io.BytesIO(usable.photo)) as picture:
        usable.size = picture.size
        return {
            "pixels": f"{picture.width} × {picture.height}",
            "transparency": "yes, which is taken for a mask" if picture.mode == "RGBA" else "no",
        }


def _backbone(given: Given, usable: Usable) -> dict[str, str]:
    info = usable.domain.backbone if usable.domain is not None else None
    if info is not None and info.weights_inside:
        usable.backbone = True
        return {"": "in the domain file"}
    if given.clip_vision is None:
        if info is None:
            return {"": "not given"}
        source = backbone_source(info)
        raise CheckError(
            f"The domain reads the image backbone {info.architecture} {info.pretrained}, which is not in its file: name it"
            f" with --clip-vision{f' (it can be had from {source})' if source else ''}."
        )
    if info is None:
        return {"tensors": str(len(read_header(given.clip_vision, BACKBONE).tensors))}
    weights = read_backbone_weights(given.clip_vision, info)
    ClipBackbone(info, weights)
    usable.backbone = True
    return {"tensors of its tower": str(len(weights))}
