"""The people of an evaluation: a folder with a folder of photos for each, and who of them is taken.

The layout is that of Labeled Faces in the Wild, ``DIR/NAME/NAME_0001.jpg``; only the folders count, not the files' names. From here
on a person is a number: no table, report or file that an evaluation writes has a name in it.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from commands.batch.faults import Rejected
from commands.batch.photos import SUFFIXES, as_sent
from commands.batch.photos import Photo as Learned
from e4t_core.files.file_errors import FileKind
from e4t_core.files.whole_file import check_is_folder, replacing

from .faults import EvaluationError

FOLDER = FileKind(
    "Folder of people", "it holds a folder of photos for each person", EvaluationError, "correct the path"
)
PHOTO = FileKind("Photo", "save it again, or take it out of the folder", EvaluationError)


@dataclass(frozen=True)
class Photo:
    """One photo of a person.

    Attributes:
        path: the file.
        digest: SHA-256 of the file, as hexadecimal digits.
    """

    path: Path
    digest: str

    def picture(self) -> Image.Image:
        """The photo as a server gets it: upright, 8 bits, here without transparency.

        Raises:
            EvaluationError: it is no picture, or broken.
        """
        try:
            return Image.open(io.BytesIO(as_sent(self.path))).convert("RGB")
        except Rejected as error:
            raise PHOTO.fault(self.path, "cannot be opened as a picture") from error


@dataclass(frozen=True)
class Person:
    """Somebody of whom one photo is learned.

    Attributes:
        number: from 1; all that is ever said of who it is.
        concept: the photo that is learned.
        references: the person's other photos, at least one.
    """

    number: int
    concept: Photo
    references: tuple[Photo, ...]

    @property
    def name(self) -> str:
        """The number as the name of a file."""
        return f"{self.number:04}"

    @property
    def photos(self) -> tuple[Photo, ...]:
        """All of them, the learned one first."""
        return (self.concept, *self.references)


@dataclass(frozen=True)
class Choice:
    """Who is taken.

    Attributes:
        least: photos that a person has at least, 2 or more.
        most: photos that a person has at most.
        count: of people, 2 or more.
        seed: decides who it is, and which photo of each is learned.
    """

    least: int = 3
    most: int = 10
    count: int = 232
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.least <= self.most:
            raise EvaluationError(
                f"--least {self.least} --most {self.most} fits nobody: one photo is learned and another judges, so give 2 or"
                " more, and no fewer for --most."
            )
        if self.count < 2:
            raise EvaluationError(f"--people {self.count} is too few: strangers are the floor, so take 2 or more.")


def choose_people(folder: Path, choice: Choice) -> tuple[list[Person], int]:
    """The chosen people, numbered in the order of a hash, so that fewer of them are the first of more.

    Returns:
        The people, and how many fit the choice.

    Raises:
        EvaluationError: the folder or a photo cannot be read, or too few people fit.
    """
    check_is_folder(folder, FOLDER)
    found = {path.name: _pictures(path) for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise FOLDER.fault(folder, "holds no folder with photos in it", "lay them out as FOLDER/NAME/NAME_0001.jpg")
    fitting = sorted(
        (name for name, files in found.items() if choice.least <= len(files) <= choice.most),
        key=lambda name: _order(choice.seed, name),
    )
    if len(fitting) < choice.count:
        counts = [len(files) for files in found.values()]
        raise FOLDER.fault(
            folder,
            f"has {len(found)} people, {len(fitting)} of them with {choice.least} to {choice.most} photos (people have"
            f" {min(counts)} to {max(counts)})",
            f"take --people {len(fitting)}" if len(fitting) > 1 else "correct --least and --most, or add photos",
        )
    people = [_person(number, name, found[name], choice.seed) for number, name in enumerate(fitting[: choice.count], 1)]
    _check_that_they_differ(people)
    return people, len(fitting)


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()


def _person(number: int, name: str, files: Sequence[Path], seed: int) -> Person:
    photos = []
    for path in sorted(files, key=lambda path: _order(seed, f"{name}/{path.name}")):
        try:
            photos.append(Photo(path, hashlib.sha256(path.read_bytes()).hexdigest()))
        except OSError as error:
            raise PHOTO.fault(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    return Person(number, photos[0], tuple(photos[1:]))


def _check_that_they_differ(people: Sequence[Person]) -> None:
    known: dict[str, Photo] = {}
    for photo in (photo for person in people for photo in person.photos):
        if (other := known.setdefault(photo.digest, photo)) is not photo:
            raise PHOTO.fault(
                photo.path, f"is the same as {other.path.name}", "a photo judges once: take one of them out"
            )


def copy_concepts(people: Sequence[Person], folder: Path) -> list[Learned]:
    """The photos that are learned, under their people's numbers: reports of a batch name the file.

    Raises:
        EvaluationError: they could not be written.
    """
    learned = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for person in people:
            path = folder / f"{person.name}{person.concept.path.suffix.lower()}"
            if not path.exists():
                with replacing(path) as temporary:
                    shutil.copyfile(person.concept.path, temporary)
            learned.append(Learned(path, person.name, person.concept.digest))
    except OSError as error:
        raise FileKind("Folder of results", "name another with --out", EvaluationError).fault(
            folder, f"cannot be written to ({error.strerror})"
        ) from error
    return learned
