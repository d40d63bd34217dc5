"""What `commands.batch` says of servers that are none, are locked, are old, or are not there."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from commands.batch.__main__ import main

WORKFLOW = Path(__file__).parents[2] / "workflows" / "api" / "one_photo.json"
Handler = Callable[[web.Request], Any]


class Site:
    """A web server of this process that answers everything with a function."""

    def __init__(self, answer: Handler) -> None:
        self.asked: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())

    async def _open(self) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.asked.append(request.path)
            given = self._answer(request)
            return await given if inspect.isawaitable(given) else given

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture
def site() -> Iterator[Callable[[Handler], Site]]:
    """Opens sites and ends them with the test."""
    opened: list[Site] = []

    def make(answer: Handler) -> Site:
        opened.append(Site(answer))
        return opened[-1]

    yield make
    for one in opened:
        one.stop()


@pytest.fixture
def batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command in this process: `batch(url, ...)` gives its exit status and what it said."""
    Image.new("RGB", (8, 8)).save(tmp_path / "anna.png")
    (tmp_path / "prompts.txt").write_text("S* in oil")

    def run(url: str, *more: str, workflow: Path = WORKFLOW) -> tuple[int, str]:
        status = main(
            [
                *("--server", url, "--workflow", str(workflow), "--images", str(tmp_path), "--wait", "0"),
                *("--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), *more),
            ]
        )
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return status, said

    return run


def comfyui(version: object = "0.30.0", nodes: dict[str, Any] | None = None) -> Handler:
    """The two answers that are asked for at the beginning."""

    def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/system_stats"):
            return web.json_response({"system": {"comfyui_version": version}})
        name = request.path.rpartition("/")[2]
        return web.json_response({name: {}} if nodes is None or name in nodes else {})

    return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda _: web.Response(text="<html>It works!</html>", content_type="text/html"),
            "answers a web page (HTTP 200)",
        ),
        (lambda _: web.Response(text="<html>Not found", status=404, content_type="text/html"), "a web page (HTTP 404)"),
        (lambda _: web.Response(text="hello"), "answers no JSON"),
        (lambda _: web.json_response(["hello"]), "does not say that it is a ComfyUI"),
        (lambda _: web.json_response({"system": {"os": "posix"}}), "does not say that it is a ComfyUI"),
        (lambda _: web.Response(status=401), "asks for a login (HTTP 401): give one with --header"),
        (lambda _: web.Response(status=403, text="<html>"), "asks for a login (HTTP 403)"),
        (lambda _: web.Response(status=302, headers={"Location": "/login?next=%2F"}), "leads to '/login?next=%2F'"),
        (lambda _: web.Response(status=502, text="<html>Bad gateway"), "the server is not there (HTTP 502)"),
        (lambda _: web.Response(status=500, text="Internal server error"), "has a fault (HTTP 500"),
        (comfyui("0.3.75"), "is ComfyUI 0.3.75, and this needs 0.30 or newer"),
        (comfyui(None), "does not say that it is a ComfyUI"),
        (comfyui(nodes={"KSampler"}), "has no node CLIPTextEncode, CheckpointLoaderSimple, E4TLoadDomain"),
    ],
)
def test_what_is_no_comfyui_to_work_with_is_said_in_one_sentence(
    site: Callable[[Handler], Site], batch: Callable[..., tuple[int, str]], answer: Handler, said: str
) -> None:
    status, told = batch(site(answer).url)
    assert status == 1
    assert said in told.splitlines()[-1]


def test_a_newer_comfyui_is_worked_with(site: Callable[[Handler], Site], batch: Callable[..., tuple[int, str]]) -> None:
    asked = site(comfyui("1.2.0rc1"))
    batch(asked.url)
    # Past the check of the nodes, to where no answer of the stand-in makes sense.
    assert "/ws" in asked.asked


