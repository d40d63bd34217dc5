"""A learned concept as files for programs without this pack: a LoRA and an embedding, or both in one file.

A *bundle* is a LoRA file that also holds the word, under ``bundle_emb.<name>.string_to_param.*``. A LoRA loader reads its
weights, a prompt that names it its word (ComfyUI, comfy/sd1_clip.py). Each looks in a folder of its own, so the one file has a
name in both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..concept import Concept
from .checked_file import write_tensors
from .file_errors import FileError, FileKind
from .file_lock import lock
from .file_name import MOST_NUMBERS, check_inside, checked_name
from .stock_embedding import stock_state
from .stock_lora import StockLora
from .stock_metadata import stock_metadata
from .whole_file import replacing

ENDING = ".safetensors"
LOCK = ".e4t.lock"
ADVICE = "choose another name or folder"


class ExportError(FileError):
    """A file that could not be written; the message is one sentence that names it, the fault and what to do."""


LORA, EMBEDDING = FileKind("LoRA file", ADVICE, ExportError), FileKind("Embedding file", ADVICE, ExportError)


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
        prompt: what a prompt writes before the name of a file there ("embedding:").
    """

    loras: Path
    embeddings: Path
    prompt: str

    def free_name(self, name: str) -> str:
        """The name, or the first numbered one, that no file in either folder has."""
        number, free = 1, name
        while number < MOST_NUMBERS and any(
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
        folders: where to. Writers wait for each other.
        name: of both, see ``file_name.checked_name``.
        concept: whose word and description are written.
        lora: its weight changes.
        measured: what else the LoRA's metadata says of what was measured, by key.
        overwrite: replace files of that name.

    Raises:
        FileNameError: no file can have this name.
        ExportError: one could not be written; then the other may be there already.
        ValueError: the word is of no Stable Diffusion 1.x or 2.x text encoder.
    """
    word = stock_state(concept.embedding)
    with _named(folders, name, overwrite) as made:
        title = made.lora.stem
        write_tensors(made.lora, lora.tensors, lora_metadata(title, made.prompt, concept, lora, measured), LORA)
        about = stock_metadata(
            "textual-inversion", title, made.prompt, concept.embedding, prediction=concept.prediction
        )
        write_tensors(made.embedding, word, about | _origin(concept), EMBEDDING)
    return made


def export_bundle(
    folders: Folders, name: str, concept: Concept, lora: StockLora, measured: Mapping[str, str], overwrite: bool = False
) -> Exported:
    """Write a bundle; arguments, errors and names as for :func:`export_pair`.

    The file lies with the LoRAs. Among the embeddings it gets a second name (a hard link, which takes no room) or, where the
    file system has none or the folders are on two disks, a copy.
    """
    (word,) = stock_state(concept.embedding).values()
    with _named(folders, name, overwrite) as made:
        title = made.lora.stem
        # A dot would end the name there.
        tensors = {**lora.tensors, f"bundle_emb.{title.replace('.', '_')}.string_to_param.*": word}
        write_tensors(made.lora, tensors, lora_metadata(title, made.prompt, concept, lora, measured), LORA)
        copied = _second_name(made.lora, made.embedding)
    return dataclasses.replace(made, copied=copied)


@contextlib.contextmanager
def _named(folders: Folders, name: str, overwrite: bool) -> Iterator[Exported]:
    """The two files to write; within it, nobody else takes their names."""
    name = checked_name(name)
    try:
        with lock(folders.loras / LOCK):
            name = name if overwrite else folders.free_name(name)
            lora, embedding = (folder / f"{name}{ENDING}" for folder in (folders.loras, folders.embeddings))
            check_inside(lora)
            check_inside(embedding)
            yield Exported(lora, embedding, f"{folders.prompt}{name}")
    except OSError as error:
        raise LORA.fault(
            folders.loras / f"{name}{ENDING}",
            f"could not be written ({error})",
            "check that its folder may be written to",
        ) from error


def lora_metadata(
    name: str, prompt: str, concept: Concept, lora: StockLora, measured: Mapping[str, str]
) -> dict[str, str]:
    """What a LoRA file says of itself, in the words of ComfyUI, LoRA managers and kohya's trainers."""
    kohya = {"ss_network_module": "networks.lora", "ss_network_dim": str(lora.rank), "ss_network_alpha": str(lora.rank)}
    if not lora.rank:
        # Kohya's own module has no full matrices.
        kohya = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    return {
        **stock_metadata("lora", name, prompt, concept.embedding, prediction=concept.prediction),
        "ss_output_name": name,
        **kohya,
        **_origin(concept),
        "e4t.rank": str(lora.rank),
        "e4t.weights_error": f"{lora.error:.6f}",
        **measured,
    }


def _origin(concept: Concept) -> dict[str, str]:
    """Which concept a file was made of."""
    return {
        "e4t.trigger": concept.trigger,
        "e4t.method": concept.method,
        "e4t.fingerprint": concept.fingerprint,
        "e4t.base_fingerprint": concept.base_fingerprint,
        "e4t.domain": concept.domain_name,
        "e4t.seed": str(concept.seed),
    }


def _second_name(path: Path, second: Path) -> bool:
    """Give a file a second name, or a copy; whether it is a copy.

    Raises:
        ExportError: neither could be made.
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
        raise EMBEDDING.fault(
            second,
            f"could not be made of the one in {path.parent} ({error})",
            "check that its folder may be written to, and that the disk has room",
        ) from error
    return copied
