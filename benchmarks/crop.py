"""``python -m benchmarks.crop``: is the right part of a photo learned, where the photo is no centered portrait?

Individuals stand off center, small, among things and beside others (``crop_scenes.py``). For each kind of photo: which share
of the head of who is meant lies in the crop, how nearly the crop is their portrait, how many of the individuals were found,
in how many photos as many were found as there are, what was found where nobody is, and how many squares were looked at;
beside it the middle square. With ``--identity`` some of them are learned in ComfyUI from these crops, and NAMED (``scoring.py``) is
compared with what a centered portrait gives; with ``--beside`` also what other squares give: the one that the portrait of who is meant
would be ("exact"), and the photo's middle.
Their pictures are kept in runs/crop, so that an interrupted run goes on.

Gates: of the head of who is meant 0.95 lies inside the crop in 4:3, 3:4, small, two and three (each is off center); the number of
individuals is right in 0.8 of the photos of two and of three; a centered portrait is learned as it came in; NAMED is at most
0.03 below the centered portrait's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from commands.progress import Progress
from e4t_core.crop import Square, middle_square
from e4t_core.methods.e4t.clip_backbone import ClipBackbone
from e4t_core.methods.e4t.subject_finding import find_subjects
from miniworld.domains import load_backbone, narrow_domain
from miniworld.heldout import concept_photo
from miniworld.models import load_judges, load_unet
from miniworld.pretraining import load_base
from miniworld.renderer import SIZE
from miniworld.training_unet import TrainingUNet

from . import host
from .arms import WEIGHTS, WORD, Drawer, Subject, load_subjects, personalize
from .crop_scenes import KINDS, NOBODY, Photographed, photograph
from .picture_cache import cached, that_count
from .prompts import targets
from .report import gate, table
from .scoring import Visibility, named
from .statistics import bootstrap, weighted_ratio

INSIDE_GATE, NUMBER_GATE, IDENTITY_GATE, SAME_GATE = 0.95, 0.8, 0.03, 1.0
INSIDE_KINDS, NUMBER_KINDS = ("4:3", "3:4", "small", "two", "three"), ("two", "three")
EXACT, MIDDLE = BESIDE = ("exact", "middle")
FOUND = 0.5  # overlap with a portrait from which on an individual is found
LEARNED_KINDS = ("4:3", "small", "two")
SHOWN = 6
KEPT = host.ROOT / "runs" / "crop"


@dataclass(frozen=True)
class Cropped:
    """Attributes:
    square: that is learned.
    candidates: squares of all subjects.
    looked: how many squares were looked at.
    checked: how many of these looks were closer ones.
    """

    square: Square
    candidates: tuple[Square, ...]
    looked: int
    checked: int


class Cropper:
    """Crops as E4T Personalize does, with the mini world's networks in the width that they were trained in.

    They predict what the four times larger ones predict that ComfyUI loads, but for those's tie-break of about 1e-2.
    """

    def __init__(self, domain: str) -> None:
        self.domain, self.base, self.backbone = narrow_domain(WEIGHTS[domain]), load_base(), load_backbone()
        self.unet = TrainingUNet(load_unet())

    def crop(self, photo: Tensor) -> Cropped:
        """What is learned of a photo ``(3, H, W)``."""
        photos, crops = (host.pack(f"nodes.host.learning.{name}") for name in ("photos", "crops"))
        info, view = self.domain.info, _View(photo, self.base, self.backbone)
        found: list[Any] = []

        def find(whole: Any) -> Any:
            found.extend(find_subjects(self.domain, self.unet, self.base.text, view, whole.size, info.image_size))
            return found

        read = photos.read_photos(photo.movedim(0, -1)[None], None, info.image_size)
        made = crops.choose(read, crops.CropChoice(crops.SUBJECT), info.crop_margin, info.image_size, info.word, find)
        return Cropped(made.squares[0], tuple(one.square for one in found), view.squares, view.checked)


class _View:
    """A photo as the mini world's networks see squares of it."""

    def __init__(self, photo: Tensor, base: Any, backbone: ClipBackbone) -> None:
        self.photo, self.base, self.backbone = photo, base, backbone
        self.squares = self.checked = 0

    def _cut(self, squares: Sequence[Square]) -> Tensor:
        resize = host.pack("nodes.host.learning.photos").resize
        windows = [square.window() for square in squares]
        return torch.cat([resize(self.photo[None, :, rows, columns], SIZE, "bicubic") for rows, columns in windows])

    def latents(self, squares: Sequence[Square]) -> Tensor:
        self.squares += len(squares)
        return self.base.vae.encode(self._cut(squares))

    def clip_features(self, squares: Sequence[Square]) -> Tensor:
        self.checked += len(squares)
        return self.backbone.cls_features(self._cut(squares))


