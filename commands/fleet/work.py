"""From a command's arguments to seats on a cluster, and through all jobs."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

import ray

from commands.batch.prepared import Work
from commands.batch.run import Told
from commands.batch.summary import Watch

from .fleet import Fleet
from .installation import installed
from .seat import Seat

log = logging.getLogger(__name__)


def work_through(options: argparse.Namespace, work: Work, cards: int, watch: Watch) -> None:
    """Every job that is left ends.

    Args:
        options: of the command.
        work: what is to be done.
        cards: that the cluster has.
        watch: shows how far it is.

    Raises:
        BatchError: no seat can be had, or the disk cannot be worked with.
    """
    on_cpu = options.cpu or cards == 0
    seats = options.seats or max(1, 0 if on_cpu else cards)
    if not on_cpu and seats > cards:
        log.warning(
            "%d seats are asked for, and the cluster has %d cards: the others come when there are more.", seats, cards
        )
    installation = replace(installed(options), cpu=on_cpu)
    resources = {"num_cpus": 1} if on_cpu else {"num_cpus": 0, "num_gpus": 1}
    made = ray.remote(Seat).options(max_restarts=-1, **resources)
    actors = [made.remote(work.plan.filling, work.results.batch, installation) for _ in range(seats)]
    Fleet(actors, work.left, work.results, options.wait, Told(watch.ended, watch.doing)).work()
