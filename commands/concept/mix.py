"""``mix``: the weighted average of two to four concepts as a new concept file."""

from __future__ import annotations

import argparse
import logging
from datetime import datetime
from pathlib import Path

from commands.console import size
from e4t_core.concept import Concept
from e4t_core.files.concept_file import CONCEPT, About, load_concept, read_concept_info, save_concept
from e4t_core.files.concept_info import EXACT, RECIPE, WORD, ConceptInfo
from e4t_core.files.file_errors import shortened
from e4t_core.files.file_name import checked_name
from e4t_core.mix import MOST, MixError, mix
from e4t_core.trigger import check_trigger
from e4t_core.version import VERSION

from .places import absolute, output_places, weights_folder

log = logging.getLogger(__name__)

HELP = """\
Averages two to four concepts of one domain and one base model: someone who looks a little like each of them. It is the
node Mix E4T Concepts, with a file as its result. Recipes cannot be mixed: they are learned only where they are drawn.
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to a parser."""
    parser = commands.add_parser(
        "mix",
        help="average two to four concepts into a new one",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=absolute, metavar="FILE", help="a concept file")
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="one of each file; only their ratio counts (default: 1)"
    )
    parser.add_argument("--name", required=True, help="of the new file, without .safetensors")
    parser.add_argument(
        "--out", type=absolute, required=True, metavar="FOLDER", help="of the new file, such as models/embeddings/e4t"
    )
    parser.add_argument("--trigger", default="S*", help="what stands for the mix in prompts (default: S*)")
    parser.add_argument("--weights-folder", type=absolute, metavar="FOLDER", help="of all second files, old and new")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name; else it gets a number")
    parser.add_argument("--title", default="", help="what people call it (default: the name)")
    parser.add_argument("--author", default="", help="who made it")
    parser.add_argument("--license", default="", help="what others may do with it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The subcommand; its exit status.

    Raises:
        ValueError: a file, a name or a folder cannot be used, or the concepts do not belong together.
    """
    weights = options.weights or [1.0] * len(options.files)
    if not 2 <= len(options.files) <= MOST:
        raise MixError(f"A mix is of 2 to {MOST} concepts, not of {len(options.files)}: name that many files.")
    if len(weights) != len(options.files):
        raise MixError(f"{len(options.files)} files were named, but {len(weights)} weights: give one for each file.")
    name = checked_name(options.name)
    check_trigger(options.trigger)
    # Before the work, which takes a while: nothing of it is lost on a folder that is not there.
    places = output_places(options.out, options.weights_folder)
    infos = [read_concept_info(path) for path in options.files]
    _check_bodies(options.files, infos)
    concepts = []
    for path in options.files:
        log.info("Reading %s.", path)
        concepts.append(load_concept(path, [weights_folder(path.parent, options.weights_folder)])[0])
    mixed = mix(concepts, weights, options.trigger)
    about = About(
        title=options.title,
        author=options.author,
        license=options.license,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        pack_version=VERSION,
    )
    saved = save_concept(places, name, mixed, EXACT, about, options.overwrite)
    print(_told(options.files, concepts, weights, options.trigger))
    for note in mixed.notes:
        print(f"Note: {note}")
    print(
        f"Written: {shortened(str(saved.path))} ({size(saved.bytes)}). In stock prompts: embedding:e4t/{saved.path.stem}"
    )
    if saved.weights is not None:
        print(f"To share it, give both files; the second is {shortened(str(saved.weights))}.")
    return 0


def _check_bodies(files: list[Path], infos: list[ConceptInfo]) -> None:
    """Check that the files hold what can be mixed, before any of them is read."""
    for path, info in zip(files, infos, strict=True):
        if info.body == RECIPE:
            raise CONCEPT.fault(
                path,
                "is a recipe, which holds nothing to mix yet",
                "in ComfyUI load it, wire it into Apply E4T Concept, and save what that gives as exact",
            )
        if info.body == WORD and any((other.body, other.method) == (EXACT, info.method) for other in infos):
            raise CONCEPT.fault(
                path,
                "keeps its fixed word alone, but another one is exact",
                "mix files that keep the same, such as this concept saved as exact",
            )


def _told(files: list[Path], concepts: list[Concept], weights: list[float], trigger: str) -> str:
    """The mix as a formula: "S* = 67 % Anna* + 33 % Ben*"; of files whose triggers are alike, their names."""
    called = [concept.trigger for concept in concepts]
    called = called if len(set(called)) == len(called) else [path.stem for path in files]
    parts = [f"{100 * w / sum(weights):.0f} % {one}" for one, w in zip(called, weights, strict=True) if w > 0]
    return f"{trigger} = {' + '.join(parts)}"