def search_report(
    cropper: Cropper, people: Sequence[Subject], count: int, kinds: Sequence[str], out: Path
) -> list[bool]:
    """Prints the table of kinds, ``count`` photos each, and the gates; writes a sheet of the first photos."""
    rows, results, shown = [], [], []
    identities = [person.identity for person in people]
    for kind in kinds:
        photos = [photograph(identities[n:] + identities[:n], kind) for n in range(count)]
        started, seen = time.monotonic(), []
        for photo in Progress(photos, desc=kind):
            seen.append((photo, cropper.crop(photo.photo)))
        seconds = (time.monotonic() - started) / len(photos)
        counts = [f"{np.mean([getattr(cropped, name) for _, cropped in seen]):.0f}" for name in ("looked", "checked")]
        shown += [(photo, cropped.square) for photo, cropped in seen[: SHOWN if kind != NOBODY else 2]]
        if kind == NOBODY:
            wrong = np.mean([len(cropped.candidates) > 0 for _, cropped in seen])
            rows.append((kind, len(photos), *"------", f"{wrong:.2f}", *counts, f"{seconds:.1f}"))
            continue
        own = [photo.head_inside(cropped.square) for photo, cropped in seen]
        middle = [photo.head_inside(middle_square(photo.size)) for photo, *_ in seen]
        near, near_middle = (
            np.mean([photo.portrait().overlap(of) for photo, of in pairs])
            for pairs in (
                [(photo, cropped.square) for photo, cropped in seen],
                [(photo, middle_square(photo.size)) for photo, *_ in seen],
            )
        )
        everyone = [
            max((photo.portrait(number).overlap(one) for one in cropped.candidates), default=0.0) >= FOUND
            for photo, cropped in seen
            for number in range(len(photo.people))
        ]
        extra = np.mean([
            any(all(photo.portrait(n).overlap(one) < 0.2 for n in range(len(photo.people))) for one in cropped.candidates)
            for photo, cropped in seen
        ])  # fmt: skip
        right = np.mean([len(cropped.candidates) == len(photo.people) for photo, cropped in seen])
        if kind in INSIDE_KINDS:
            results.append((f"{kind}: share of the head inside the crop", float(np.mean(own)), INSIDE_GATE))
        if kind in NUMBER_KINDS:
            results.append((f"{kind}: photos in which their number is right", float(right), NUMBER_GATE))
        rows.append((
            kind, len(photos), f"{np.mean(own):.3f}", f"{np.mean(middle):.3f}", f"{near:.2f}", f"{near_middle:.2f}",
            f"{np.mean(everyone):.2f}", f"{right:.2f}", f"{extra:.2f}", *counts, f"{seconds:.1f}",
        ))  # fmt: skip
    header = (
        "photos",
        "n",
        "head in crop",
        "in the middle",
        "overlap",
        "of the middle",
        "found",
        "number right",
        "wrongly",
        "squares",
        "checked",
        "s",
    )
    print(table(header, rows))
    write_sheet(shown, out)
    return [gate(what, value, least=least) for what, value, least in results]


def same_portraits(cropper: Cropper, people: Sequence[Subject]) -> bool:
    """Whether centered portraits are learned as they came in, bit for bit."""
    same = [
        cropper.crop(person.photo).square == middle_square((person.photo.shape[-2], person.photo.shape[-1]))
        for person in Progress(people, desc="portraits")
    ]
    return gate("portraits whose crop is all of them, as without a search", float(np.mean(same)), least=SAME_GATE)


def identity_report(
    cropper: Cropper, domain: str, company: Sequence[Subject], count: int, kinds: Sequence[str], beside: Sequence[str]
) -> list[bool]:
    """Learns the first individuals from a portrait and from photos of each kind, where others of the company may stand beside them;
    prints NAMED and what the photos lose; beside it by other squares (:data:`BESIDE`)."""
    people = company[:count]
    drawer, judges = Drawer(1, {}, domain), load_judges()
    identities = [person.identity for person in company]
    wanted = [target for person in people for target in targets(person.identity, person.prompts)]
    seen = Visibility.of(wanted)
    arms: dict[str, list[Tensor]] = {}
    for number, person in enumerate(Progress(people, desc="learning")):
        portrait = concept_photo(person.identity)[1]
        photos = {"portrait": (portrait, middle_square((portrait.shape[-2], portrait.shape[-1])))}
        for kind in kinds:
            made = photograph(identities[number:] + identities[:number], kind)
            photos[kind] = made.photo, cropper.crop(made.photo).square
            squares = {EXACT: made.portrait(), MIDDLE: middle_square(made.size)}
            photos |= {f"{kind}, {name}": (made.photo, squares[name]) for name in beside}
        for arm, (photo, square) in photos.items():
            arms.setdefault(arm, []).append(pictures_from(drawer, domain, person, photo, square))
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for arm, parts in arms.items():
        shown, nothing = torch.cat(parts), np.zeros(len(wanted))
        sums = [named(judge.read(shown), wanted, seen) for judge in judges.values()]
        value = sum((one.value for one in sums), nothing).reshape(len(people), -1).sum(1)
        weight = sum((one.weight for one in sums), nothing).reshape(len(people), -1).sum(1)
        scores[arm] = value, weight
    of = {arm: (lambda w, arm=arm: weighted_ratio(w, *scores[arm])) for arm in scores}
    rows = []
    for arm in scores:
        lost = bootstrap(lambda w, arm=arm: of["portrait"](w) - of[arm](w), len(people))  # type: ignore[misc]
        rows.append((arm, f"{float(of[arm](np.ones((1, len(people))))[0]):.3f}", str(lost)))
    print(table((f"{len(people)} {domain}s learned from", "NAMED", "lost against the portrait"), rows))
    return [
        gate(
            f"NAMED lost by the photo, {kind}",
            float((of["portrait"](one) - of[kind](one))[0]),
            most=IDENTITY_GATE,
        )
        for kind in kinds
        for one in (np.ones((1, len(people))),)
    ]


