"""``python -m benchmarks.photo_fit``: does a domain know its own photos from others, and which gain is usual?

For the mini world's two domains, on the narrow networks that they were trained with. The threshold is the gain (see
``e4t_core/methods/e4t/photo_fit.py``) below which at most one in a hundred of the domain's own validation photos lies; it
goes into ``miniworld/domains.py``. All rates are of other validation photos than it was chosen on. Held-out photos are never
looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from commands.progress import Progress
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.photo_fit import LEVELS, least_usual, shows_nothing
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.trained_weight import made
from miniworld.attributes import Identity, Scene, random_scene
from miniworld.concept_photos import subject_masks
from miniworld.domains import FIT_THRESHOLDS, load_backbone, narrow_domain
from miniworld.heldout import concept_photo, held_out
from miniworld.pretraining import load_base
from miniworld.renderer import SIZE, render

from .arms import WEIGHTS
from .report import table

TILES = 4  # per side, of a shuffled photo


class Judge:
    """A domain on the base that it was trained on."""

    def __init__(self, word: str) -> None:
        self.base, self.backbone = load_base(), load_backbone()
        self.domain = narrow_domain(WEIGHTS[word])

    @torch.no_grad()
    def gain(self, photo: Tensor) -> float:
        """Of a photo ``(3, 128, 128)`` in [0, 1]."""
        images = photo[None]
        photos = Photos(self.base.vae.encode(images), self.backbone.cls_features(images))
        base = BaseModel(self.base.unet, self.base.text, "mini world")
        # Nothing is tuned, so nothing needs copies that train.
        settings = replace(
            self.domain.info.preset,
            steps=0,
            batch=LEVELS,
            micro_batch=LEVELS,
            train_unet=False,
            train_offsets=False,
            train_encoder=False,
        )
        run = E4T(self.domain).start(base, photos, settings, 0, "")
        with self.base.unet.using(made(run.weights())):
            return run.gains()[0]


def drawn(kind: str, number: int) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{kind} {number}".encode()).digest()[:8], "big"))


def flat(number: int) -> Tensor:
    return torch.tensor(drawn("flat", number).random(3), dtype=torch.float32)[:, None, None].expand(3, SIZE, SIZE)


def gray(number: int) -> Tensor:
    return torch.full((3, SIZE, SIZE), float(drawn("gray", number).random()))


def gradient(number: int) -> Tensor:
    rng = drawn("gradient", number)
    colors, angle = torch.tensor(rng.random((2, 3, 1, 1)), dtype=torch.float32), rng.uniform(0, 2 * math.pi)
    y, x = torch.meshgrid(*[torch.linspace(-0.5, 0.5, SIZE)] * 2, indexing="ij")
    share = (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2) + 0.5
    return colors[0] + share * (colors[1] - colors[0])


def noise(number: int) -> Tensor:
    return torch.from_numpy(drawn("noise", number).random((3, SIZE, SIZE), dtype=np.float32))


def blobs(number: int) -> Tensor:
    """Noise of a few large spots to many small ones."""
    side = 2 ** (2 + number % 4)
    spots = torch.from_numpy(drawn("blobs", number).random((1, 3, side, side), dtype=np.float32))
    return F.interpolate(spots, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)[0]


def shuffled(photo: Tensor, number: int) -> Tensor:
    """The same tiles in another order."""
    side = SIZE // TILES
    order = torch.from_numpy(drawn("shuffled", number).permutation(TILES**2))
    tiles = photo.unfold(1, side, side).unfold(2, side, side).reshape(3, TILES**2, side, side)[:, order]
    return tiles.reshape(3, TILES, TILES, side, side).transpose(2, 3).reshape(3, SIZE, SIZE)


def cut_out(identity: Identity, scene: Scene, photo: Tensor) -> Tensor:
    """The subject on white, as E4T Personalize shows a transparent picture to the domain."""
    mask = subject_masks([identity], [scene], photo[None])[0]
    return 1 + mask * (photo - 1)


def photographs(folder: Path, number: int) -> Tensor:
    """Squares out of the pictures of a folder, one after the other."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    with Image.open(paths[number % len(paths)]) as file:
        picture, rng = file.convert("RGB"), drawn("photographs", number)
    side = round(min(picture.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
    square = picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).movedim(-1, 0).float() / 255


def kinds(word: str, options: argparse.Namespace) -> dict[str, tuple[int, Callable[[int], Tensor]]]:
    """Name -> how many, and the n-th of them. None is of an individual that the threshold is chosen on."""
    own = held_out(word, "validation", options.photos + options.others)[options.photos :]
    other_word = next(name for name in WEIGHTS if name != word)
    other = held_out(other_word, "validation", options.others)

    def seen(**fixed: int) -> Callable[[int], Tensor]:
        return lambda n: render([own[n]], [random_scene(drawn(str(fixed), n), **fixed)])[0]

    few = max(1, options.others // 4)
    found: dict[str, tuple[int, Callable[[int], Tensor]]] = {
        f"{word}s (false alarms)": (options.others, lambda n: concept_photo(own[n])[1]),
        f"{word}s, cut out, on white (false alarms)": (few, lambda n: cut_out(own[n], *concept_photo(own[n]))),
        f"{other_word}s": (options.others, lambda n: concept_photo(other[n])[1]),
        "flat color": (few, flat),
        "flat gray": (few, gray),
        "gradient": (few, gradient),
        "noise": (few, noise),
        "blobs": (few, blobs),
        f"tiles of {word}s": (few, lambda n: shuffled(concept_photo(own[n])[1], n)),
        f"{word}s upside down": (few, lambda n: concept_photo(own[n])[1].flip(-2)),
        f"{word}s, sketched or painted": (few, lambda n: seen(style=1 + n % 3)(n)),
        f"{word}s, closer": (few, seen(style=0, zoom=1)),
        f"{word}s, from afar": (few, seen(style=0, zoom=2)),
    }
    if options.pictures:
        found["photographs"] = (few, lambda n: photographs(options.pictures, n))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=tuple(WEIGHTS), action="append", help="one of them; both by default")
    parser.add_argument("--photos", type=int, default=160, help="of the domain, that the threshold is chosen on")
    parser.add_argument(
        "--others", type=int, default=64, help="of the domain and of the other; a quarter of each other kind"
    )
    parser.add_argument(
        "--pictures", type=Path, help="a folder of photographs (such as scikit-image's data), one more kind"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for word in options.domain or WEIGHTS:
        judge = Judge(word)
        people = held_out(word, "validation", options.photos)
        gains = [judge.gain(concept_photo(p)[1]) for p in Progress(people, desc=f"{word}s")]
        threshold = least_usual(gains)
        rows = []
        for name, (count, photo) in kinds(word, options).items():
            measured, empty = [], []
            for n in Progress(range(count), desc=name):
                measured.append(judge.gain(photo(n)))
                empty.append(shows_nothing(photo(n)))
            low, middle, high = np.quantile(measured, (0, 0.5, 1))
            strange = np.mean([gain < threshold for gain in measured])
            warned = np.mean([gain < threshold or nothing for gain, nothing in zip(measured, empty, strict=True)])
            rows.append((
                name, count, f"{warned:.0%}", f"{strange:.0%}", f"{np.mean(empty):.0%}",
                f"{low:.2f}", f"{middle:.2f}", f"{high:.2f}",
            ))  # fmt: skip
        print(f"\n{word}s: warn below {threshold:.2f} (the shipped domain says {FIT_THRESHOLDS[WEIGHTS[word]]:.2f})")
        print(
            table(
                ("validation photos", "number", "warned", "low gain", "no edges", "least gain", "median", "most"), rows
            )
        )


if __name__ == "__main__":
    main()
