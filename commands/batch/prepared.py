"""From a command's arguments to the jobs that are left, and the folder that takes what becomes of them."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass

from e4t_core.files.file_errors import shortened

from .api_workflow import read_workflow
from .filling import Filling
from .jobs import Job, Plan
from .photos import find_photos
from .prompts import read_prompts
from .results import Results
from .slots import find_slots, trigger

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a command is to do.

    Attributes:
        plan: all jobs.
        left: those that are not done.
        results: the folder, held until it is closed.
    """

    plan: Plan
    left: list[Job]
    results: Results


def prepare(options: argparse.Namespace) -> Work:
    """Reads and checks everything that the arguments name, says what is remarkable about it, and takes the folder.

    Raises:
        BatchError: something cannot be used; nothing was done then.
    """
    workflow = read_workflow(options.workflow.absolute(), learns=not (options.photo and options.prompt))
    rows = read_prompts(options.prompts.absolute())
    slots = find_slots(workflow, options.photo, options.prompt, options.seed)
    photos, others = find_photos(options.images.absolute())
    plan = Plan(Filling(workflow, slots, rows), photos, rows)
    log.info("%d photos, %d prompts: %d jobs", len(photos), len(rows), len(plan.jobs))
    if others:
        log.info("Passed over in %s: %s.", options.images, shortened(", ".join(others)))
    if plan.repeated:
        log.info("%d jobs are repeated in the prompts and are drawn once.", plan.repeated)
    word = trigger(workflow)
    without = [row for row in rows if word is not None and word not in row.prompt]
    if without:
        log.warning(
            "%d prompts do not hold the trigger %s, the first in line %d: they are drawn without what is learned.",
            len(without),
            word,
            without[0].line,
        )
    results = Results(options.out.absolute())
    left = [job for job in plan.jobs if not results.is_done(job, options.retry_failed)]
    if len(left) < len(plan.jobs):
        log.info("%d of them are done already.", len(plan.jobs) - len(left))
    return Work(plan, left, results)
