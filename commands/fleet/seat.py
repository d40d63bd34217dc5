"""What runs on a node: one graphics card (or processor), and one ComfyUI that has it for itself."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from dataclasses import dataclass, field
from importlib.metadata import version

import ray

from commands.batch.faults import Rejected, Unreachable
from commands.batch.filling import Filling
from commands.batch.jobs import Job
from commands.batch.outcome import failed
from commands.batch.results import Outcome
from commands.batch.run import MOST_LOSSES
from commands.comfyui.own_server import ComfyUI, Installation
from e4t_core.version import VERSION

from .drawing import drawn


@dataclass(frozen=True)
class Here:
    """What a seat says of itself.

    Attributes:
        node: the machine's name.
        worker: id of Ray's worker process.
        server: id of ComfyUI's process.
        versions: of what decides pictures, and of what talks to the driver.
    """

    node: str
    worker: int
    server: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Drawn:
    """What became of a job, and the concept files that were saved meanwhile, by name.

    Attributes:
        outcome: its pictures or its error.
        concepts: bytes of the files.
        starts: how often a ComfyUI had to be started anew.
    """

    outcome: Outcome
    concepts: dict[str, bytes] = field(default_factory=dict, repr=False)
    starts: int = 0


def versions() -> dict[str, str]:
    """Of this process, for comparison."""
    return {"this pack": VERSION, "Python": platform.python_version(), "ray": ray.__version__} | {
        name: version(name) for name in ("aiohttp", "pillow")
    }


class Seat:
    """A Ray actor. Ray starts it anew, perhaps elsewhere, when its process or its node ends.

    Args:
        filling: makes each job's workflow.
        batch: id of the batch.
        installation: the ComfyUI of its node.
    """

    def __init__(self, filling: Filling, batch: str, installation: Installation) -> None:
        self._filling, self._batch = filling, batch
        self._comfyui = ComfyUI(installation, batch)

    @ray.method(max_task_retries=-1)
    def ready(self) -> Here:
        """Starts ComfyUI; a call that was cut off by an end is made again by Ray.

        Raises:
            BatchError: it cannot be started, or cannot run the workflow.
        """
        if not self._comfyui.alive():
            self._comfyui.start(self._filling.workflow)
        comfyui = {"ComfyUI": self._comfyui.version}
        return Here(socket.gethostname(), os.getpid(), self._comfyui.pid, versions() | comfyui)

    def draw(self, job: Job, photo: bytes) -> Drawn:
        """One job, in a ComfyUI that is started anew where it ended.

        Args:
            job: any of the batch.
            photo: its photo, as a PNG.

        Raises:
            BatchError: ComfyUI cannot be started.
        """
        starts = 0
        for _ in range(MOST_LOSSES):
            if not self._comfyui.alive():
                # It may also have ended after the last job.
                self._comfyui.start(self._filling.workflow)
                starts += 1
            try:
                result = asyncio.run(drawn(self._comfyui, self._filling, self._batch, job, photo))
                return Drawn(result, self._comfyui.take_concepts(), starts)
            except Unreachable:
                # Also one that hangs.
                self._comfyui.stop()
            except Rejected as error:
                return Drawn(failed(error), starts=starts)
        return Drawn(Outcome(error=f"ComfyUI ended {MOST_LOSSES} times while it ran this job."), starts=starts)
