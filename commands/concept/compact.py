"""``compact``: an exact concept as one small file."""

from __future__ import annotations

import argparse
import logging
from datetime import datetime

from commands.console import size
from e4t_core.files.compact_body import CompactSettings
from e4t_core.files.concept_compact import with_untuned
from e4t_core.files.concept_file import CONCEPT, load_concept, read_concept_info
from e4t_core.files.concept_info import COMPACT, EXACT
from e4t_core.files.concept_saving import About, save_concept
from e4t_core.files.domain_file import DOMAIN, load_domain
from e4t_core.files.file_errors import shortened
from e4t_core.files.file_name import checked_name
from e4t_core.version import VERSION

from .places import absolute, output_places, weights_folder

log = logging.getLogger(__name__)

HELP = """\
Makes one small file of an exact concept: its weight changes as thin factors of a few bits. Where the domain file is
installed the word is refined, elsewhere it is fixed. It is what Save E4T Concept does with keeps = compact.
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to a parser."""
    parser = commands.add_parser(
        "compact",
        help="make one small file of an exact concept",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=absolute, metavar="FILE", help="an exact concept file")
    parser.add_argument(
        "--domain", type=absolute, required=True, metavar="FILE", help="the domain file that it was learned in"
    )
    parser.add_argument("--name", required=True, help="of the new file, without .safetensors")
    parser.add_argument(
        "--out", type=absolute, required=True, metavar="FOLDER", help="of the new file, such as models/embeddings/e4t"
    )
    parser.add_argument(
        "--rank", type=int, default=CompactSettings().rank, help="of the factors (default: %(default)s)"
    )
    parser.add_argument(
        "--minor-rank",
        type=int,
        default=CompactSettings().minor_rank,
        help="of self-attention and feed-forward, which matter least (default: %(default)s)",
    )
    parser.add_argument("--bits", type=int, default=CompactSettings().bits, help="of a number (default: %(default)s)")
    parser.add_argument("--weights-folder", type=absolute, metavar="FOLDER", help="of the second file")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name; else it gets a number")
    parser.set_defaults(run=run)


def _settings(options: argparse.Namespace) -> CompactSettings:
    return CompactSettings(rank=options.rank, minor_rank=options.minor_rank, bits=options.bits)


def run(options: argparse.Namespace) -> int:
    """The subcommand; its exit status.

    Raises:
        ValueError: a file, a name, a folder or a number cannot be used.
    """
    name, settings = checked_name(options.name), _settings(options)
    places = output_places(options.out, options.weights_folder)
    info = read_concept_info(options.file)
    if info.body != EXACT:
        raise CONCEPT.fault(options.file, f"keeps {info.body!r}, not 'exact'", "name an exact concept file")
    domain = load_domain(options.domain)
    if domain.fingerprint != info.domain_fingerprint:
        raise DOMAIN.fault(
            options.domain,
            f"is not the domain of {shortened(options.file.name, 60)}, {info.domain_name!r} ({info.domain_fingerprint[:12]})",
            "name the file that it was learned in",
        )
    log.info("Reading %s.", options.file)
    concept, _ = load_concept(options.file, [weights_folder(options.file.parent, options.weights_folder)])
    about = About(
        title=info.title,
        author=info.author,
        license=info.license,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        pack_version=VERSION,
    )
    saved = save_concept(
        places, name, with_untuned(concept, domain), COMPACT, about, options.overwrite, compact=settings
    )
    print(
        f"Written: {shortened(str(saved.path))} ({size(saved.bytes)}). In stock prompts: embedding:e4t/{saved.path.stem}"
    )
    return 0
