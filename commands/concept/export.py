"""``export``: a concept as files that programs without this extension read, a LoRA and an embedding."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from commands.console import size
from e4t_core.concept import Concept
from e4t_core.files.concept_file import CONCEPT, ConceptFileError, load_concept, read_concept_info
from e4t_core.files.concept_info import EXACT, RECIPE
from e4t_core.files.file_errors import FileError, shortened
from e4t_core.files.file_name import checked_name
from e4t_core.files.stock_export import Exported, Folders, export_bundle, export_pair
from e4t_core.files.stock_lora import ERROR, LEAST_ERROR, StockLora, exact_lora, low_rank_lora, thin_lora
from e4t_core.fingerprint import fingerprint
from e4t_core.methods.extended_textual_inversion import ExtendedTextualInversion
from e4t_core.methods.perfusion import Perfusion
from e4t_core.weight_changes import TotalDifferences

from .places import absolute, made, weights_folder

log = logging.getLogger(__name__)

PAIR, BUNDLE, EXACT_PAIR = "pair", "bundle", "exact"
FORMS = (PAIR, BUNDLE, EXACT_PAIR)

HELP = """\
Writes a concept for programs that do not know it: a LoRA with its weights, in FOLDER/loras, and an embedding with its word, in
FOLDER/embeddings. FOLDER is ComfyUI's models, or any folder of yours. It is the node Export E4T Concept; the node also measures
how much of the likeness the files lose.

  pair     two small files, which diffusers reads as well
  bundle   both in one file, with a second name among the embeddings
  exact    the LoRA's weights lose nothing, and it is half as large as the base model, or more

The base model is the one that the concept will be drawn on: a .safetensors checkpoint or a diffusers folder. It is needed because
a part of the changes is a multiple of the base's own weights.
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to a parser."""
    parser = commands.add_parser(
        "export",
        help="write a concept as a stock LoRA and embedding",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=absolute, metavar="FILE", help="a concept file that was saved as exact")
    parser.add_argument("--base", type=absolute, required=True, help="the base model")
    parser.add_argument("--name", help="of the new files, without .safetensors (default: that of FILE)")
    parser.add_argument("--out", type=absolute, required=True, metavar="FOLDER", help="see above")
    parser.add_argument("--form", choices=FORMS, default=PAIR, help=f"see above (default: {PAIR})")
    parser.add_argument(
        "--error",
        type=float,
        default=ERROR,
        help=f"how far the LoRA may be from the concept's changes, as a share of them, {LEAST_ERROR} to 1 (default: {ERROR})",
    )
    parser.add_argument("--rank", type=int, default=0, help="one rank for all matrices, in place of the error")
    parser.add_argument("--weights-folder", type=absolute, metavar="FOLDER", help="of FILE's second file")
    parser.add_argument("--overwrite", action="store_true", help="replace files of that name; else they get a number")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The subcommand; its exit status.

    Raises:
        ValueError: a file, a name, a folder or a number cannot be used, or the base is of another kind.
    """
    name = checked_name(options.name or options.file.stem)
    _check_numbers(options.error, options.rank)
    _check_kept(options.file)
    folders = _folders(options.out)
    if options.overwrite and folders.embeddings / f"{name}.safetensors" == options.file:
        raise CONCEPT.fault(options.file, "would be replaced by its own embedding", "give another --name")
    concept, _ = load_concept(options.file, [weights_folder(options.file.parent, options.weights_folder)])
    base = read_unet(options.base)
    _check_fits(concept, base, options.base)
    lora = _lora(concept, base, options)
    write = export_bundle if options.form == BUNDLE else export_pair
    exported = write(folders, name, concept, lora, {"e4t.form": options.form}, options.overwrite)
    print("\n".join(_told(exported, options.form, lora)))
    if concept.base_fingerprint not in ("", *_fingerprints(base)):
        print(
            f"Note: {concept.trigger} was learned on another base model than {options.base.name}, or on other number types."
        )
    return 0


def _check_numbers(error: float, rank: int) -> None:
    # Before the work; the core says the same at its end.
    if not LEAST_ERROR <= error <= 1 or rank < 0:
        raise ValueError(
            f"--error {error:g} must be {LEAST_ERROR} to 1, and --rank {rank} 0 or more: give such numbers."
        )


