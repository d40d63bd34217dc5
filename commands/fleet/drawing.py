"""One job in a seat's own ComfyUI, from the photo to its pictures.

Apart from the seat, because Ray runs every class that has a coroutine in an event loop of its own.
"""

from __future__ import annotations

from commands.batch.faults import BatchError
from commands.batch.filling import Filling
from commands.batch.jobs import Job, prompt
from commands.batch.outcome import outcome
from commands.batch.results import Outcome
from commands.batch.run import LOOK_AFTER
from commands.comfyui.own_server import ComfyUI

LOOK_SECONDS = 5.0


async def drawn(comfyui: ComfyUI, filling: Filling, batch: str, job: Job, photo: bytes) -> Outcome:
    """What becomes of a job.

    Args:
        comfyui: runs.
        filling: makes the job's workflow.
        batch: id of the batch.
        job: the job.
        photo: its photo, as a PNG.

    Raises:
        Unreachable: ComfyUI ended, or hangs.
        BatchError: it refuses the job.
    """
    prompt_id = job.prompt_id(batch, 1)
    async with comfyui.server() as server, server.messages() as messages:
        # A call of Ray's that was cut off may have left the job in this life of the server.
        known = prompt_id in await server.queued() or await server.ended(prompt_id) is not None
        if not known:
            name = await server.upload(job.photo.sent_as, photo)
            await server.queue(prompt(filling, job, name, batch), prompt_id)
        while (record := await server.ended(prompt_id)) is None:
            waiting = await server.queued()
            if prompt_id not in waiting and await server.ended(prompt_id) is None:
                raise BatchError("ComfyUI lost the job from its queue.")
            told = await messages.next(LOOK_SECONDS)
            while told is not None and told.get("type") not in LOOK_AFTER:
                told = await messages.next(LOOK_SECONDS)
        return await outcome(server, record)