def pictures_from(drawer: Drawer, domain: str, person: Subject, photo: Tensor, square: Square) -> Tensor:
    """Someone's pictures, learned from a square of a photo, ``(prompts, 3, 128, 128)``: from their file in runs/crop, or now."""
    box = box_of(square)
    decides = json.dumps([
        host.weights_fingerprint("base", "text", "vae", "backbone", WEIGHTS[domain]), that_count(drawer.settings()),
        asdict(host.SECOND_ORDER), box, person.number, [prompt.text for prompt in person.prompts],
    ])  # fmt: skip
    key = hashlib.sha256(decides.encode() + photo.numpy().tobytes()).hexdigest()[:16]

    def draw() -> Tensor:
        tuned = personalize(drawer.base, drawer.domain(domain), photo, None, drawer.settings(), crop="box", boxes=box)
        return torch.cat([
            host.draw(tuned, [prompt.text.format(WORD)], drawer.seeds(person, place), host.SECOND_ORDER)
            for place, prompt in enumerate(person.prompts)
        ])  # fmt: skip

    return cached(KEPT / f"{key}.safetensors", draw)


def box_of(square: Square) -> dict[str, int]:
    """A square as ComfyUI's BOUNDING_BOX."""
    return {"x": square.left, "y": square.top, "width": square.side, "height": square.side}


def write_sheet(shown: Sequence[tuple[Photographed, Square]], out: Path, column: int = 192) -> None:
    """Photos with the crop's frame, each with its crop below it."""
    from PIL import ImageDraw

    sheet = Image.new("RGB", (SHOWN * column, -(-len(shown) // SHOWN) * 2 * column), "white")
    for number, (photo, square) in enumerate(shown):
        picture = Image.fromarray((photo.photo * 255).round().byte().movedim(0, -1).numpy())
        rows, columns = square.window()
        crop = picture.crop((columns.start, rows.start, columns.stop, rows.stop)).resize((column - 8, column - 8))
        ImageDraw.Draw(picture).rectangle(
            (columns.start, rows.start, columns.stop - 1, rows.stop - 1), outline="black", width=5
        )
        picture.thumbnail((column - 8, column - 8))
        left, top = number % SHOWN * column, number // SHOWN * 2 * column
        sheet.paste(picture, (left, top + column - 8 - picture.height))
        sheet.paste(crop, (left, top + column))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, quality=85)
    print(f"{out}: photos with the crop's frame, and the crops below")


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("held-out", "validation"), default="held-out")
    parser.add_argument("--domain", choices=("face", "cat"), default="face")
    parser.add_argument("--identities", type=int, default=16, help="photos of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated")
    parser.add_argument("--portraits", type=int, default=16, help="centered portraits that must stay as they are")
    parser.add_argument("--identity", type=int, default=0, help="individuals to learn from a portrait and from photos")
    parser.add_argument(
        "--beside", default="", help=f"with --identity: also from these squares, comma-separated: {', '.join(BESIDE)}"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/crop.jpg"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cropper, results = Cropper(options.domain), []
    kinds, beside = ([one for one in given.split(",") if one] for given in (options.kinds, options.beside))
    print(f"{options.split} {options.domain}s")
    if options.portraits:
        results.append(same_portraits(cropper, load_subjects(options.split, options.portraits, options.domain)))
    if options.identities:
        people = load_subjects(options.split, max(3, options.identities), options.domain)
        results += search_report(cropper, people, options.identities, kinds, options.out)
    if options.identity:
        some = load_subjects(options.split, max(3, options.identity), options.domain)
        learned = [kind for kind in LEARNED_KINDS if kind in kinds]
        results += identity_report(cropper, options.domain, some, options.identity, learned, beside)
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