def _check_kept(path: Path) -> None:
    """Check that a file holds weights, before anything large is read."""
    info = read_concept_info(path)
    if info.body == RECIPE:
        raise CONCEPT.fault(
            path,
            "is a recipe, which holds no weights yet",
            "in ComfyUI load it, wire it into Apply E4T Concept, and export or save what that gives",
        )
    if info.method in (ExtendedTextualInversion.name, Perfusion.name):
        raise CONCEPT.fault(
            path,
            "is read by each layer of the network in a way of its own, which no stock file holds",
            "draw it in ComfyUI with this extension",
        )
    if info.body != EXACT:
        raise CONCEPT.fault(
            path,
            "keeps a word alone, which is a stock embedding as it is",
            "put it into models/embeddings of the other program",
        )


def _folders(out: Path) -> Folders:
    return Folders(made(made(out) / "loras"), made(out / "embeddings"), "embedding:")


def read_unet(path: Path) -> dict[str, Tensor]:
    """The weights of a base model's UNet in float32, by canonical name, from a checkpoint or a diffusers folder.

    Raises:
        FileError: it is missing, damaged, or no Stable Diffusion 1.x or 2.x; or diffusers is not installed.
    """
    try:
        from commands.base.diffusers_folder import DiffusersFolder
        from commands.base.single_file import SingleFile
    except ImportError as error:
        raise ConceptFileError(
            f"A concept cannot be exported without the package {error.name}: run this with the Python of the clone's .venv,"
            " which 'python3 dev.py train --help' makes."
        ) from error
    log.info("Reading %s.", path)
    parts = DiffusersFolder(path) if path.is_dir() else SingleFile(path)
    return {name: weight.detach() for name, weight in parts.unet(torch.float32).named_parameters()}


def _check_fits(concept: Concept, base: Mapping[str, Tensor], path: Path) -> None:
    """Check that a concept changes weights that the base has.

    Raises:
        FileError: it does not.
    """
    shapes = {name: tuple(weight.shape) for name, weight in base.items()}
    for change in concept.weights:
        if shapes.get(change.name) != change.shape:
            found = shapes.get(change.name, "missing")
            raise FileError(
                f"{concept.trigger} changes {change.name} of the shape {change.shape}, which is {found} in {shortened(str(path), 100)}:"
                " name a base of the family that it was learned on."
            )


def _lora(concept: Concept, base: Mapping[str, Tensor], options: argparse.Namespace) -> StockLora:
    from commands.progress import Progress

    # As the node: what was learned thin goes out as it is.
    own = thin_lora(concept.weights)
    if own is not None and not 0 < options.rank < own.rank:
        return own
    differences = TotalDifferences(concept.weights, base)
    with Progress(desc="LoRA", unit="step") as bar:

        def told(step: int, steps: int) -> None:
            bar.total = steps
            bar.update(step + 1 - bar.n)

        if options.form == EXACT_PAIR:
            return exact_lora(differences, told)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # Diffusers reads no norms and biases, and no bundles either.
        vectors = options.form == BUNDLE
        return low_rank_lora(differences, options.error, options.rank, vectors, device, told)


def _told(exported: Exported, form: str, lora: StockLora) -> list[str]:
    kept = "exactly the concept's" if lora.error == 0 else f"rank {lora.rank}, weights off by {100 * lora.error:.1f} %"
    other = f"Written: {shortened(str(exported.embedding))}"
    if form == BUNDLE:
        other += (
            " (a copy: this disk gives no second names)" if exported.copied else " (the same file under a second name)"
        )
    return [
        f"Written: {shortened(str(exported.lora))} ({size(exported.lora.stat().st_size)}; {kept})",
        other,
        f"Load LoRA: {exported.lora.name}, strength 1. In prompts: {exported.prompt}",
        "The word is fixed there: it is not refined at every step.",
    ]


def _fingerprints(base: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A base's content hashes, as it is learned on by a CPU and by a card: the type of its numbers counts."""
    return fingerprint(base), fingerprint({name: weight.half() for name, weight in base.items()})
