"""Ray, begun on this machine or joined elsewhere, and its faults in words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from commands.batch.faults import BatchError
from e4t_core.files.file_errors import shortened

STORE_BYTES = 256 * 2**20
"""For photos and pictures on their way, on this machine."""


@contextmanager
def cluster(address: str | None, seats: int | None) -> Iterator[int]:
    """Ray, while the block lasts.

    Args:
        address: of a cluster to join (``auto``, ``host:port``); none starts Ray on this machine.
        seats: how many this machine is to have, where it has no graphics card.

    Yields:
        The number of graphics cards that Ray knows.

    Raises:
        BatchError: there is no such cluster, or it has other versions.
    """
    # Ray reports its use to its makers otherwise; it reads this when it is begun.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without it Ray warns that seats without a card might see one; those run ComfyUI on the processor.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            processors = max(os.cpu_count() or 1, seats or 1)
            ray.init(
                address="local", num_cpus=processors, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BatchError(refusal(address, error)) from error
    try:
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()


def refusal(address: str | None, error: BaseException) -> str:
    """Why Ray does not begin, as one sentence or two that say what to do."""
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        return (
            f"The cluster at {address} has another Python or Ray than this command: install the same on all nodes, or run the"
            f" command with theirs. {shortened(text, 300)}"
        )
    if address is not None:
        return (
            f"No Ray cluster answers at {address}: start one with `ray start --head`, or correct --address."
            f" ({shortened(text, 160)})"
        )
    return f"Ray does not start on this machine: {shortened(text, 300)}"


def plain(error: BaseException) -> str:
    """What an actor's fault says, in one line, without its traceback.

    Args:
        error: that Ray raised; it wraps what the actor raised.
    """
    cause = getattr(error, "cause", None) or error
    text = " ".join(str(cause).split())
    _, missing, name = text.partition("No module named")
    if missing:
        module = shortened(name.strip(" '\"").split("'")[0], 60)
        return (
            f"A node has no module {module}: every node needs the clone of this repository at the same place, and the packages"
            " of docs/fleet.md."
        )
    return shortened(text, 400)
