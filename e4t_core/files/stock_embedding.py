"""A concept's word as the embedding file that stock prompts read (``embedding:e4t/<name>``)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ..concept import Concept
from .checked_file import write_tensors
from .file_errors import FileKind

KIND = FileKind("Embedding file", advice="choose another name or folder")
# ComfyUI's text encoders look for their embedding under these names (comfy/sd1_clip.py, comfy/text_encoders/sd2_clip.py).
KEYS = {768: "clip_l", 1024: "clip_h"}
FAMILIES = {768: "SD 1", 1024: "SD 2"}
# Numbered names are tried up to this one.
MOST = 99_999


def stock_state(embedding: Tensor) -> dict[str, Tensor]:
    """The tensors of an embedding file for words ``(V, D)``: half the file of float32 would lose nothing, but stays exact.

    Raises:
        ValueError: D is no Stable Diffusion 1.x or 2.x text encoder's.
    """
    width = embedding.shape[-1]
    if width not in KEYS:
        raise ValueError(f"A word of width {width} is none of Stable Diffusion 1.x (768) or 2.x (1024).")
    return {KEYS[width]: embedding.detach().to("cpu", torch.float32).reshape(-1, width).contiguous().clone()}


def save_embedding(folder: str | os.PathLike[str], name: str, concept: Concept, overwrite: bool = False) -> Path:
    """Write a concept's word; a file that is there stays, and the new one gets a number, unless ``overwrite``.

    Args:
        folder: that exists.
        name: of the file, without its ending.
        concept: whose word embedding it is.
        overwrite: replace a file of that name.

    Returns:
        The file's path.

    Raises:
        FileError: it could not be written.
        ValueError: the word is of another text encoder.
    """
    path = Path(folder) / f"{name}.safetensors"
    if not overwrite:
        path = _free(path)
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.trigger_phrase": concept.trigger,
        "modelspec.base_model": FAMILIES.get(concept.embedding.shape[-1], ""),
        "trained_words": concept.trigger,
        "e4t.method": concept.method,
        "e4t.fingerprint": concept.fingerprint,
        "e4t.base_fingerprint": concept.base_fingerprint,
        "e4t.domain": concept.domain_name,
        "e4t.seed": str(concept.seed),
    }
    write_tensors(path, stock_state(concept.embedding), metadata, KIND)
    return path


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists() and number < MOST:
        number += 1
        free = path.with_name(f"{path.stem}_{number:05}{path.suffix}")
    return free
