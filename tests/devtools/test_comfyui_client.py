"""The client follows a workflow over a real WebSocket, and says plainly when ComfyUI is gone or silent."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from aiohttp import web

from devtools import comfyui_client
from devtools.comfyui_client import Client
from devtools.comfyui_server import HOST, free_port

Talk = Callable[[web.WebSocketResponse], Awaitable[None]]
PROMPT = "7c1f"


def event(kind: str, **data: object) -> str:
    return json.dumps({"type": kind, "data": {"prompt_id": PROMPT, **data}})


@asynccontextmanager
async def serving(talk: Talk, port: int) -> AsyncIterator[None]:
    queued = asyncio.Event()

    async def messages(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await queued.wait()
        await talk(socket)
        return socket

    async def prompt(request: web.Request) -> web.Response:
        queued.set()
        return web.json_response({"prompt_id": PROMPT})

    async def history(request: web.Request) -> web.Response:
        return web.json_response({PROMPT: {"outputs": {"1": {"text": ["done"]}}}})

    app = web.Application()
    app.add_routes([web.get("/ws", messages), web.post("/prompt", prompt), web.get("/history/{id}", history)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    yield
    await runner.cleanup()


@contextmanager
def client_of(talk: Talk) -> Iterator[Client]:
    """A client of a server on the loopback interface that says what `talk` says once a workflow is queued."""
    port, started, ended = free_port(), threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(talk, port):
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait()
    try:
        yield Client(HOST, port)
    finally:
        ended.set()
        thread.join()


def test_texts_progress_and_the_end_arrive_between_pings_and_others_workflows() -> None:
    async def talk(socket: web.WebSocketResponse) -> None:
        await socket.send_str(event("executing", node="1"))
        await socket.ping()
        await socket.send_bytes(b"\0\0\0\3" + b"\0\0\0\1" + b"1" + "hälf".encode())
        await socket.send_str(json.dumps({"type": "execution_success", "data": {"prompt_id": "another"}}))
        await socket.send_str(event("progress_state", nodes={"1": {"state": "running", "value": 1, "max": 2}}))
        # Longer than one frame's 16-bit length.
        await socket.send_str(event("progress_state", nodes={}, padding="x" * 100_000))
        await socket.send_str(event("execution_success"))
        await socket.receive()

    with client_of(talk) as client:
        run = client.run({})
    assert run.status == "success"
    assert run.texts == {"1": ["hälf"]}
    assert run.progress == {"1": [(1, 2)]}
    assert run.outputs == {"1": {"text": ["done"]}}


def test_a_server_that_ends_is_a_lost_connection() -> None:
    async def talk(socket: web.WebSocketResponse) -> None:
        await socket.close()

    with client_of(talk) as client, pytest.raises(ConnectionError):
        client.run({})


def test_a_server_that_says_nothing_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui_client, "SILENCE_SECONDS", 0.5)

    async def talk(socket: web.WebSocketResponse) -> None:
        await socket.receive()

    with client_of(talk) as client, pytest.raises(TimeoutError):
        client.run({})


def test_no_server_is_a_refused_connection() -> None:
    with pytest.raises(ConnectionError):
        Client(HOST, free_port()).run({})


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(socket: web.WebSocketResponse) -> None:
        await socket.send_str(event("execution_success"))

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{HOST}:9")
    with client_of(talk) as client:
        assert client.run({}).status == "success"
