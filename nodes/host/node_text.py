"""Text on a node: shown to the client whose job runs and to nobody else, and kept in that job's record.

ComfyUI's ``send_progress_text`` without a client sends to all: whoever has a node with the same number then reads about
another person's photo.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from comfy_execution.utils import get_executing_context

# Nodes 2.0 draws the text as Markdown, where a bare line break is a space; two blanks before it keep it. The classic
# canvas draws every line break, and nobody sees the blanks.
LINE_BREAK = "  \n"
# The frontend ignores an empty text, so the old one would stay.
NOTHING = " "
# Of a job's ``extra_data``, which ``/history`` gives back: node id -> its last text's lines.
RECORD = "e4t_texts"
CLIENTS = 64


class ShownTexts:
    """Which nodes show a text of ours, by client: what a new job has to clear. The latest clients only."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[str, dict[str, str]] = OrderedDict()

    def add(self, client: str, node: str, job: str) -> None:
        """A node of a client shows the text of a job."""
        self._nodes.setdefault(client, {})[node] = job
        self._nodes.move_to_end(client)
        while len(self._nodes) > CLIENTS:
            self._nodes.popitem(last=False)

    def take(self, client: str, running: set[str], kept: set[str]) -> list[str]:
        """The nodes of a client, but for the ``kept`` ones, whose job no longer runs; they count as cleared."""
        shown = self._nodes.get(client, {})
        over = [node for node, job in list(shown.items()) if job not in running and node not in kept]
        for node in over:
            shown.pop(node, None)
        return over


SHOWN = ShownTexts()


def show_text(text: str) -> None:
    """Show a text, of one or more lines, on the node that is executing; it takes the place of the one before.

    Without a client (a job of a script that named none) it is only kept in the job's record.
    """
    context, server = get_executing_context(), current_server()
    if context is None or server is None:
        return
    _record(server, context.prompt_id, context.node_id, text)
    if server.client_id is not None:
        server.send_progress_text(text.replace("\n", LINE_BREAK), context.node_id, server.client_id)
        SHOWN.add(server.client_id, str(context.node_id), context.prompt_id)


def clear_at_every_new_job() -> None:
    """From now on, a new job of a client clears what other nodes than ours (samplers) still show of its last one.

    Our own nodes say something new whenever they run. Where ComfyUI has their result, what they say is still true.
    """
    server = current_server()
    if server is not None:
        server.add_on_prompt_handler(_before_job)


def _before_job(request: dict[str, Any]) -> dict[str, Any]:
    """Called by ComfyUI with every job that is posted; gives it back."""
    server, graph = current_server(), request.get("prompt")
    if server is None or not isinstance(graph, dict):
        return request
    kinds = {str(node): str(content.get("class_type")) for node, content in graph.items() if isinstance(content, dict)}
    ours = {node for node, kind in kinds.items() if kind.startswith("E4T")}
    if ours:
        # A place for texts of nodes that are not ours: their outputs in the history are not ours to write.
        extra = request.setdefault("extra_data", {})
        if isinstance(extra, dict):
            extra[RECORD] = {}
    client = request.get("client_id")
    if isinstance(client, str):
        running = {item[1] for item in server.prompt_queue.get_current_queue_volatile()[0]}
        for node in SHOWN.take(client, running, ours):
            server.send_progress_text(NOTHING, node, client)
    return request


def _record(server: Any, job: str, node: str, text: str) -> None:
    for item in server.prompt_queue.get_current_queue_volatile()[0]:
        if item[1] == job and isinstance(item[3], dict) and RECORD in item[3]:
            # Another thread may be writing this dictionary out as JSON: a key that is there may get another value.
            item[3][RECORD] = {**item[3][RECORD], str(node): text.split("\n")}


def current_server() -> Any:
    """ComfyUI's server, or none in a script."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)
