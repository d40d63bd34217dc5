"""A running ComfyUI as a batch sees it, through its documented routes and its websocket.

What it answers is one of three things: what was asked for; :class:`~.faults.Unreachable`, after which it is worth asking
again; or another :class:`~.faults.BatchError`, after which it is not.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, final

import aiohttp
from yarl import URL

from e4t_core.files.file_errors import shown

from .api_workflow import ApiWorkflow, Nodes
from .faults import BatchError, Rejected, Unreachable
from .filling import FOLDER

LEAST = (0, 30)
"""The oldest ComfyUI that the pack runs in, and that takes ids of jobs."""
ANSWER_SECONDS, CONNECT_SECONDS = 120.0, 10.0
HEARTBEAT_SECONDS = 20.0
LOGIN = (401, 403, 407)
RESTARTING = (502, 503, 504)
"""What a proxy says of a server that is not there."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
Json = dict[str, Any]


@final
class Server:
    """One ComfyUI; an asynchronous context manager.

    Args:
        url: ``http://host:port``, perhaps with ``user:password@`` and a path; https too.
        headers: sent with everything, for a login.
        client: what the server knows this client by; it tells only it about its jobs.

    Raises:
        BatchError: the address is none.
    """

    def __init__(self, url: str, client: str, headers: Mapping[str, str] | None = None) -> None:
        try:
            address = URL(url if "://" in url else f"http://{url}")
        except ValueError:
            address = URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise BatchError(f"{shown(url)} is no address of a server: write one such as http://127.0.0.1:8188.")
        self._address = address.with_query(None).with_fragment(None)
        self._client, self._headers = client, dict(headers or {})
        self.url = str(self._address.with_user(None))
        self.version = ""

    async def __aenter__(self) -> Server:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        # No proxy of the environment stands in front of this machine.
        is_near = self._address.host in LOOPBACK
        self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers, trust_env=not is_near)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def _at(self, path: str) -> URL:
        return self._address.joinpath(path.lstrip("/"))

    @asynccontextmanager
    async def _answer(self, method: str, path: str, **sent: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request, whose status may still be an error of the request's own."""
        try:
            # A redirect leads to a login page, or to https, and both have to be said.
            async with self._session.request(method, self._at(path), allow_redirects=False, **sent) as answer:
                if answer.status in RESTARTING:
                    raise Unreachable(
                        f"A proxy at {self.url} says that the server is not there (HTTP {answer.status})."
                    )
                if answer.status in LOGIN:
                    raise BatchError(
                        f"{self.url} asks for a login (HTTP {answer.status}): give one with --header or as"
                        " http://user:password@host."
                    )
                if 300 <= answer.status < 400:
                    target = shown(answer.headers.get("Location", ""), 120)
                    raise BatchError(
                        f"{self.url} leads to {target}: if that is a login page, give the login with --header; else name that"
                        " address with --server."
                    )
                yield answer
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, asyncio.TimeoutError, OSError) as error:
            raise Unreachable(f"No server answers at {self.url} ({_reason(error)}).") from error
        except aiohttp.ClientError as error:
            raise BatchError(
                f"What answers at {self.url} is no web server ({_reason(error)}): correct --server."
            ) from error

    async def _json(self, method: str, path: str, **sent: Any) -> Any:
        async with self._answer(method, path, **sent) as answer:
            return self._parsed(path, answer, await answer.read())

    def _parsed(self, path: str, answer: aiohttp.ClientResponse, body: bytes) -> Any:
        if answer.status == 200:
            try:
                return json.loads(body)
            except ValueError:
                pass
        if answer.status >= 500:
            raise Unreachable(f"{self.url} has a fault (HTTP {answer.status} to {path}).")
        kind = "a web page" if body.lstrip()[:1] == b"<" else "no JSON"
        raise BatchError(
            f"{self.url} answers {kind} (HTTP {answer.status}) to {path}, so it is no ComfyUI, or a login is in front of it: open"
            " the address in a browser, and correct --server."
        )

    async def check(self, workflow: ApiWorkflow) -> None:
        """Asks whether this is a ComfyUI that can run the workflow.

        Raises:
            Unreachable: nobody answers.
            BatchError: something else answers, an old version, or one without nodes of the workflow.
        """
        stats = await self._json("GET", "/system_stats")
        system = stats.get("system") if isinstance(stats, dict) else None
        version = system.get("comfyui_version") if isinstance(system, dict) else None
        numbers = tuple(map(int, re.findall(r"\d+", str(version))[:3]))
        if not numbers:
            raise BatchError(f"What answers at {self.url} does not say that it is a ComfyUI: correct --server.")
        self.version = str(version)
        if numbers < LEAST:
            least = ".".join(map(str, LEAST))
            raise BatchError(f"{self.url} is ComfyUI {self.version}, and this needs {least} or newer: update it.")
        missing = [name for name in workflow.classes() if not await self._json("GET", f"/object_info/{name}")]
        if missing:
            names = ", ".join(missing)
            raise BatchError(
                f"The ComfyUI at {self.url} has no node {names}: install this pack (or the pack of that node) there, and restart"
                " it."
            )

    async def upload(self, name: str, photo: bytes) -> str:
        """Gives the server a photo; what a workflow calls it there.

        Raises:
            Rejected: the server does not take it.
        """
        form = aiohttp.FormData()
        form.add_field("image", photo, filename=name, content_type="image/png")
        form.add_field("subfolder", FOLDER)
        async with self._answer("POST", "/upload/image", data=form) as answer:
            if answer.status == 413:
                raise Rejected(f"The server takes no photo of {len(photo) / 1e6:.0f} MB: make it smaller.")
            if answer.status == 400 or answer.status >= 500:
                raise Rejected(f"The server does not take the photo (HTTP {answer.status}).")
            # A file that the server has under the name already, whole and the same, stays; any other gives this one a number.
            taken = self._parsed("/upload/image", answer, await answer.read())
        return f"{taken['subfolder']}/{taken['name']}" if taken.get("subfolder") else str(taken["name"])

    async def queue(self, prompt: Nodes, prompt_id: str) -> None:
        """Puts a job into the server's queue under an id.

        Raises:
            Rejected: the server refuses the workflow as it is filled.
            BatchError: it gives ids of its own.
        """
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": self._client}
        async with self._answer("POST", "/prompt", json=body) as answer:
            held = await answer.read()
            if answer.status == 400:
                raise Rejected(_refusal(held))
            if answer.status == 413:
                raise Rejected("The server finds the workflow too large.")
            if answer.status >= 500:
                raise Rejected(f"The server fails on the workflow (HTTP {answer.status}): its log says why.")
            queued = self._parsed("/prompt", answer, held)
        if queued.get("prompt_id") != prompt_id:
            await self.forget([str(queued.get("prompt_id"))])
            raise BatchError(
                f"The ComfyUI {self.version} at {self.url} gives jobs ids of its own, so that none could be found again after an"
                " interruption: update it."
            )

    async def queued(self) -> set[str]:
        """Ids of all jobs that wait or run."""
        queue = await self._json("GET", "/queue")
        return {item[1] for part in ("queue_running", "queue_pending") for item in queue.get(part, [])}

    async def ended(self, prompt_id: str) -> Json | None:
        """The server's record of a job that ended, or none."""
        entry: Json | None = (await self._json("GET", f"/history/{prompt_id}")).get(prompt_id)
        return entry

    async def forget(self, prompt_ids: list[str]) -> None:
        """Takes jobs that wait out of the queue; what runs goes on."""
        async with self._answer("POST", "/queue", json={"delete": prompt_ids}):
            pass

    async def file(self, place: Mapping[str, str]) -> bytes | None:
        """An output file, named as records name it (filename, subfolder, type); none where it is not there."""
        async with self._answer("GET", "/view", params=dict(place)) as answer:
            return await answer.read() if answer.status == 200 else None

    @asynccontextmanager
    async def messages(self) -> AsyncIterator[Messages]:
        """What the server tells this client, while the block lasts.

        Raises:
            Unreachable: there is no connection.
        """
        address = self._at("/ws").with_query(clientId=self._client)
        try:
            socket = await self._session.ws_connect(address, heartbeat=HEARTBEAT_SECONDS, max_msg_size=0)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise Unreachable(f"No websocket at {self.url} ({_reason(error)}).") from error
        try:
            yield Messages(socket)
        finally:
            await socket.close()


