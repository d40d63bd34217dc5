"""The command line of the conversion."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from pathlib import Path

import torch
from torch import Tensor

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.domain_file import save_domain
from e4t_core.files.file_errors import FileError, FileKind, shortened
from e4t_core.methods.e4t.settings import PRESETS

from .mkshing_directory import MkshingDirectory, read_directory
from .mkshing_tensors import MkshingFileError
from .to_domain import BACKBONES, Options, to_domain

EXTENSION = ".safetensors"
OUTPUT = FileKind("Output", error=MkshingFileError)
# Rows of the stock CLIP vocabulary; mkshing's tuned text encoders append their placeholder's.
VOCABULARY = 49408

HELP = """\
Converts a checkpoint directory of mkshing/e4t-diffusion into a domain file for models/e4t_domains.

The published face checkpoint is mshing/e4t-diffusion-ffhq-celebahq-v1 on Hugging Face. Put its three files, config.json,
weight_offsets.pt and encoder.pt, into one folder, here e4t-diffusion-ffhq-celebahq-v1, and run from this repository:

  python -m commands.convert e4t-diffusion-ffhq-celebahq-v1 -o COMFYUI/models/e4t_domains/faces.safetensors --name faces

It was trained on the base model CompVis/stable-diffusion-v1-4: use that one for the best likeness. In ComfyUI it reads
CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors, by Load CLIP Vision.

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
    """Run the command; the exit status: 0 done, 1 it could not be converted, 2 wrong arguments, 130 stopped by Ctrl-C."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("Stopped: no file is left half written.", file=sys.stderr)
        return 130


def _run(arguments: list[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        # Names may hold what a console's encoding cannot show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        written = convert(
            options.directory,
            options.output,
            Options(
                options.name,
                options.word,
                tuple(options.templates),
                options.preset,
                options.prediction,
                options.architecture,
                options.backbone,
                options.half,
                options.license,
            ),
            options.overwrite,
        )
        for path in written:
            print(f"Written: {shortened(str(path))} ({path.stat().st_size / 2**20:.1f} MB)")
    except (FileError, OSError, ValueError) as error:
        print(f"Not converted: {shortened(str(error))}", file=sys.stderr)
        return 1
    return 0


def convert(directory: Path, output: Path | None, options: Options, overwrite: bool = False) -> list[Path]:
    """Convert one directory; the files that were written. What is assumed on the way is printed.

    Raises:
        FileError: something in the directory cannot be converted, its image backbone cannot be built, or the output is
            there already or could not be written.
        OSError, ValueError: a path cannot be looked at, or an option has a value that does not exist.
    """
    target = output or Path(f"{directory.resolve().name}{EXTENSION}")
    target = target / f"{directory.resolve().name}{EXTENSION}" if target.is_dir() else target
    if output is not None and not target.suffix and not target.exists():
        raise OUTPUT.fault(target, "does not exist", f"make it, or name a file that ends in {EXTENSION}")
    if target.suffix != EXTENSION:
        raise OUTPUT.fault(target, f"must end in {EXTENSION}", "only such files are found as domains")
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
    parser.add_argument(
        "--templates",
        default=[],
        action="append",
        metavar="TEXT",
        help='prompts of tuning: "neutral", "style", or a sentence with {} where the word stands, as often as wanted; else'
        " config.json's",
    )
    parser.add_argument(
        "--preset", default="", choices=["", *sorted(PRESETS)], help="settings of tuning; else by the word"
    )
    parser.add_argument(
        "--prediction", default="", choices=["", "epsilon", "v"], help="the base model's; else by its family"
    )
    parser.add_argument("--license", default="", help="of the weights, to be shown by model libraries")
    return parser


if __name__ == "__main__":
    sys.exit(main())
