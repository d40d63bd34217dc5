"""A port that is taken is said before anything is started."""

from __future__ import annotations

import socket

import pytest

from devtools.comfyui_server import HOST, Server, check_port, free_port
from devtools.console import Failure


def test_a_taken_port_is_named_and_nothing_is_started(tmp_path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(tmp_path, tmp_path, tmp_path / "log", port)
        with pytest.raises(Failure, match=f"Port {port} is taken"):
            server.start()
        assert not server.running()
        assert not (tmp_path / "log").exists()


def test_a_port_can_be_used_again_at_once() -> None:
    port = free_port()
    with socket.create_server((HOST, port)) as server:
        client = socket.create_connection((HOST, port))
        accepted, _ = server.accept()
        # The side that closes first keeps the port in TIME_WAIT.
        accepted.close()
        client.close()
    check_port(port)
