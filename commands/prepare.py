"""``python -m commands.prepare LAYOUT SOURCE TARGET``: turns a data set as it is downloaded into shards.

LAYOUT is ffhq, celeba-hq, lsun-cat, wikiart, or folder (any pictures). Pictures are shuffled once, with a seed, so that
neighbors in a shard have nothing in common; they are made small enough (``--side``) and stored as JPEG, WebP or PNG, or
as they are (``--side 0``). What cannot be decoded is skipped, counted and named in the manifest.

An interrupted run goes on: a shard is written beside its place and moved there when it is whole, and is made again only
if ``--retry-corrupt`` asks for another attempt at what could not be decoded.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from .interruptible import GOES_ON, importing, interruptible

log = logging.getLogger(__name__)
WORST_SHARE = 0.01


@interruptible(GOES_ON)
def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0, 1 after a fault, 130 after Ctrl-C."""
    with importing(GOES_ON):
        from tqdm.contrib.logging import logging_redirect_tqdm

        from .pretrain.data.dataset_layouts import LAYOUTS
        from .pretrain.data.pictures import DataError
        from .pretrain.data.preparation import WRITTEN, Preparation
        from .pretrain.data.prepare_shards import prepare
        from .pretrain.data.shard_source import MANIFEST

    parser = argparse.ArgumentParser(
        prog="commands.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("source", type=Path, help="folder of the unpacked data set")
    parser.add_argument("target", type=Path, help="folder of the shards")
    parser.add_argument("--side", type=int, default=512, help="shorter side in pixels; 0 stores files as they are")
    parser.add_argument("--picture", choices=WRITTEN, default="jpg")
    parser.add_argument("--quality", type=int, default=95)
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--licence", default="", help="of the data (default: what its publishers state)")
    parser.add_argument("--workers", type=int, default=0, help="threads (default: one per processor)")
    parser.add_argument(
        "--retry-corrupt", action="store_true", help="make shards again that lack pictures, after those were mended"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        preparation = Preparation(
            options.layout, options.side, options.picture, options.quality, options.per_shard, options.seed
        )
        with logging_redirect_tqdm():
            manifest = prepare(
                options.source,
                options.target,
                preparation,
                options.licence,
                options.workers,
                options.retry_corrupt,
            )
    except DataError as error:
        log.error("%s", error)
        return 1
    except OSError as error:
        log.error("Writing to %s failed (%s): mend that and repeat the command, it goes on.", options.target, error)
        return 1
    log.info(
        "%d pictures in %d shards, %.2f GB, %d corrupt skipped; license: %s; %s",
        manifest["samples"],
        len(manifest["shards"]),
        manifest["bytes"] / 1e9,
        manifest["corrupt"],
        manifest["licence"],
        options.target / MANIFEST,
    )
    if manifest["corrupt"] > WORST_SHARE * (manifest["samples"] + manifest["corrupt"]):
        log.warning(
            "More than %.0f %% of the data set is corrupt: download it again, then repeat the command with --retry-corrupt.",
            100 * WORST_SHARE,
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
