"""The frozen image backbone: what a CLIP vision transformer says of a photo (the paper's section 3.1).

The paper's encoder reads [CLS] vectors after several of its blocks; converted domains read tokens of the last one.

It is built by open_clip, which is imported only when a tower is built: inside ComfyUI a stock CLIP_VISION model can
take its place, and then open_clip need not be installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...files.checked_file import read_header, read_tensors
from ...files.file_errors import FileError, FileKind, shortened, shown
from .domain_info import PATCH_TOKENS, BackboneInfo

TRANSFORMERS_ROWS = "vision_model.embeddings.position_embedding.weight"
TRANSFORMERS_OUTER = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    TRANSFORMERS_ROWS: "positional_embedding",
    # The missing "e" is transformers' own.
    "vision_model.pre_layrnorm.weight": "ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "ln_pre.bias",
    "vision_model.post_layernorm.weight": "ln_post.weight",
    "vision_model.post_layernorm.bias": "ln_post.bias",
}
TRANSFORMERS_INNER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "out_proj": "attn.out_proj",
}
SOURCES = {("ViT-H-14", "laion2b_s32b_b79k"): "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
"""(architecture, pretrained) -> repository, for where open_clip is not installed."""


class BackboneError(FileError):
    """An image backbone that cannot be built or loaded; the message says why and what to do."""


BACKBONE = FileKind("Image backbone file", "download or convert it again", BackboneError)


def build_vision_tower(info: BackboneInfo) -> nn.Module:
    """The open_clip vision transformer of ``info.architecture``, freshly initialized, for training or loading.

    The architecture is an open_clip name ("ViT-H-14") or a JSON object with "embed_dim", "vision_cfg" (the fields
    of open_clip's ``CLIPVisionCfg``) and optionally "quick_gelu". Called on normalized images ``(B, 3, H, W)`` it
    gives embeddings ``(B, embed_dim)``. Its first weights come from torch's global stream (open_clip draws there).

    Raises:
        BackboneError: open_clip is not installed, the architecture is unknown or malformed, or is no plain vision
            transformer with the blocks and width that ``info`` names.
    """
    try:
        import open_clip
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
    except ImportError as error:
        raise BackboneError(
            "This domain's image backbone needs the package open_clip_torch, which is not installed: run"
            " 'pip install open_clip_torch' in ComfyUI's Python, or use a domain that reads a stock CLIP_VISION model."
        ) from error
    config = _config(info.architecture, open_clip.get_model_config)
    described = config.get("vision_cfg") if isinstance(config, dict) else None
    if isinstance(described, dict) and described.get("timm_model_name"):
        # Before it is built: timm would fetch weights if the description says so.
        raise BackboneError(_not_plain(info))
    try:
        vision = dict(config["vision_cfg"])
        tower = _build_vision_tower(int(config["embed_dim"]), CLIPVisionCfg(**vision), config.get("quick_gelu", False))
    except Exception as error:
        # Each of open_clip's layers refuses what it cannot use in its own way.
        raise BackboneError(
            f"The image backbone {shown(info.architecture)} could not be built ({shortened(repr(error), 80)}): its"
            " description must hold 'embed_dim' and 'vision_cfg' as open_clip knows them."
        ) from error
    blocks = _blocks(tower, info)
    if info.layers[-1] > len(blocks):
        raise BackboneError(
            f"Block {info.layers[-1]} of the image backbone {shown(info.architecture)} is to be read, but it has only"
            f" {len(blocks)}: correct the layers."
        )
    if tower.conv1.out_channels != info.width:
        raise BackboneError(
            f"The image backbone {shown(info.architecture)} has width {tower.conv1.out_channels}, but width {info.width} is"
            " expected: correct the width."
        )
    return tower


def _config(architecture: str, known: Any) -> dict[str, Any]:
    if architecture.lstrip().startswith("{"):
        return json.loads(architecture)
    # With a scheme ("hf-hub:", "local-dir:") open_clip would go where a domain file sends it.
    config = None if ":" in architecture else known(architecture)
    if config is None:
        raise BackboneError(
            f"The image backbone {shown(architecture)} is unknown to the installed open_clip: update open_clip_torch."
        )
    return config


def _blocks(tower: nn.Module, info: BackboneInfo) -> nn.ModuleList:
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not isinstance(blocks, nn.ModuleList) or not isinstance(getattr(tower, "conv1", None), nn.Conv2d):
        raise BackboneError(_not_plain(info))
    return blocks


def _not_plain(info: BackboneInfo) -> str:
    return (
        f"The image backbone {shown(info.architecture)} is no plain vision transformer, so it has no [CLS] vector per block:"
        " choose a ViT of open_clip."
    )


def read_backbone_weights(path: str | os.PathLike[str], info: BackboneInfo | None = None) -> dict[str, Tensor]:
    """A vision tower's weights, by open_clip's names, from a local safetensors file.

    The file may hold the tower alone, a whole open_clip model, or a model in transformers' layout, which is what
    ComfyUI's ``models/clip_vision`` usually holds.

    Args:
        path: of the file.
        info: what it should be; names where a missing file can be had.

    Raises:
        BackboneError: the file is missing, no safetensors file, or cut.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise BackboneError(missing_backbone(path, info))
    return tower_weights(read_tensors(path, read_header(path, BACKBONE).tensors, BACKBONE))


def tower_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision tower's weights by open_clip's names, among those of a file as :func:`read_backbone_weights` takes it."""
    if TRANSFORMERS_ROWS in tensors:
        return from_transformers(tensors)
    visual = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
    return visual or dict(tensors)


def missing_backbone(path: Path, info: BackboneInfo | None = None) -> str:
    """The sentence that a backbone's file is not there, and where it can be had."""
    source = backbone_source(info) if info is not None else ""
    return (
        f"Image backbone file {path.name} was not found in {path.parent}: put it there"
        f"{f'; it can be had from {source}' if source else ''}."
    )


def backbone_source(info: BackboneInfo) -> str:
    """Where a backbone's weights can be had ("laion/… on Hugging Face"); empty if that is not known."""
    known = SOURCES.get((info.architecture, info.pretrained))
    if known is None:
        try:
            from open_clip.pretrained import get_pretrained_cfg
        except ImportError:
            return ""
        found = get_pretrained_cfg(info.architecture, info.pretrained)
        known = (found.get("hf_hub") or "").strip("/")
        if not known:
            return str(found.get("url") or "")
    return f"{known} on Hugging Face"


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision tower's weights by open_clip's names, from those of transformers' CLIP model; text weights are left out.

    open_clip keeps q, k and v as one matrix (rows in that order), and the last projection transposed.
    """
    layer = "vision_model.encoder.layers."
    state = {new: tensors[old] for old, new in TRANSFORMERS_OUTER.items() if old in tensors}
    if "visual_projection.weight" in tensors:
        state["proj"] = tensors["visual_projection.weight"].T.contiguous()
    for name, value in tensors.items():
        if not name.startswith(layer):
            continue
        number, *_, part, end = name.removeprefix(layer).split(".")
        block = f"transformer.resblocks.{number}."
        if part == "q_proj":
            rows = [tensors[name.replace(".q_proj.", f".{which}_proj.")] for which in "qkv"]
            state[f"{block}attn.in_proj_{end}"] = torch.cat(rows)
        elif part not in ("k_proj", "v_proj"):
            state[f"{block}{TRANSFORMERS_INNER[part]}.{end}"] = value
    return state


class ClipBackbone:
    """A frozen vision tower, read after the blocks that ``info`` lists.

    Args:
        info: which network, and how it is read.
        state: the tower's weights, e.g. ``Domain.backbone_state`` or :func:`read_backbone_weights`.
        device: where it runs.
        dtype: in what it computes; half precision where the device is fast at it.

    Raises:
        BackboneError: it cannot be built, or the weights do not fit.
    """

    def __init__(
        self,
        info: BackboneInfo,
        state: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.info = info
        # Shapes only: a large tower is not held twice, and no first weights are drawn from the global stream.
        with torch.device("meta"):
            # Frozen at once: ComfyUI's nodes run in inference mode, where no tensor may start to require gradients.
            tower = build_vision_tower(info).requires_grad_(False)
        if info.reading == PATCH_TOKENS:
            # Their files hold no projection: tokens are read before it.
            tower.proj = None  # type: ignore[assignment]
        try:
            tower.load_state_dict({key: value.to(device, dtype) for key, value in state.items()}, assign=True)
        except RuntimeError as error:
            raise BackboneError(
                f"The weights given for the image backbone {shown(info.architecture)} do not fit it"
                f" ({' '.join(str(error).split())[:300]}): use the file this domain names."
            ) from error
        self.tower = tower.eval()

    def cls_features(self, images: Tensor) -> Tensor:
        """The vectors ``(B, L, C)`` that the domain reads (:func:`read_vectors`), of images ``(B, 3, H, W)`` in [0, 1].

        Images are resized to the backbone's square (squashed, if they are not square) and normalized here.
        """
        return cls_features(self.tower, self.info, images)


def normalize(images: Tensor, info: BackboneInfo) -> Tensor:
    """Images ``(B, 3, H, W)`` in [0, 1] as the backbone wants them: its size, its mean and standard deviation."""
    size = (info.image_size, info.image_size)
    if images.shape[-2:] != size and info.reading == PATCH_TOKENS:
        # As that variant was trained: corners aligned, not smoothed, and overshoot kept.
        images = F.interpolate(images, size=size, mode="bicubic", align_corners=True)
    elif images.shape[-2:] != size:
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean = torch.tensor(info.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(info.std, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std


def read_vectors(info: BackboneInfo, block: Callable[[int], Tensor], norm: Callable[[Tensor], Tensor]) -> Tensor:
    """The vectors ``(B, L, C)`` that an encoder reads, from any implementation of the vision transformer.

    Args:
        info: "cls_layers": [CLS] after each listed block, before ``ln_post``. "patch_tokens": of the one listed block
            ``ln_post([CLS])`` and the patch tokens 1, 3, 5, … (the first patch is 0) as they are.
        block: number of a block, from 1 -> its output ``(B, 1 + patches, C)``, [CLS] first.
        norm: ``ln_post``.
    """
    if info.reading == PATCH_TOKENS:
        tokens = block(info.layers[0])
        return torch.cat([norm(tokens[:, :1]), tokens[:, 2::2]], dim=1).float()
    return torch.stack([block(number)[:, 0] for number in info.layers], dim=1).float()


@torch.no_grad()
def cls_features(tower: nn.Module, info: BackboneInfo, images: Tensor) -> Tensor:
    """As :meth:`ClipBackbone.cls_features`, of a tower made by :func:`build_vision_tower`; it must be in eval mode."""
    blocks = _blocks(tower, info)
    parameter = next(tower.parameters())
    outputs: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[number] = output

        return hook

    handles = [blocks[number - 1].register_forward_hook(keep(number)) for number in info.layers]
    try:
        tower(normalize(images.to(parameter.device, torch.float32), info).to(parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    batch_first = getattr(tower.transformer, "batch_first", True)

    def block(number: int) -> Tensor:
        return outputs[number] if batch_first else outputs[number].transpose(0, 1)

    norm = tower.ln_post
    assert isinstance(norm, nn.Module)
    return read_vectors(info, block, norm)
