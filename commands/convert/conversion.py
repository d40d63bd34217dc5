"""A whole conversion: what is read, what becomes of it, and which files are written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor

from commands.concept.places import output_places
from e4t_core.concept import Concept
from e4t_core.files.checked_file import write_tensors
from e4t_core.files.concept_file import SUFFIX, About, Places, save_concept
from e4t_core.files.concept_info import EXACT
from e4t_core.files.domain_file import save_domain
from e4t_core.files.file_errors import FileKind
from e4t_core.files.file_name import checked_name
from e4t_core.trigger import check_trigger
from e4t_core.version import VERSION

from .mkshing_directory import MkshingDirectory, read_directory
from .mkshing_tensors import MkshingFileError
from .to_concept import check_tuned
from .to_domain import Options, to_domain
from .tuned_concept import Given, tuned_concept

EXTENSION = ".safetensors"
OUTPUT = FileKind("Output", error=MkshingFileError)
# Rows of the stock CLIP vocabulary; mkshing's tuned text encoders append their placeholder's.
VOCABULARY = 49408


@dataclass(frozen=True)
class ConceptOrder:
    """The concept file that is asked for besides the domain file.

    Attributes:
        given: what the directory lacks of it.
        name: of the file.
        folder: of the file; none: ComfyUI's, if the domain file goes to ComfyUI's, else that of the domain file.
        weights_folder: of its second file; none: see ``places.weights_folder``.
        license: of the weights.
    """

    given: Given
    name: str
    folder: Path | None = None
    weights_folder: Path | None = None
    license: str = ""


def convert(
    directory: Path, output: Path | None, options: Options, overwrite: bool = False, order: ConceptOrder | None = None
) -> list[Path]:
    """Convert one directory; the files that were written. What is assumed on the way is printed.

    Raises:
        FileError: something in the directory cannot be converted, its image backbone cannot be built, what a concept needs
            besides cannot be used, or the output is there already or could not be written.
        OSError, ValueError: a path cannot be looked at, or an option has a value that does not exist.
    """
    target = output or Path(f"{directory.resolve().name}{EXTENSION}")
    target = target / f"{directory.resolve().name}{EXTENSION}" if target.is_dir() else target
    if output is not None and not target.suffix and not target.exists():
        raise OUTPUT.fault(target, "does not exist", f"make it, or name a file that ends in {EXTENSION}")
    if target.suffix != EXTENSION:
        raise OUTPUT.fault(target, f"must end in {EXTENSION}", "only such files are found as domains")
    _check_free(target, overwrite)
    text_target = target.with_name(f"{target.stem}_text_encoder{EXTENSION}")
    places = None if order is None else _places(order, target, text_target)
    source = read_directory(directory)
    if source.text_encoder is not None:
        _check_free(text_target, overwrite)
    if order is not None:
        check_tuned(source)
        check_trigger(order.given.trigger or source.config.placeholder)
    domain, notes = to_domain(source, options)
    for note in notes:
        print(f"Note: {note}")
    for line in _describe(source):
        print(line)
    # All that can fail comes before the first file is written.
    concept = None if order is None else tuned_concept(source, domain, order.given)
    save_domain(target, domain, torch.float16 if options.half else torch.float32)
    written = [target]
    if source.text_encoder is not None:
        _save_text_encoder(text_target, source.text_encoder, options.half)
        written.append(text_target)
        print(
            f"Its text encoder was tuned too: put {text_target.name} into models/text_encoders and wire Load CLIP in place of"
            " the checkpoint's CLIP."
        )
    if concept is not None and order is not None and places is not None:
        written += _save_concept(concept, order, places, overwrite)
    elif source.config.tuned and source.unet:
        print("Its tuned UNet is not part of a domain file: --concept NAME and --base make a concept file of it.")
    return written


def _places(order: ConceptOrder, *others: Path) -> Places:
    """Where a concept goes whose domain file is the first of others; its own file must be none of those."""
    path = concept_folder(order, others[0]) / f"{checked_name(order.name)}{SUFFIX}"
    # Some file systems do not tell capital letters apart.
    if str(path).casefold() in (str(other.absolute()).casefold() for other in others):
        raise OUTPUT.fault(path, "is the domain's own file", "give another --concept, another -o, or --concept-folder")
    return output_places(path.parent, order.weights_folder)


def concept_folder(order: ConceptOrder, domain: Path) -> Path:
    """The folder of the concept file that is asked for besides a domain file; an absolute path."""
    if order.folder is not None:
        return order.folder.absolute()
    folder = domain.absolute().parent
    embeddings = folder.parent / "embeddings"
    return embeddings / "e4t" if folder.name == "e4t_domains" and embeddings.is_dir() else folder


def _save_concept(concept: Concept, order: ConceptOrder, places: Places, overwrite: bool) -> list[Path]:
    about = About(
        license=order.license,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        pack_version=VERSION,
    )
    saved = save_concept(places, order.name, concept, EXACT, about, overwrite)
    for note in concept.notes:
        print(f"Note: {note}")
    print(f"Its trigger is {concept.trigger}. In stock prompts: embedding:e4t/{saved.path.stem}")
    return [saved.path, *([saved.weights] if saved.weights is not None else [])]


def _describe(source: MkshingDirectory) -> list[str]:
    network, tower = source.encoder.network, source.encoder.tower
    kind = "tuned" if source.config.tuned else "pre-trained"
    return [
        f"Directory {source.path}: {kind}, domain word {source.config.word!r}, s = {source.config.scale:g}.",
        f"Offsets: {len(source.offsets.names)} matrices, {9 * len(source.offsets.names)} tensors.",
        f"Encoder: {len(network.state_dict())} tensors, {network.layers} tokens of width {network.clip_width}.",
        f"Image backbone: {len(tower.state) if tower else 0} tensors. UNet: {len(source.unet)} tensors.",
    ]


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise OUTPUT.fault(path, "is there already", "give --overwrite to replace it, or another -o")
    if not path.parent.is_dir():
        raise OUTPUT.fault(path.parent, "was not found", "make this folder, or give another -o")


def _save_text_encoder(path: Path, tensors: dict[str, Tensor], half: bool) -> None:
    """Write a tuned text encoder as stock loaders read it, without the placeholder's row; atomically."""
    rows = "text_model.embeddings.token_embedding.weight"
    kept = {**tensors, rows: tensors[rows][:VOCABULARY]}
    dtype = torch.float16 if half else torch.float32
    write_tensors(path, {key: value.to(dtype) for key, value in kept.items()}, {}, OUTPUT)
