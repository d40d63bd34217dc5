"""Talks to a running ComfyUI over HTTP and its WebSocket, as any script of an artist would; runs in `.venv`."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import websocket

Workflow = dict[str, dict[str, Any]]
"""A workflow in the API format: node id -> {"class_type": ..., "inputs": {...}}."""

TEXT_EVENT = 3
"""The number of ComfyUI's binary message that carries a text to show on a node."""

ENDS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}
"""The messages that end a workflow, and what `Run.status` is then."""

OURS = "e4t."
"""How the names of this pack's own messages begin."""

SILENCE_SECONDS = 600.0
"""How long ComfyUI may say nothing while it works (loading a large model on a slow disk) before it counts as lost."""


_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""ComfyUI runs on this machine, which no proxy stands in front of."""


class Rejected(Exception):
    """ComfyUI answered `POST /prompt` with an error: `status` (400 for a bad workflow) and its JSON `answer`."""

    def __init__(self, status: int, answer: dict[str, Any]) -> None:
        self.status, self.answer = status, answer
        super().__init__(f"ComfyUI refused the workflow (HTTP {status}): {json.dumps(answer)}")


@dataclass
class Run:
    """What became of one queued workflow."""

    prompt_id: str
    status: str = "running"
    """"running", then "success", "error" or "interrupted"."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds of every node that was executed, by node id."""
    progress: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Every progress message (value, maximum) of every node."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """The progress texts that were shown on nodes."""
    panels: list[dict[str, Any]] = field(default_factory=list)
    """What this pack's panels in the browser were sent, in order: messages of names of its own."""
    error: dict[str, Any] = field(default_factory=dict)
    """The `execution_error` message, if any: node_id, node_type, exception_type, exception_message, …"""
    outputs: dict[str, Any] = field(default_factory=dict)
    """Outputs of the output nodes, as `/history` gives them."""


class Client:
    """One client of the ComfyUI at `http://host:port`."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.url = f"http://{host}:{port}"
        self.id = uuid.uuid4().hex

    def get(self, path: str, timeout: float = 60.0) -> bytes:
        """The body of `GET path`."""
        with _http.open(self.url + path, timeout=timeout) as answer:
            return answer.read()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to `POST path`; raises Rejected if the answer is an error."""
        request = urllib.request.Request(
            self.url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        try:
            with _http.open(request, timeout=60.0) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
            raise Rejected(error.code, json.loads(text or b"{}")) from error
        return json.loads(text) if text.strip() else {}

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What `/history` keeps of one workflow; empty until it has ended."""
        return json.loads(self.get(f"/history/{prompt_id}")).get(prompt_id, {})

    def view(self, image: dict[str, str]) -> bytes:
        """The bytes of an output picture, named as `outputs` names it (filename, subfolder, type)."""
        return self.get("/view?" + urllib.parse.urlencode(image))

    def interrupt(self) -> None:
        """Stops the workflow that runs now."""
        self.post("/interrupt", {})

    def run(self, workflow: Workflow, on_progress: Callable[[str, float, float], None] | None = None) -> Run:
        """Queues `workflow` and waits for its end; `on_progress(node id, value, maximum)` sees every step.

        Raises: Rejected (bad workflow), ConnectionError or TimeoutError (the server is gone or hangs).
        """
        with self._messages() as receive:
            run = Run(self.post("/prompt", {"prompt": workflow, "client_id": self.id})["prompt_id"])
            clock = _NodeClock(run.seconds)
            while run.status == "running":
                message = receive()
                if isinstance(message, bytes):
                    _take_text(run, message)
                    continue
                kind, data = (event := json.loads(message))["type"], event["data"]
                if data.get("prompt_id") != run.prompt_id:
                    continue
                if kind == "executing":
                    clock.start(data["node"])
                elif kind == "progress_state":
                    _take_progress(run, data["nodes"], on_progress)
                elif kind.startswith(OURS):
                    run.panels.append({"message": kind, **data})
                elif kind in ENDS:
                    clock.start(None)
                    run.status = ENDS[kind]
                    run.error = data if run.status == "error" else {}
        run.outputs = self._outputs(run.prompt_id)
        return run

    @contextlib.contextmanager
    def _messages(self) -> Iterator[Callable[[], str | bytes]]:
        """A function that waits for ComfyUI's next message to this client: text, or bytes for a binary one."""
        address = f"ws://{self.host}:{self.port}/ws?clientId={self.id}"
        # A connection made here, because the library would ask a proxy of the environment.
        plain = socket.create_connection((self.host, self.port), timeout=SILENCE_SECONDS)
        try:
            connection = websocket.create_connection(address, timeout=SILENCE_SECONDS, socket=plain)
        except websocket.WebSocketException as error:
            plain.close()
            raise ConnectionError(f"no WebSocket at {address}: {error}") from error

        def receive() -> str | bytes:
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException as error:
                raise TimeoutError(f"ComfyUI said nothing for {SILENCE_SECONDS:.0f} s") from error
            except websocket.WebSocketException as error:
                raise ConnectionError(f"the WebSocket ended: {error}") from error
            if not message:
                raise ConnectionError("ComfyUI closed the WebSocket")
            return message

        try:
            yield receive
        finally:
            # With the closing words of the protocol: ComfyUI writes warnings into its log without.
            connection.close(timeout=1)

    def _outputs(self, prompt_id: str) -> dict[str, Any]:
        """The outputs from `/history`, which is written shortly after the last WebSocket message."""
        for _ in range(100):
            entry = self.history(prompt_id)
            if entry:
                return entry.get("outputs", {})
            time.sleep(0.1)
        return {}


class _NodeClock:
    """Adds up the wall-clock seconds between one `executing` message and the next."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._node: str | None = None
        self._since = 0.0

    def start(self, node: str | None) -> None:
        """`node` is executed from now on; None: nothing is."""
        now = time.monotonic()
        if self._node is not None:
            self._seconds[self._node] = self._seconds.get(self._node, 0.0) + now - self._since
        self._node, self._since = node, now


def _take_progress(run: Run, nodes: dict[str, Any], on_progress: Callable[[str, float, float], None] | None) -> None:
    """Notes what is new in a `progress_state` message, which tells every node's state every time."""
    for node, state in nodes.items():
        step, seen = (state["value"], state["max"]), run.progress.setdefault(node, [])
        if state["state"] == "running" and step[0] > 0 and seen[-1:] != [step]:
            seen.append(step)
            if on_progress is not None:
                on_progress(node, *step)


def _take_text(run: Run, message: bytes) -> None:
    """Notes a progress text: 4 bytes event 3, 4 bytes length of the node id, node id, text. Previews are passed over."""
    if int.from_bytes(message[:4], "big") == TEXT_EVENT:
        end = 8 + int.from_bytes(message[4:8], "big")
        run.texts.setdefault(message[8:end].decode(), []).append(message[end:].decode())
