"""A learned concept as files for programs without this pack: a LoRA and an embedding, or both in one file.

A *bundle* is a LoRA file that also holds the word, under ``bundle_emb.<name>.string_to_param.*``. A LoRA loader reads its
weights, a prompt that names it its word (ComfyUI, comfy/sd1_clip.py; Stable Diffusion WebUI, extra_networks of type Lora). Each
looks in a folder of its own, so the one file has a name in both.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..concept import Concept
from .checked_file import write_tensors
from .file_errors import FileKind
from .stock_embedding import FAMILIES, save_embedding, stock_state
from .stock_lora import StockLora
from .whole_file import replacing

KIND = FileKind("LoRA file", advice="choose another name or folder")
ARCHITECTURES = {768: "stable-diffusion-v1/lora", 1024: "stable-diffusion-v2/lora"}
VERSIONS = {768: "sd_v1", 1024: "sd_v2"}
ENDING = ".safetensors"
# Numbered names are tried up to this one.
MOST = 99_999


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        lora, embedding: the files; of a bundle, two names of one file, or its copy.
        prompt: what stands for the concept in a stock prompt.
        copied: whether the file system could not give the bundle a second name.
    """

    lora: Path
    embedding: Path
    prompt: str
    copied: bool = False


@dataclass(frozen=True)
class Folders:
    """Where a stock program looks; both exist.

    Attributes:
        loras: for LoRAs.
        embeddings: for embeddings.
        prompt: what a prompt writes before the name of a file there ("embedding:e4t/").
    """

    loras: Path
    embeddings: Path
    prompt: str

    def free_name(self, name: str) -> str:
        """The name, or the first numbered one, that no file in either folder has."""
        number, free = 1, name
        while number < MOST and any(
            os.path.lexists(path / f"{free}{ENDING}") for path in (self.loras, self.embeddings)
        ):
            number += 1
            free = f"{name}_{number:05}"
        return free


def export_pair(
    folders: Folders, name: str, concept: Concept, lora: StockLora, measured: Mapping[str, str], overwrite: bool = False
) -> Exported:
    """Write a LoRA and an embedding of one name; files that are there stay, and the new ones get a number, unless ``overwrite``.

    Args:
        folders: where to.
        name: of both, without ending.
        concept: whose word and description are written.
        lora: its weight changes.
        measured: what else the LoRA's metadata says of what was measured, by key.
        overwrite: replace files of that name.

    Raises:
        FileError: one could not be written; then the other may be there already.
        ValueError: the word is of no Stable Diffusion 1.x or 2.x text encoder.
    """
    stock_state(concept.embedding)
    name = name if overwrite else folders.free_name(name)
    prompt, path = f"{folders.prompt}{name}", folders.loras / f"{name}{ENDING}"
    write_tensors(path, lora.tensors, lora_metadata(name, prompt, concept, lora, measured), KIND)
    return Exported(path, save_embedding(folders.embeddings, name, concept, overwrite=True), prompt)


def export_bundle(
    folders: Folders, name: str, concept: Concept, lora: StockLora, measured: Mapping[str, str], overwrite: bool = False
) -> Exported:
    """Write a bundle; arguments, errors and names as for :func:`export_pair`.

    The file lies with the LoRAs. Among the embeddings it gets a second name (a hard link, which takes no room) or, where the
    file system has none or the folders are on two disks, a copy.
    """
    (embedding,) = stock_state(concept.embedding).values()
    name = name if overwrite else folders.free_name(name)
    prompt, path = f"{folders.prompt}{name}", folders.loras / f"{name}{ENDING}"
    tensors = {**lora.tensors, f"bundle_emb.{name}.string_to_param.*": embedding}
    write_tensors(path, tensors, lora_metadata(name, prompt, concept, lora, measured), KIND)
    second = folders.embeddings / path.name
    return Exported(path, second, prompt, copied=_second_name(path, second))


def lora_metadata(
    name: str, prompt: str, concept: Concept, lora: StockLora, measured: Mapping[str, str]
) -> dict[str, str]:
    """What a LoRA file says of itself, in the words of ComfyUI, LoRA managers and kohya's trainers."""
    width = concept.embedding.shape[-1]
    kohya = {"ss_network_module": "networks.lora", "ss_network_dim": str(lora.rank), "ss_network_alpha": str(lora.rank)}
    if not lora.rank:
        # Kohya's own module has no full matrices.
        kohya = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES[width],
        "modelspec.title": name,
        "modelspec.trigger_phrase": prompt,
        "modelspec.base_model": FAMILIES[width],
        "ss_base_model_version": VERSIONS[width],
        "ss_output_name": name,
        **kohya,
        "trained_words": json.dumps([prompt]),
        "e4t.trigger": concept.trigger,
        "e4t.method": concept.method,
        "e4t.fingerprint": concept.fingerprint,
        "e4t.base_fingerprint": concept.base_fingerprint,
        "e4t.domain": concept.domain_name,
        "e4t.seed": str(concept.seed),
        "e4t.rank": str(lora.rank),
        "e4t.weights_error": f"{lora.error:.6f}",
        **measured,
    }


def _second_name(path: Path, second: Path) -> bool:
    """Give a file a second name, or a copy; whether it is a copy.

    Raises:
        FileError: neither could be made.
    """
    copied = False
    try:
        with replacing(second) as temporary:
            try:
                temporary.unlink()
                os.link(path, temporary)
            except OSError:
                copied = True
                shutil.copyfile(path, temporary)
    except OSError as error:
        raise KIND.fault(
            second,
            f"could not be made of the one in {path.parent} ({error})",
            "check that its folder may be written to, and that the disk has room",
        ) from error
    return copied
