"""The receiving half of a WebSocket (RFC 6455), as much of it as ComfyUI's progress messages need."""

from __future__ import annotations

import base64
import os
import socket
from types import TracebackType
from typing import final

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
"""Kinds of frames (RFC 6455 section 5.2)."""


@final
class WebSocket:
    """A connection to `ws://host:port/path`. Messages from a server are never masked; ours (pong, close) must be.

    Raises: ConnectionError when the server refuses the connection or ends it; TimeoutError after `timeout` seconds
    without a message.
    """

    def __init__(self, host: str, port: int, path: str, timeout: float) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            (
                f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        if b" 101 " not in status:
            self._socket.close()
            raise ConnectionError(f"no WebSocket at {host}:{port}{path}: {status.decode(errors='replace').strip()}")
        while self._stream.readline().strip():
            pass

    def receive(self) -> str | bytes:
        """The next message: a string if it was sent as text, else bytes. Pings are answered on the way."""
        while True:
            kind, message = self._message()
            if kind in (TEXT, BINARY):
                return message.decode() if kind == TEXT else message
            if kind == PING:
                self._send(PONG, message)
            elif kind == CLOSE:
                raise ConnectionError("the server closed the WebSocket")

    def _message(self) -> tuple[int, bytes]:
        """One message with its fragments put together: the kind of its first frame and all of its bytes."""
        final, kind, message = self._frame()
        while not final:
            final, _, more = self._frame()
            message += more
        return kind, message

    def _frame(self) -> tuple[bool, int, bytes]:
        first, second = self._read(2)
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(self._read(2 if length == 126 else 8), "big")
        return bool(first & 0x80), first & 0x0F, self._read(length)

    def _read(self, count: int) -> bytes:
        found = self._stream.read(count)
        if len(found) < count:
            raise ConnectionError("the server ended the WebSocket in the middle of a message")
        return found

    def _send(self, kind: int, message: bytes) -> None:
        """One short frame (under 126 bytes: control frames may not be longer), masked as RFC 6455 section 5.3 says."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(message))
        self._socket.sendall(bytes((0x80 | kind, 0x80 | len(message))) + mask + masked)

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()
