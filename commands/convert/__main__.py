"""The command line of the conversion."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from commands.console import show_any_name, size
from commands.interruptible import NOTHING_HALF, importing, interruptible

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

A tuned directory becomes a domain of its tuned encoder and offsets. A tuned text encoder is written beside the domain, for
"Load CLIP". With --concept and --base all of it becomes a concept file as well, as if it had been learned in ComfyUI:

  python -m commands.convert my_face -o COMFYUI/models/e4t_domains --concept my_face --base v1-4.safetensors

The base is the model that was tuned. The photo is the directory's domain.png, or --photo. The concept goes to
COMFYUI/models/embeddings/e4t and COMFYUI/models/e4t_concepts; beside the domain, if that is not ComfyUI's folder.
"""


@interruptible(NOTHING_HALF)
def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 0 done, 1 it could not be converted, 2 wrong arguments, 130 stopped by Ctrl-C."""
    show_any_name()
    with importing(NOTHING_HALF):
        from e4t_core.files.file_errors import FileError, shortened

        from .conversion import ConceptOrder, convert
        from .to_domain import Options
        from .tuned_concept import Given

    parser = _parser()
    options = parser.parse_args(arguments)
    if bool(options.concept) != bool(options.base):
        parser.error("a concept file needs both --concept NAME and --base MODEL")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    order = None
    if options.concept:
        order = ConceptOrder(
            Given(options.base, options.photo, options.trigger, options.backbone_file),
            options.concept,
            options.concept_folder,
            options.weights_folder,
            options.license,
        )
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
            order,
        )
        for path in written:
            print(f"Written: {shortened(str(path))} ({size(path.stat().st_size)})")
    except (FileError, OSError, ValueError) as error:
        print(f"Not converted: {shortened(str(error))}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from e4t_core.methods.e4t.settings import PRESETS

    from .to_domain import BACKBONES

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
    concept = parser.add_argument_group("concept", "what else is needed to make a concept file of a tuned directory")
    concept.add_argument("--concept", default="", metavar="NAME", help="of the concept file, without .safetensors")
    concept.add_argument(
        "--base", type=Path, help="the base model that was tuned: .safetensors file or diffusers folder"
    )
    concept.add_argument("--photo", type=Path, help="that was learned; else DIRECTORY/domain.png")
    concept.add_argument(
        "--trigger", default="", help="what stands for it in prompts; else the directory's placeholder"
    )
    concept.add_argument(
        "--backbone-file", type=Path, metavar="FILE", help="the image backbone, where encoder.pt brings none"
    )
    concept.add_argument("--concept-folder", type=Path, metavar="FOLDER", help="of the concept file; see above")
    concept.add_argument("--weights-folder", type=Path, metavar="FOLDER", help="of its second file; see above")
    return parser


if __name__ == "__main__":
    sys.exit(main())
