"""``info``: a card of every file, or the same as JSON for scripts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from commands.console import size
from e4t_core.files.checked_file import read_header
from e4t_core.files.concept_file import CONCEPT, WEIGHTS, read_concept_info, weights_path
from e4t_core.files.concept_info import EXACT, RECIPE, RECOVERABLE, WORD, ConceptInfo
from e4t_core.files.file_errors import FileError, shortened
from e4t_core.loop_settings import LoopSettings
from e4t_core.settings import settings_of, shown

from .places import absolute, weights_folder
from .preview import FILES, write_preview

HELP = """\
Prints a card of each concept file: trigger, title, how and on what it was learned, what the file keeps, who made it. No
more than a file's description is read, however large it is.
"""
KEEPS = {
    EXACT: "exact: all of it, without loss",
    RECIPE: "recipe: what learns it again",
    WORD: "word: its fixed word alone",
}
HASH = 12  # characters of a hash that are enough to tell two apart


@dataclasses.dataclass(frozen=True)
class Card:
    """What there is to know of a concept file.

    Attributes:
        path: of the file.
        info: its description.
        family: of its base model, as the file says ("SD 1").
        bytes: of the file.
        weights: the second file, where there is one.
        weights_bytes: of that; -1 if it is missing.
        thumbnail: its preview as a data URI; empty if there is none.
    """

    path: Path
    info: ConceptInfo
    family: str
    bytes: int
    weights: Path | None
    weights_bytes: int
    thumbnail: str

    @classmethod
    def of(cls, path: Path, given: Path | None = None) -> Card:
        """A file's card; its second file may lie in ``given``.

        Raises:
            ConceptFileError: it is no concept file, or damaged.
        """
        info = read_concept_info(path)
        texts = read_header(path, CONCEPT).metadata
        second, count = None, 0
        if info.weights_file:
            second = weights_path(path, info, [weights_folder(path.parent, given)])
            count = second.stat().st_size if second.is_file() else -1
        family = shortened(texts.get("modelspec.base_model", ""), 40)
        return cls(path, info, family, path.stat().st_size, second, count, texts.get("modelspec.thumbnail", ""))

    def missing(self) -> FileError | None:
        """What to say of a second file that is not there."""
        if self.weights is None or self.weights_bytes >= 0:
            return None
        folder = shortened(str(self.weights.parent), 120, keep_end=True)
        return WEIGHTS.fault(self.weights.name, f"was not found in {folder}", WEIGHTS.missing)

    def lines(self) -> list[str]:
        """The card as a person reads it."""
        info = self.info
        base = [self.family, f"predicts {info.prediction}" if info.prediction else "", info.base_fingerprint[:HASH]]
        rows = {
            "trigger": info.trigger,
            "title": info.title,
            "method": info.method,
            "keeps": KEEPS[info.body],
            "base": _named(info.base_name or "unknown name", base),
            "domain": _named(info.domain_name, [info.domain_fingerprint[:HASH]]) if info.domain_name else "",
            "word": info.word,
            "learned": self._learned(),
            "settings": _listed(changed(info.loop_settings()), "the defaults"),
            "drawn": _listed(changed(info.sampling_settings()), "as learned, the word refined at every step"),
            "size": self._size(),
            "saved": " ".join(
                filter(None, (info.created, f"by version {info.pack_version}" * bool(info.pack_version)))
            ),
            "author": info.author,
            "license": info.license,
            "preview": f"yes, --preview FILE{_kinds()} writes it" if self.thumbnail else "none",
            "hash": info.fingerprint[:HASH],
        }
        told = [f"  {name:<9} {' '.join(text.split())}" for name, text in rows.items() if text]
        notes = [f"  {' '.join(note.split())}" for note in (*info.notes, *([RECOVERABLE] * (info.body == RECIPE)))]
        return [shortened(str(self.path)), *told, *notes]

    def table(self) -> dict[str, Any]:
        """The card for scripts: the description as it stands in the file, and what else is known."""
        info = dataclasses.asdict(self.info)
        return {
            "file": str(self.path),
            "bytes": self.bytes,
            "second_file": None if self.weights is None else str(self.weights),
            "second_file_bytes": None if self.weights is None or self.weights_bytes < 0 else self.weights_bytes,
            "base_family": self.family,
            "has_preview": bool(self.thumbnail),
            "photo_can_be_recovered": self.info.body == RECIPE,
            "changed_settings": changed(self.info.loop_settings()),
            "changed_sampling": changed(self.info.sampling_settings()),
            **info,
        }

    def _learned(self) -> str:
        info, steps = self.info, self.info.loop_settings().steps
        losses = f", loss {info.losses[0]:.4f} -> {info.losses[-1]:.4f}" if info.losses else ""
        return f"{steps} steps{losses}, seed {info.seed}"

    def _size(self) -> str:
        if self.weights is None:
            return size(self.bytes)
        second = "missing" if self.weights_bytes < 0 else size(self.weights_bytes)
        return f"{size(self.bytes)}, and {self.weights.name}: {second}"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to a parser."""
    parser = commands.add_parser(
        "info",
        help="print what a concept file says of itself",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=absolute, metavar="FILE", help="a concept file")
    parser.add_argument("--json", action="store_true", help="print one JSON list, for scripts")
    parser.add_argument(
        "--preview", type=absolute, metavar="FILE", help=f"write the preview picture{_kinds()}; of one file"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a picture that is there; else it gets a number"
    )
    parser.add_argument(
        "--weights-folder", type=absolute, metavar="FOLDER", help="of the second files of exact concepts"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The subcommand; its exit status: 1 if a file or its second file cannot be used, after the cards of all others.

    Raises:
        ValueError: there is no preview to write, or it cannot be written.
    """
    if options.preview is not None and len(options.files) > 1:
        raise ValueError(f"--preview writes one picture, but {len(options.files)} files were named: name one.")
    cards: list[Card] = []
    faults: list[Exception] = []
    for path in options.files:
        try:
            card = Card.of(path, options.weights_folder)
        except (FileError, OSError) as error:
            faults.append(error)
            continue
        cards.append(card)
        missing = card.missing()
        faults += [missing] if missing is not None else []
    if options.json:
        print(json.dumps([card.table() for card in cards], indent=2))
    elif cards:
        print("\n\n".join("\n".join(card.lines()) for card in cards))
    for fault in faults:
        print(shortened(str(fault)), file=sys.stderr)
    if options.preview is not None and cards:
        written = write_preview(cards[0].path, cards[0].thumbnail, options.preview, options.overwrite)
        print(f"Written: {shortened(str(written))} ({size(written.stat().st_size)})", file=sys.stderr)
    return 1 if faults else 0


def changed(settings: object) -> dict[str, Any]:
    """The settings that are not their defaults, by name; of tuning, those that count once the photos are known."""
    usual = type(settings)()
    usual = usual.for_photos(1) if isinstance(usual, LoopSettings) else usual
    found = {name: (getattr(settings, name), getattr(usual, name)) for name in settings_of(type(settings))}
    return {name: value for name, (value, default) in found.items() if value != default}


def _listed(values: dict[str, Any], otherwise: str) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items()) or otherwise


def _named(name: str, parts: list[str]) -> str:
    inside = ", ".join(filter(None, parts))
    return f"{name} ({inside})" if inside else name


def _kinds() -> str:
    return f" ({', '.join(ending for endings in FILES.values() for ending in endings)})"
