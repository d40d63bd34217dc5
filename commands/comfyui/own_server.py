"""A ComfyUI of one's own: it shares the models of an installation, or those it is given, and nothing that two servers would
both write."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

from commands.batch.api_workflow import ApiWorkflow
from commands.batch.faults import BatchError, Unreachable
from commands.batch.server import Server
from e4t_core.files.file_errors import shortened

HOST = "127.0.0.1"
START_SECONDS, LOOK_SECONDS, STOP_SECONDS = 300.0, 0.2, 20.0
LOG_LINES = 200
CONCEPTS = ("embeddings/e4t", "e4t_concepts")
"""Where this pack saves concepts, below the folder of a server's own."""
IMPORT_FAILED = "Cannot import "
"""What ComfyUI writes before the path of a pack and the reason."""


class PortTaken(BatchError):
    """Another program listens where a server was to listen."""


@dataclass(frozen=True)
class Installation:
    """A ComfyUI on every node, at the same place.

    Attributes:
        folder: holds ``main.py``.
        base: its ``--base-directory``; none where models and packs are in the folder itself.
        python: that it runs with.
        cpu: whether it computes on the processor.
        arguments: more of its own arguments.
        port: that it listens at; 0: any that is free.
        alone: nothing of the installation's models, packs and settings is seen, but only these folders, by what
            ``extra_model_paths.yaml`` calls their kind ("checkpoints", "custom_nodes"); none: all of it is seen.
        packs: of ``custom_nodes``, those that are loaded where it is alone.
    """

    folder: Path
    base: Path | None = None
    python: str = sys.executable
    cpu: bool = False
    arguments: tuple[str, ...] = ()
    port: int = 0
    alone: Mapping[str, Path] | None = None
    packs: tuple[str, ...] = ()

    def check(self) -> None:
        """Looks whether it is on this node.

        Raises:
            BatchError: it is not.
        """
        main = self.folder / "main.py"
        if not main.is_file():
            raise BatchError(
                f"{main} is not on the node {socket.gethostname()}: name the folder of ComfyUI with --comfyui."
            )


def absolute_program(named: str) -> str:
    """A program as it is named in any folder: a file's absolute path, or the name of what is on PATH.

    Links stay: the Python of a virtual environment is one.
    """
    return str(Path(named).absolute()) if Path(named).is_file() else named