def test_a_server_that_is_not_there_is_said_at_once(batch: Callable[..., tuple[int, str]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        status, told = batch(url, "--wait", "3600")
    assert status == 1
    assert f"No server answers at {url}" in told


def test_what_is_no_web_server_is_said(batch: Callable[..., tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.recv(1000)

        threading.Thread(target=greet, daemon=True).start()
        status, told = batch(f"http://127.0.0.1:{listening.getsockname()[1]}")
    assert status == 1
    assert "is no web server" in told


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:port", "C:\\ComfyUI"])
def test_what_is_no_address_is_said(batch: Callable[..., tuple[int, str]], url: str) -> None:
    status, told = batch(url)
    assert status == 1
    assert "is no address of a server" in told


def test_a_login_is_sent_and_never_printed(
    site: Callable[[Handler], Site], batch: Callable[..., tuple[int, str]]
) -> None:
    seen: list[dict[str, str]] = []

    def answer(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.Response(status=401)

    url = site(answer).url
    _, told = batch(url.replace("http://", "http://anna:secret@"))
    assert seen[-1]["Authorization"].startswith("Basic ")
    _, more = batch(url, "--header", "Authorization: Bearer secret")
    assert seen[-1]["Authorization"] == "Bearer secret"
    assert "secret" not in told + more


def test_a_path_before_the_routes_is_kept(
    site: Callable[[Handler], Site], batch: Callable[..., tuple[int, str]]
) -> None:
    asked = site(comfyui("0.1"))
    batch(f"{asked.url}/comfy/?token=1#x")
    assert asked.asked == ["/comfy/system_stats"]


def test_a_server_that_gives_jobs_ids_of_its_own_keeps_none(
    site: Callable[[Handler], Site], batch: Callable[..., tuple[int, str]]
) -> None:
    withdrawn: list[Any] = []
    known = comfyui()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith(("/system_stats", "/object_info")):
            return known(request)
        if request.path.startswith("/history"):
            return web.json_response({})
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.receive()
            return socket
        if request.path == "/queue" and request.method == "POST":
            withdrawn.append(await request.json())
            return web.Response()
        return web.json_response({"prompt_id": "of-its-own", "name": "x.png", "queue_running": [], "queue_pending": []})

    opened = site(answer)
    status, told = batch(opened.url)
    assert status == 1
    assert "gives jobs ids of its own" in told
    assert withdrawn == [{"delete": ["of-its-own"]}]


@pytest.mark.skipif(sys.platform == "win32", reason="stops it with a POSIX signal")
def test_a_job_that_is_on_its_way_when_the_command_is_stopped_is_taken_back(
    site: Callable[[Handler], Site], batch: Callable[..., tuple[int, str]]
) -> None:
    """The server puts it into its queue a moment after Ctrl-C."""
    waiting: list[str] = []
    known = comfyui()

    async def put(prompt_id: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.5)
        waiting.append(prompt_id)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith(("/system_stats", "/object_info")):
            return known(request)
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.receive()
            return socket
        if request.path == "/prompt":
            prompt_id = (await request.json())["prompt_id"]
            await asyncio.shield(put(prompt_id))
            return web.json_response({"prompt_id": prompt_id})
        if request.path == "/queue" and request.method == "POST":
            for prompt_id in (await request.json())["delete"]:
                waiting.remove(prompt_id)
            return web.Response()
        if request.path.startswith("/history"):
            return web.json_response({})
        return web.json_response({"name": "x.png", "queue_running": [], "queue_pending": []})

    opened = site(answer)
    status, told = batch(opened.url)
    assert status == 130
    assert "the same command goes on from there" in told
    assert opened.asked[-2:] == ["/prompt", "/queue"]
    assert not waiting


def test_a_wrong_workflow_is_said_before_any_server_is_asked(
    site: Callable[[Handler], Site], batch: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    asked = site(comfyui())
    status, told = batch(asked.url, workflow=WORKFLOW.parents[1] / "one_photo.json")
    assert status == 1
    assert "File, Export (API)" in told
    assert asked.asked == []
    assert not (tmp_path / "out").exists()


def test_every_prompt_without_the_trigger_is_noted(
    batch: Callable[..., tuple[int, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "prompts.txt").write_text("S* in oil\na face\na cat\n")
    batch("http://")
    assert "2 prompts do not hold the trigger S*, the first in line 2" in caplog.text
