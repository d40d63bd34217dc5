"""The driver: it hands the photos of a plan to seats, and keeps what comes back.

All jobs of a photo go to one seat, because it has learned it. What a seat loses goes back to the front: a job is known by
its content, so if two seats should do it, it is one file and one line all the same.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from commands.batch.faults import BatchError, Rejected
from commands.batch.jobs import Job
from commands.batch.outcome import failed
from commands.batch.photos import as_sent
from commands.batch.results import Outcome, Results
from commands.batch.run import MOST_LOSSES, Told
from e4t_core.files.whole_file import replacing

from .cluster import plain
from .seat import Drawn, Here, versions

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
LEAST_SHARED = 16
"""Of a photo with so many jobs left, an idle seat takes half, and learns it once more."""
CONCEPTS = "concepts"
Handle = Any
"""Of a Ray actor."""


@dataclass(eq=False)
class Place:
    """A seat as the driver sees it.

    Attributes:
        number: from 1.
        actor: the handle.
        jobs: what it has still to do of its photo.
        photo: the photo's bytes, in Ray's store.
        here: what it said of itself; none while it starts.
    """

    number: int
    actor: Handle
    jobs: deque[Job] = field(default_factory=deque)
    photo: Any = None
    here: Here | None = None


class Fleet:
    """One pass over the jobs that are left.

    Args:
        actors: the seats.
        jobs: those that are left, of one photo in a row.
        results: takes what becomes of them.
        patience: seconds without any seat after which the run ends.
        told: is told.
    """

    def __init__(
        self, actors: Sequence[Handle], jobs: Sequence[Job], results: Results, patience: float, told: Told
    ) -> None:
        self._places = [Place(number, actor) for number, actor in enumerate(actors, 1)]
        self._results, self._patience, self._told = results, patience, told
        self._photos: deque[deque[Job]] = deque()
        for job in jobs:
            if not self._photos or self._photos[-1][0].photo.digest != job.photo.digest:
                self._photos.append(deque())
            self._photos[-1].append(job)
        self._starting: dict[Any, Place] = {}
        self._drawing: dict[Any, tuple[Place, Job]] = {}
        self._losses: dict[str, int] = {}
        self._fault: BatchError | None = None

    def work(self) -> None:
        """Every job ends, well or with an error.

        Raises:
            BatchError: no seat can be had, or the disk cannot be worked with.
        """
        for place in self._places:
            self._start(place)
        seen = time.monotonic()
        while self._photos or self._drawing or any(place.jobs for place in self._places):
            self._hand_out()
            if self._drawing:
                seen = time.monotonic()
            elif not self._starting:
                if self._photos:
                    raise self._fault or BatchError("No seat is left to work with.")
                return
            elif time.monotonic() - seen > self._patience:
                raise BatchError(
                    f"No seat came up within {self._patience:.0f} seconds: see that the cluster has free cards (`ray status`),"
                    " and repeat the command, which goes on."
                )
            done, _ = ray.wait([*self._starting, *self._drawing], timeout=WAIT_SECONDS)
            for reference in done:
                if reference in self._starting:
                    self._started(self._starting.pop(reference), reference)
                else:
                    self._ended(*self._drawing.pop(reference), reference)

    def _start(self, place: Place) -> None:
        place.here = None
        self._starting[place.actor.ready.remote()] = place

    def _started(self, place: Place, reference: Any) -> None:
        try:
            place.here = ray.get(reference)
        except (RayError, BatchError) as error:
            # Others may be able to; if none is, this is what is said.
            self._fault = BatchError(f"Seat {place.number} cannot be used. {plain(error)}")
            log.warning("%s", self._fault)
            return
        here = place.here
        log.info(
            "Seat %d: node %s, worker %d, server %d, ComfyUI %s",
            *(place.number, here.node, here.worker, here.server, here.versions["ComfyUI"]),
        )
        self._compare(here)

    def _compare(self, here: Here) -> None:
        first = next(place.here for place in self._places if place.here is not None)
        others = versions() | {"ComfyUI": first.versions["ComfyUI"]}
        differing = [
            f"{name} {here.versions.get(name, 'none')} in place of {own}"
            for name, own in others.items()
            if here.versions.get(name) != own
        ]
        if differing:
            log.warning(
                "The node %s has %s: pictures may differ from other nodes'. Install the same there.",
                here.node,
                ", ".join(differing),
            )

    def _hand_out(self) -> None:
        busy = [place for place, _ in self._drawing.values()]
        for place in self._places:
            if place.here is not None and place not in busy:
                self._give(place)

    def _give(self, place: Place) -> None:
        while not place.jobs:
            if not (taken := self._next_photo()):
                return
            try:
                place.photo = ray.put(as_sent(taken[0].photo.path))
                place.jobs = taken
            except Rejected as error:
                for job in taken:
                    self._keep(job, failed(error))
        job = place.jobs.popleft()
        self._drawing[place.actor.draw.remote(job, place.photo)] = place, job
        self._told.doing(f"{len(self._drawing)} of {len(self._places)} seats draw")

    def _next_photo(self) -> deque[Job]:
        """The jobs of the next photo, or else the later half of those of a photo that has many."""
        if self._photos:
            return self._photos.popleft()
        longest = max(self._places, key=lambda place: len(place.jobs))
        if len(longest.jobs) < LEAST_SHARED:
            return deque()
        return deque(reversed([longest.jobs.pop() for _ in range(len(longest.jobs) // 2)]))

    def _ended(self, place: Place, job: Job, reference: Any) -> None:
        try:
            drawn: Drawn = ray.get(reference)
        except BatchError as error:
            # Its ComfyUI does not start any more: others may go on.
            self._fault = BatchError(f"Seat {place.number} cannot be used any more. {plain(error)}")
            log.warning("%s", self._fault)
            self._put_back(place, job)
            place.here = None
            return
        except RayTaskError as error:
            self._keep(job, Outcome(error=plain(error)))
            return
        except RayError:
            self._lose(place, job)
            return
        if drawn.starts:
            log.info("Seat %d had to start ComfyUI anew.", place.number)
        for name, held in drawn.concepts.items():
            write(self._results.folder / CONCEPTS / name, held)
        self._keep(job, drawn.outcome)

    def _lose(self, place: Place, job: Job) -> None:
        """A worker process or a node is gone; Ray makes another seat, and meanwhile the others go on."""
        self._losses[job.key] = self._losses.get(job.key, 0) + 1
        log.warning("Seat %d was lost while it drew: its jobs go to others, and Ray starts it anew.", place.number)
        if self._losses[job.key] == MOST_LOSSES:
            self._keep(job, Outcome(error=f"{MOST_LOSSES} seats were lost while they drew this job."))
            self._put_back(place)
        else:
            self._put_back(place, job)
        self._start(place)

    def _put_back(self, place: Place, job: Job | None = None) -> None:
        if job is not None:
            place.jobs.appendleft(job)
        if place.jobs:
            self._photos.appendleft(place.jobs)
        place.jobs = deque()

    def _keep(self, job: Job, result: Outcome) -> None:
        self._results.add(job, result)
        self._told.ended(job, result)


def write(path: Path, held: bytes) -> None:
    """A file, whole or not at all.

    Raises:
        BatchError: it could not be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(held)
    except OSError as error:
        raise BatchError(f"{path} could not be written ({error.strerror}): make room, or check the folder.") from error