class Messages:
    """The messages of one connection."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._socket = socket

    async def next(self, seconds: float) -> Json | None:
        """The next message (``type``, ``data``), or none after a while, or of a kind that is not for people.

        Raises:
            Unreachable: the connection ended.
        """
        try:
            message = await self._socket.receive(seconds)
        except asyncio.TimeoutError:
            return None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"The connection ended ({_reason(error)}).") from error
        if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
            raise Unreachable("The server ended the connection.")
        if message.type is aiohttp.WSMsgType.ERROR:
            raise Unreachable(f"The connection ended ({_reason(message.data)}).")
        if message.type is not aiohttp.WSMsgType.TEXT:
            return None
        try:
            told = json.loads(message.data)
        except ValueError:
            return None
        return told if isinstance(told, dict) and isinstance(told.get("data"), dict) else None


def _refusal(held: bytes) -> str:
    """What the server says about a workflow that it refuses."""
    try:
        answer = json.loads(held)
        error = answer.get("error", {})
        said = [
            f"{node.get('class_type', number)}: {_sentence(fault)}"
            for number, node in answer.get("node_errors", {}).items()
            for fault in node.get("errors", [])
        ]
        return "; ".join(said) or _sentence(error)
    except (ValueError, AttributeError, TypeError):
        return f"The server refuses the workflow: {shown(held[:200].decode('utf-8', 'replace'), 200)}"


def _sentence(fault: Json) -> str:
    message, details = str(fault.get("message", "")), str(fault.get("details", ""))
    return f"{message} ({details})" if details and details not in message else message


def _reason(error: BaseException | None) -> str:
    return str(error) or type(error).__name__
