"""The command line of the conversion."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from e4t_core.methods.e4t.clip_backbone import BackboneError
from e4t_core.methods.e4t.domain import DomainFileError, save_domain
from e4t_core.methods.e4t.settings import PRESETS
from e4t_core.presets import TEMPLATES

from .peer_directory import PeerDirectory, read_directory
from .peer_tensors import PeerFileError
from .to_domain import BACKBONES, Options, to_domain

EXTENSION = ".safetensors"
# Rows of the stock CLIP vocabulary; the peer appends its placeholder's.
VOCABULARY = 49408

HELP = """\
Converts a checkpoint directory of mkshing/e4t-diffusion into a domain file for models/e4t_domains.

Pre-trained directories hold config.json, weight_offsets.pt and encoder.pt; tuned ones unet.pt in place of the offsets
and sometimes text_encoder.pt. The .pt files are pickles: only tensors are read from them, nothing is executed.

The image backbone: encoder.pt carries open_clip's ViT-H-14, 2.5 GB (1.3 GB with --half). Whether that is, byte for byte,
the stock file that artists have cannot be known offline. --backbone auto (the default) goes by config.json: if it says
that the backbone was trained (unfreeze_clip_vision) the weights go into the domain file; otherwise they are left out, and
in ComfyUI "Load CLIP Vision" with CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors takes their place. --backbone inside
always puts them in: exact whatever the config says, but it then needs open_clip_torch in ComfyUI's Python.

A tuned directory becomes a domain of its tuned encoder and offsets. Its tuned UNet has no place in a domain file: from
Python, commands.convert.to_concept makes a concept of it in memory. A tuned text encoder is written beside the domain,
for "Load CLIP".
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 0 done, 1 it could not be converted, 2 wrong arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        written = convert(
            options.directory,
            options.output,
            Options(
                options.name,
                options.word,
                options.templates,
                options.preset,
                options.prediction,
                options.architecture,
                options.backbone,
                options.half,
                options.licence,
            ),
            options.overwrite,
        )
    except (PeerFileError, DomainFileError, BackboneError) as error:
        print(f"Not converted: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(f"Written: {path} ({path.stat().st_size / 2**20:.1f} MB)")
    return 0


def convert(directory: Path, output: Path | None, options: Options, overwrite: bool = False) -> list[Path]:
    """Convert one directory; the files that were written. What is assumed on the way is printed.

    Raises:
        PeerFileError: something in the directory cannot be converted, or the output is there already.
        DomainFileError: the output could not be written.
        BackboneError: the image backbone that should go inside cannot be built.
    """
    target = output or Path(f"{directory.resolve().name}{EXTENSION}")
    target = target / f"{directory.resolve().name}{EXTENSION}" if target.is_dir() else target
    if output is not None and not target.suffix and not target.exists():
        raise PeerFileError(f"Output folder {target} does not exist: make it, or name a file that ends in {EXTENSION}.")
    if target.suffix != EXTENSION:
        raise PeerFileError(f"Output {target} must end in {EXTENSION}: only such files are found as domains.")
    _check_free(target, overwrite)
    source = read_directory(directory)
    text_target = target.with_name(f"{target.stem}_text_encoder{EXTENSION}")
    if source.text_encoder is not None:
        _check_free(text_target, overwrite)
    domain, notes = to_domain(source, options)
    for note in notes:
        print(f"Note: {note}")
    for line in _describe(source):
        print(line)
    save_domain(target, domain, torch.float16 if options.half else torch.float32)
    written = [target]
    if source.text_encoder is not None:
        _save_text_encoder(text_target, source.text_encoder, options.half)
        written.append(text_target)
        print(
            f"Its text encoder was tuned too: put {text_target.name} into models/text_encoders and wire Load CLIP in place of"
            " the checkpoint's CLIP."
        )
    if source.config.tuned and source.unet:
        print(
            "Its tuned UNet is not part of a domain file: commands.convert.to_concept makes a concept of it in memory."
        )
    return written


def _describe(source: PeerDirectory) -> list[str]:
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
        raise PeerFileError(f"Output {path} is there already: give --overwrite to replace it, or another -o.")
    if not path.parent.is_dir():
        raise PeerFileError(f"Output folder {path.parent} was not found: make it, or give another -o.")


def _save_text_encoder(path: Path, tensors: dict[str, Tensor], half: bool) -> None:
    """Write a tuned text encoder as stock loaders read it, without the placeholder's row; atomically."""
    rows = "text_model.embeddings.token_embedding.weight"
    kept = {**tensors, rows: tensors[rows][:VOCABULARY]}
    dtype = torch.float16 if half else torch.float32
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({key: value.to(dtype).contiguous().clone() for key, value in kept.items()}, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise DomainFileError(
            f"Text encoder {path} could not be written ({error}): check that the disk has room."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m commands.convert", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="the checkpoint's directory")
    parser.add_argument(
        "-o", "--output", type=Path, help="the domain file or its folder; else DIRECTORY.safetensors here"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there already")
    parser.add_argument("--half", action="store_true", help="store in float16: half the size, values rounded")
    parser.add_argument("--backbone", choices=BACKBONES, default="auto", help="the image backbone's weights; see above")
    parser.add_argument("--architecture", default="", help="its open_clip name or JSON; else config.json's")
    parser.add_argument("--name", default="", help="the domain's name; else the directory's")
    parser.add_argument("--word", default="", help="the domain word, one token; else config.json's domain_class_token")
    parser.add_argument("--templates", default="", choices=["", *sorted(TEMPLATES)], help="prompt templates of tuning")
    parser.add_argument(
        "--preset", default="", choices=["", *sorted(PRESETS)], help="settings of tuning; else by the word"
    )
    parser.add_argument(
        "--prediction", default="", choices=["", "epsilon", "v"], help="the base model's; else by its family"
    )
    parser.add_argument("--licence", default="", help="of the weights, to be shown by model libraries")
    return parser


if __name__ == "__main__":
    sys.exit(main())
