"""The batch itself: it keeps a few jobs in the server's queue, and looks at what became of them.

The websocket only says when to look. What happened is read from the server's queue and history, which hold each job under an
id of ours; so a lost message, a lost connection or another start of this command change nothing. A server that was ended
has forgotten its queue; what it had saved is fetched, and the rest is queued again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from .api_workflow import Nodes
from .faults import BatchError, Rejected, Unreachable
from .filling import Filling
from .jobs import Job, prompt
from .outcome import failed, outcome, saved
from .photos import Photo, as_sent
from .results import Outcome, Results
from .server import Json, Messages, Server

log = logging.getLogger(__name__)

AHEAD = 4
"""Jobs in the server's queue: enough that it never waits, and few to lose."""
LOOK_SECONDS = 15.0
"""After so long without a message the server is asked."""
AGAIN_SECONDS = (1.0, 2.0, 5.0, 10.0)
"""Between attempts to reach a server; the last one goes on."""
MOST_LOSSES = 3
"""A job that was next when the server ended so often is what ends it."""
WITHDRAW_SECONDS = 5.0
"""How long the server may take to answer when a run is stopped."""
LOOK_AFTER = {"execution_success", "execution_error", "execution_interrupted", "status", "executing"}


@dataclass(frozen=True)
class Told:
    """What a run tells whoever watches.

    Attributes:
        ended: a job, and what became of it, kept already.
        doing: a short text about the job that runs.
    """

    ended: Callable[[Job, Outcome], None]
    doing: Callable[[str], None]


