"""What the panels in the browser show (``web/js``): sent to the client whose job runs, and to nobody else.

It goes over ComfyUI's own websocket, as messages with a name of ours. Without a client nothing is sent: whatever matters is
said as text on the node and in the job's record as well (see ``node_text``). Pictures of a photo are only sent, never kept.
"""

from __future__ import annotations

from typing import Any

from comfy_execution.utils import get_executing_context

from ...e4t_core.concept import Concept
from .node_text import current_server

# The message of a node that learns.
LEARNING = "e4t.learning"
# The message of a node that samples: how far each word went.
WORDS = "e4t.words"
# Of a node's outputs, which a job's history keeps: the last message of its learning, as a list of one.
LEARNED = "e4t_learning"
# The same of a node that loads or applies a concept: what concept that is.
CONCEPT = "e4t_concept"


def card(concept: Concept, title: str = "", kept: str = "") -> list[dict[str, str]]:
    """What the card on a node says of a concept; a list of one.

    Args:
        title: what people call it.
        kept: what of it a file keeps.
    """
    return [
        {
            "concept": concept.fingerprint,
            "trigger": concept.trigger,
            "title": title,
            "method": concept.method,
            "base": concept.base_name,
            "domain": concept.domain_name,
            "kept": kept,
        }
    ]


def is_watched() -> bool:
    """Whether a client follows the job that runs."""
    server = current_server()
    return get_executing_context() is not None and server is not None and server.client_id is not None


def send(message: str, content: dict[str, Any]) -> None:
    """Send a table of JSON's types to the client whose job runs, with the node that is executing and its workflow."""
    context, server = get_executing_context(), current_server()
    if context is None or server is None or server.client_id is None:
        return
    where = {
        "node": str(context.node_id),
        "prompt_id": context.prompt_id,
        "workflow": _workflow(server, context.prompt_id),
    }
    server.send_sync(message, {**where, **content}, server.client_id)


def _workflow(server: Any, job: str) -> str:
    """The id of the workflow that a job came from: nodes of others have the same numbers. Empty where it has none."""
    for item in server.prompt_queue.get_current_queue_volatile()[0]:
        if item[1] == job and isinstance(item[3], dict):
            workflow = (item[3].get("extra_pnginfo") or {}).get("workflow")
            return str(workflow.get("id") or "") if isinstance(workflow, dict) else ""
    return ""
