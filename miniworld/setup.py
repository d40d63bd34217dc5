"""``python -m miniworld.setup --base-directory DIR``: makes the files that a ComfyUI needs to use the mini world.

Expands the shipped weights to ``models/checkpoints/miniworld.safetensors`` (a Stable Diffusion 1.5 checkpoint, as far as stock
nodes can tell), ``models/e4t_domains/mini_faces.safetensors`` and ``mini_cats.safetensors``, and draws photos for them in
``input``: ``mini_photo.png`` with two more of the same person, ``mini_photo_2.png`` (another person), ``mini_cat_photo.png``, and
``mini_drawing.png``, a pencil sketch.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from e4t_core.files.domain_file import save_domain
from e4t_core.files.whole_file import replacing

from .attributes import EDITS, Identity, Scene
from .checkpoint import write_checkpoint
from .domains import load_mini_domain
from .heldout import concept_photo, held_out
from .models import load_text, load_unet, load_vae
from .renderer import render

log = logging.getLogger(__name__)


def set_up(base: Path) -> None:
    """Writes three models and six pictures below ``base``, each whole or not at all.

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
    for name, picture in pictures().items():
        save_picture(base / "input" / f"{name}.png", picture)


def pictures() -> dict[str, Tensor]:
    """File name -> picture ``(3, 128, 128)`` in [0, 1] of an individual that no model was trained with."""
    faces, cats = held_out(), held_out("cat")
    return {
        "mini_photo": concept_photo(faces[0])[1],
        "mini_same_person_2": _drawn(faces[0], style="photo", background="blue"),
        "mini_same_person_3": _drawn(faces[0], style="photo", background="green", accessory="scarf", zoom="closeup"),
        "mini_photo_2": concept_photo(faces[1])[1],
        "mini_cat_photo": concept_photo(cats[0])[1],
        "mini_drawing": _drawn(faces[2], style="pencil sketch", background="orange"),
    }


def _drawn(identity: Identity, **scene: str) -> Tensor:
    return render([identity], [Scene().edited(**{edit: EDITS[edit].index(value) for edit, value in scene.items()})])[0]


def save_picture(path: Path, picture: Tensor) -> None:
    """A PNG of a picture ``(3, height, width)`` in [0, 1]."""
    pixels = (picture * 255).round().byte()
    with replacing(path) as part:
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(part, format="PNG")


def main() -> None:
    parser = argparse.ArgumentParser(prog="miniworld.setup", description=__doc__)
    parser.add_argument("--base-directory", type=Path, required=True, help="ComfyUI's base directory")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_up(parser.parse_args().base_directory)


if __name__ == "__main__":
    main()
