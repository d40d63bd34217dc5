"""The jobs that are left, drawn by one running ComfyUI."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tqdm.contrib.logging import logging_redirect_tqdm

from commands.interruptible import left_to_asyncio

from .prepared import Work
from .run import Run, Told
from .server import Server
from .summary import Watch


def draw(work: Work, url: str, headers: Mapping[str, str], patience: float) -> None:
    """Draws them, and gives the folder of results to the next command, however it ends.

    Args:
        work: what is to do.
        url: of the server.
        headers: sent with every request.
        patience: seconds without a server after which it ends.

    Raises:
        BatchError: the server or the disk cannot be worked with.
    """
    try:
        if work.left:
            with logging_redirect_tqdm(), Watch(work) as watch, left_to_asyncio():
                asyncio.run(_drawn(work, url, headers, patience, watch))
    finally:
        # Also after an interruption: the report is for whoever looks at it meanwhile.
        work.results.report.tidy(work.plan.jobs)
        work.results.close()


async def _drawn(work: Work, url: str, headers: Mapping[str, str], patience: float, watch: Watch) -> None:
    async with Server(url, work.results.batch, headers) as server:
        # A wrong address is said at once; only a server that was there is waited for.
        await server.check(work.plan.filling.workflow)
        told = Told(watch.ended, watch.doing)
        await Run(server, work.plan.filling, work.left, work.results, patience, told).work()