class Run:
    """One pass over the jobs that are left.

    Args:
        server: entered already.
        filling: makes each job's workflow.
        jobs: those that are left.
        results: takes what becomes of them.
        patience: seconds without a server after which the run ends.
        told: is told.
    """

    def __init__(
        self, server: Server, filling: Filling, jobs: list[Job], results: Results, patience: float, told: Told
    ) -> None:
        self._server, self._filling, self._results, self._told = server, filling, results, told
        self._patience = patience
        self._todo = deque(jobs)
        self._queued: dict[str, Job] = {}
        self._offered: tuple[str, asyncio.Task[None]] | None = None
        self._losses: dict[str, int] = {}
        self._uploaded: dict[str, str] = {}
        self._unusable: dict[str, Rejected] = {}

    async def work(self) -> None:
        """Every job ends, well or with an error.

        Raises:
            Unreachable: the server was away for longer than the patience.
            BatchError: the server or the disk cannot be worked with.
        """
        seen, pause = time.monotonic(), 0
        try:
            while self._todo or self._queued:
                try:
                    await self._server.check(self._filling.workflow)
                    async with self._server.messages() as messages:
                        seen, pause = time.monotonic(), 0
                        # Another life of the server may have other photos.
                        self._uploaded.clear()
                        known = await self._server.queued()
                        await self._look()
                        await self._follow(messages, known)
                except Unreachable as error:
                    if pause == 0:
                        seen = time.monotonic()
                        log.info("%s Waiting for it, up to %.0f seconds.", error, self._patience)
                    if time.monotonic() - seen > self._patience:
                        raise Unreachable(
                            f"{error} It did not come back within {self._patience:.0f} seconds: start it, and repeat the"
                            " command, which goes on."
                        ) from error
                    await asyncio.sleep(AGAIN_SECONDS[min(pause, len(AGAIN_SECONDS) - 1)])
                    pause += 1
        except asyncio.CancelledError:
            await self._withdraw()
            raise

    async def _follow(self, messages: Messages, known: set[str]) -> None:
        while True:
            while self._todo and len(self._queued) < AHEAD:
                await self._give(self._todo[0], known)
            if not self._queued:
                return
            told = await messages.next(LOOK_SECONDS)
            if told is None or told.get("type") in LOOK_AFTER:
                await self._look()
            elif told.get("type") == "progress_state":
                self._show(told["data"])

    def _id(self, job: Job) -> str:
        return job.prompt_id(self._results.batch, self._results.report.attempts(job.key) + 1)

    async def _give(self, job: Job, known: set[str]) -> None:
        """Makes sure that the server has a job, or its result; whichever it is, the job is not to be done any more."""
        prompt_id = self._id(job)
        if prompt_id not in known:
            if (record := await self._server.ended(prompt_id)) is not None:
                self._end(job, await outcome(self._server, record))
                return
            # A column of the table may change how many pictures a job draws.
            count = None if job.row.inputs else self._results.pictures_of_a_job()
            if (found := await saved(self._server, job, self._results.batch, count)) is not None:
                self._end(job, found)
                return
            try:
                photo = await self._photo(job.photo)
                await self._offer(prompt(self._filling, job, photo, self._results.batch), prompt_id)
            except Rejected as error:
                self._end(job, failed(error))
                return
        known.discard(prompt_id)
        self._todo.popleft()
        self._queued[prompt_id] = job

    async def _offer(self, workflow: Nodes, prompt_id: str) -> None:
        """Puts a job into the server's queue. A request that was sent is answered even if this run is stopped meanwhile: only
        then can the job be taken back."""
        asked = asyncio.create_task(self._server.queue(workflow, prompt_id))
        self._offered = prompt_id, asked
        await asyncio.shield(asked)

    async def _photo(self, photo: Photo) -> str:
        """What the server calls a photo, which it then has."""
        if photo.digest in self._unusable:
            raise self._unusable[photo.digest]
        if photo.digest not in self._uploaded:
            try:
                held = await asyncio.to_thread(as_sent, photo.path)
                self._uploaded[photo.digest] = await self._server.upload(photo.sent_as, held)
            except Rejected as error:
                self._unusable[photo.digest] = error
                raise
        return self._uploaded[photo.digest]

    async def _look(self) -> None:
        """Takes what ended, and takes back what the server has forgotten."""
        if not self._queued:
            return
        # In this order: what ends between the two questions is in the history by the second.
        waiting = await self._server.queued()
        lost = []
        for prompt_id, job in list(self._queued.items()):
            if (record := await self._server.ended(prompt_id)) is not None:
                result = await outcome(self._server, record)
                del self._queued[prompt_id]
                self._keep(job, result)
            elif prompt_id not in waiting:
                lost.append((prompt_id, job))
        for prompt_id, _ in lost:
            del self._queued[prompt_id]
        if lost:
            self._lose([job for _, job in lost])

    def _lose(self, jobs: list[Job]) -> None:
        log.info("The server forgot %d of the jobs in its queue: they are queued again.", len(jobs))
        first = jobs[0]
        self._losses[first.key] = self._losses.get(first.key, 0) + 1
        if self._losses[first.key] == MOST_LOSSES:
            jobs = jobs[1:]
            self._keep(first, Outcome(error=f"The server ended {MOST_LOSSES} times while this job was its next."))
        self._todo.extendleft(reversed(jobs))

    def _end(self, job: Job, result: Outcome) -> None:
        self._keep(job, result)
        self._todo.popleft()

    def _keep(self, job: Job, result: Outcome) -> None:
        self._results.add(job, result)
        self._told.ended(job, result)

    def _show(self, data: Json) -> None:
        job = self._queued.get(str(data.get("prompt_id")))
        nodes = data.get("nodes")
        if job is None or not isinstance(nodes, dict):
            return
        for number, state in nodes.items():
            if isinstance(state, dict) and state.get("state") == "running" and state.get("max", 0) > 1:
                title = self._filling.title(str(number))
                self._told.doing(f"{job.photo.concept}: {title} {state.get('value', 0):.0f}/{state['max']:.0f}")

    async def _withdraw(self) -> None:
        """Leaves nothing of ours in the queue of a server that goes on; what runs is fetched by the next command."""
        given = list(self._queued)
        if self._offered is not None:
            prompt_id, asked = self._offered
            given.append(prompt_id)
            with suppress(BatchError, asyncio.TimeoutError):
                await asyncio.wait_for(asked, WITHDRAW_SECONDS)
        with suppress(BatchError, asyncio.TimeoutError):
            await asyncio.wait_for(self._server.forget(given), WITHDRAW_SECONDS)