@final
class ComfyUI:
    """A server process of an installation; it ends with this process, however that ends.

    Args:
        installation: what is started.
        client: what the server knows this client by.

    Attributes:
        pid: of its process.
    """

    def __init__(self, installation: Installation, client: str) -> None:
        self._installation, self._client = installation, client
        self._leash: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self.pid = 0

    def server(self) -> Server:
        """A client of it, to be entered."""
        return Server(f"http://{HOST}:{self.port}", self._client)

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._leash is not None and not self._ended.is_set()

    def start(self, workflow: ApiWorkflow) -> None:
        """Starts it anew, and waits until it can run the workflow.

        Raises:
            BatchError: it ends before, does not answer, or cannot run the workflow.
        """
        self.stop()
        self._installation.check()
        self.port = _port(self._installation.port)
        self.folder = Path(tempfile.mkdtemp(prefix="e4t_own_"))
        # Alone, it has no packs of its own, and looks for them all the same.
        for name in ("input", "output", "temp", "user", "custom_nodes", *CONCEPTS):
            (self.folder / name).mkdir(parents=True)
        own = {"base_path": str(self.folder), "is_default": True}
        paths: dict[str, dict[str, object]] = {
            "e4t_own": {**own, **{kind: kind for kind in ("embeddings", "e4t_concepts")}}
        }
        if self._installation.alone is not None:
            given = {kind: str(folder) for kind, folder in self._installation.alone.items()}
            paths["e4t_given"] = {**given, "is_default": True}
        # JSON is YAML, too.
        (self.folder / "paths.yaml").write_text(json.dumps(paths), encoding="utf-8")
        self._log = self.folder.with_suffix(".log")
        leash = Path(__file__).with_name("leash.py")
        self._leash = subprocess.Popen(
            [sys.executable, str(leash), str(self.folder), str(self._log), *self._command()],
            cwd=self._installation.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._leash.stdout is not None
        self.pid = int(self._leash.stdout.readline() or 0)
        self._ended = threading.Event()
        threading.Thread(target=_wait, args=(self._leash.stdout, self._ended), daemon=True).start()
        try:
            asyncio.run(self._answers(workflow))
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        made = [self._installation.python, str(self._installation.folder / "main.py")]
        made += ["--listen", HOST, "--port", str(self.port), "--disable-auto-launch"]
        made += ["--database-url", "sqlite:///:memory:", "--extra-model-paths-config", str(self.folder / "paths.yaml")]
        if self._installation.alone is not None:
            made += ["--base-directory", str(self.folder), "--disable-all-custom-nodes"]
            made += ["--whitelist-custom-nodes", *self._installation.packs] if self._installation.packs else []
        elif self._installation.base is not None:
            made += ["--base-directory", str(self._installation.base)]
        for name in ("input", "output", "temp", "user"):
            made += [f"--{name}-directory", str(self.folder / name)]
        return [*made, *(["--cpu"] if self._installation.cpu else []), *self._installation.arguments]

    async def _answers(self, workflow: ApiWorkflow) -> None:
        ends = time.monotonic() + START_SECONDS
        async with self.server() as server:
            while True:
                if not self.alive():
                    raise BatchError(f"ComfyUI ended while it started: {self.last_word()} (all of it: {self._log}).")
                try:
                    await server.check(workflow)
                    self.version = server.version
                    return
                except Unreachable as error:
                    if time.monotonic() > ends:
                        raise BatchError(
                            f"ComfyUI did not answer within {START_SECONDS:.0f} seconds; it last said: {self.last_word()}"
                        ) from error
                except BatchError as error:
                    if reason := self._refused_pack():
                        raise BatchError(f"ComfyUI did not load this pack: {reason}") from error
                    raise
                await asyncio.sleep(LOOK_SECONDS)

    def last_word(self) -> str:
        """The last line that it wrote, for messages."""
        with self._log.open(encoding="utf-8", errors="replace") as log:
            last = [line.strip() for line in deque(log, LOG_LINES) if line.strip()]
        return shortened(last[-1] if last else "it said nothing", 200)

    def _refused_pack(self) -> str:
        """Why a pack of those that are loaded alone was not, or ""."""
        with self._log.open(encoding="utf-8", errors="replace") as log:
            said = [line.partition(IMPORT_FAILED)[2] for line in log if IMPORT_FAILED in line]
        mine = [line for line in said for name in self._installation.packs if name in line]
        return shortened(mine[0].partition(": ")[2].strip(), 300) if mine else ""

    def stop(self) -> None:
        """Ends the process, and removes what it had for itself."""
        if self._leash is None:
            return
        assert self._leash.stdin is not None
        self._leash.stdin.close()
        self._leash.wait()
        self._ended.wait(STOP_SECONDS)
        self._leash = None

    def take_concepts(self) -> dict[str, bytes]:
        """The concept files that were saved since the last time, by name; they are the caller's then."""
        taken = {}
        for folder in CONCEPTS:
            for path in sorted((self.folder / folder).glob("*.safetensors")):
                taken[path.name] = path.read_bytes()
                os.unlink(path)
        return taken


def _wait(leash: IO[bytes], ended: threading.Event) -> None:
    """Notes when the leash has nothing to hold any more."""
    leash.read()
    leash.close()
    ended.set()


def _port(wanted: int) -> int:
    """A port that nothing listens at.

    Raises:
        PortTaken: something listens at the one that is wanted, or it is not allowed.
    """
    with socket.socket() as probe:
        # On Windows REUSEADDR would share a port that is in use; elsewhere it only skips the wait after a server's end.
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if exclusive is None else exclusive, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise PortTaken(
                f"Port {wanted} of this machine cannot be used ({error.strerror or error}): end the program that has it, name"
                " another with --port, or leave --port out."
            ) from error
        port: int = probe.getsockname()[1]
        return port
