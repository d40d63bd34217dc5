"""``python -m miniworld.setup --base-directory DIR``: makes the files that a ComfyUI needs to use the mini world.

Expands the shipped weights to ``models/checkpoints/miniworld.safetensors`` (a Stable Diffusion 1.5 checkpoint, as far as stock
nodes can tell), ``models/e4t_domains/mini_faces.safetensors`` and ``mini_cats.safetensors``, and draws photos for them:
``input/mini_photo.png``, ``input/mini_photo_2.png`` (another person) and ``input/mini_cat_photo.png``.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from PIL import Image

from e4t_core.files.domain_file import save_domain
from e4t_core.files.whole_file import replacing

from .checkpoint import write_checkpoint
from .domains import load_mini_domain
from .heldout import concept_photo, held_out
from .models import load_text, load_unet, load_vae

log = logging.getLogger(__name__)


def set_up(base: Path) -> None:
    """Writes the six files below ``base``, the models each whole or not at all.

    Raises:
        MissingWeightsError: weights have not been trained.
    """
    models = base / "models"
    write_checkpoint(
        models / "checkpoints" / "miniworld.safetensors", load_unet().state_dict(), load_text(), load_vae()
    )
    (models / "e4t_domains").mkdir(parents=True, exist_ok=True)
    (base / "input").mkdir(parents=True, exist_ok=True)
    for weights in ("faces", "cats"):
        save_domain(models / "e4t_domains" / f"mini_{weights}.safetensors", load_mini_domain(weights), torch.float16)
    for photo, domain, number in (("mini_photo", "face", 0), ("mini_photo_2", "face", 1), ("mini_cat_photo", "cat", 0)):
        save_photo(base / "input" / f"{photo}.png", domain, number)


def save_photo(path: Path, domain: str, number: int) -> None:
    """A photo of an individual that no model was trained with; nothing is painted on it."""
    _, photo = concept_photo(held_out(domain)[number])
    pixels = (photo * 255).round().byte()
    with replacing(path) as part:
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(part, format="PNG")


def main() -> None:
    parser = argparse.ArgumentParser(prog="miniworld.setup", description=__doc__)
    parser.add_argument("--base-directory", type=Path, required=True, help="ComfyUI's base directory")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_up(parser.parse_args().base_directory)


if __name__ == "__main__":
    main()
