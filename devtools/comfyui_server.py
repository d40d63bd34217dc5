"""Starts a real ComfyUI on the loopback interface with its own base directory, database and port, and stops it.

Runs in `.venv`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from types import TracebackType
from typing import Any, final

import psutil

from .comfyui_client import Client
from .console import Failure, reason
from .places import PACK_NAME, REPOSITORY, venv_python

HOST = "127.0.0.1"
START_SECONDS = 300.0
STOP_SECONDS = 15.0
IMPORT_FAILED = "Cannot import "
"""What ComfyUI writes before the path of a pack and the reason; only this pack is ever loaded here."""
FOLDERS = (
    "custom_nodes",
    "input",
    "output",
    "temp",
    "user/default/workflows",
    "models/checkpoints",
    "models/e4t_domains",
)


def prepare_base(base: Path, pack: Path = REPOSITORY) -> None:
    """Makes the folders of a ComfyUI base directory and links `pack` into its custom_nodes."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_NAME
    if link.exists() and link.samefile(pack):
        return
    if link.is_symlink():
        link.unlink()
    if os.name == "nt":
        # A junction needs no administrator's rights, a symbolic link does.
        made = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(pack)], capture_output=True, check=False)
        if made.returncode != 0:
            raise Failure(f"The pack could not be linked to {link}; remove what is there and run this again.")
    else:
        link.symlink_to(pack, target_is_directory=True)


def has_gpu() -> bool:
    """True if torch in `.venv` finds an accelerator; without one ComfyUI has to be told `--cpu`."""
    look = "import sys, torch; sys.exit(0 if torch.accelerator.is_available() else 3)"
    return subprocess.run([str(venv_python()), "-c", look], capture_output=True, check=False).returncode == 0


def free_port() -> int:
    """A port on the loopback interface that nothing listens on now."""
    with _bind(0) as probe:
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raises: Failure if no server can listen at `port` of the loopback interface."""
    try:
        _bind(port).close()
    except PermissionError as error:
        raise Failure(f"Port {port} is not allowed to you ({error}); choose one above 1023.") from error
    except OSError as error:
        raise Failure(
            f"Port {port} is taken by another program ({error}); choose another, or leave --port out."
        ) from error


def _bind(port: int) -> socket.socket:
    """A socket bound as a server's is: alone, but at once after one that ended."""
    probe = socket.socket()
    try:
        # On Windows REUSEADDR would share a port that is in use; elsewhere it only skips the wait after a server's end.
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if exclusive is None else exclusive, 1)
        probe.bind((HOST, port))
    except BaseException:
        probe.close()
        raise
    return probe


@final
class Server:
    """A ComfyUI process; as a context manager it is ready inside the block and gone after it.

    `base` is its base directory (see `prepare_base`), `log` the file that takes what it says.
    """

    def __init__(self, comfyui: Path, base: Path, log: Path, port: int | None = None, cpu: bool = True) -> None:
        self.comfyui, self.base, self.log = comfyui, base, log
        self.client = Client(HOST, port or free_port())
        self._cpu = cpu
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Starts the process and waits until it answers.

        Raises: Failure if the port is taken, and with ComfyUI's own last word if it ends, cannot load the pack, or does
        not answer in time.
        """
        check_port(self.client.port)
        command = [
            *(str(venv_python()), "main.py", "--listen", HOST, "--port", str(self.client.port)),
            *("--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"),
            # Packs that a shared extra_model_paths.yaml may name are none of ours.
            *("--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_NAME, "--disable-auto-launch"),
            *(["--cpu"] if self._cpu else []),
        ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # A group of its own: Ctrl-C in the terminal then reaches dev.py alone, which ends ComfyUI in order.
        own_group: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self.comfyui,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                **own_group,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.running():
                raise Failure(f"ComfyUI ended while it started: {reason(self.said())} (all of it: {self.log}).")
            try:
                stats = json.loads(self.client.get("/system_stats", timeout=5.0))
                break
            except (urllib.error.URLError, OSError, ValueError):
                time.sleep(0.2)
        else:
            raise Failure(f"ComfyUI did not answer within {START_SECONDS:.0f} s (what it said: {self.log}).")
        if str(self.base) not in stats.get("system", {}).get("argv", []):
            raise Failure(f"Another ComfyUI answers at {self.client.url}; choose another port, or leave --port out.")
        for line in self.said().splitlines():
            if IMPORT_FAILED in line:
                raise Failure(f"ComfyUI could not load this pack: {line.partition(IMPORT_FAILED)[2]} (see {self.log}).")

    def running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        """What ComfyUI has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def memory(self) -> int:
        """Bytes that the running process holds in RAM."""
        assert self._process is not None
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def kill(self) -> None:
        """Ends the process at once, as a power failure would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ends the process and waits for its end."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
