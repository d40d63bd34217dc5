"""What a network said of pictures, kept on the disk: whatever ends an evaluation, nothing is looked at twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from commands.progress import Progress
from e4t_core.files.file_errors import FileKind

from .faults import EvaluationError
from .networks.network import Network

AT_ONCE = 16
FILE = FileKind("File of embeddings", "delete it: it is made again", EvaluationError)


@dataclass(frozen=True)
class Look:
    """A picture to look at: SHA-256 of its file, and how it is opened."""

    digest: str
    open: Callable[[], Image.Image]


class Seen:
    """Everything that one network said.

    Args:
        network: that is asked.
        folder: of the file.

    Raises:
        EvaluationError: the file cannot be read.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        name = re.sub(r"[^a-zA-Z0-9]+", "-", network.name).strip("-") or "network"
        version = hashlib.sha256(network.fingerprint.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._path = folder / f"{name}-{version}.jsonl"
        self._vectors: dict[str, np.ndarray | None] = {}
        held = self._path.read_bytes() if self._path.exists() else b""
        # The last line may be half written.
        self._whole = held.rfind(b"\n") + 1
        for number, line in enumerate(held[: self._whole].splitlines(), 1):
            try:
                said = json.loads(line)
                vector = said["embedding"]
                self._vectors[said["picture"]] = None if vector is None else np.array(vector, np.float32)
            except (ValueError, KeyError, TypeError) as error:
                raise FILE.fault(self._path, f"has a line that no evaluation wrote, number {number}") from error

    def look(self, looks: Iterable[Look], what: str) -> None:
        """Asks the network about those that it has not seen, with a progress bar.

        Raises:
            EvaluationError: a picture cannot be opened, or the answers cannot be kept.
        """
        left = list({look.digest: look for look in looks if look.digest not in self._vectors}.values())
        if not left:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with (
                self._path.open("ab") as file,
                Progress(total=len(left), desc=f"{self.network.name}: {what}", unit="picture") as bar,
            ):
                file.truncate(self._whole)
                for start in range(0, len(left), AT_ONCE):
                    part = left[start : start + AT_ONCE]
                    said = self.network.embed([look.open() for look in part])
                    for look, vector, found in zip(part, said.vectors, said.found, strict=True):
                        self._vectors[look.digest] = vector if found else None
                        line = {"picture": look.digest, "embedding": vector.tolist() if found else None}
                        file.write(f"{json.dumps(line)}\n".encode())
                    file.flush()
                    self._whole = file.tell()
                    bar.update(len(part))
        except OSError as error:
            raise FILE.fault(
                self._path, f"cannot be written to ({error.strerror})", "make room, or check it"
            ) from error

    def found(self, digest: str) -> bool:
        """Whether there was a face in a picture that was looked at."""
        return self._vectors[digest] is not None

    def vectors(self, digests: Sequence[str]) -> np.ndarray:
        """``(N, D)`` of those in which there was a face; ``(0, 1)`` where there is none."""
        held = [vector for digest in digests if (vector := self._vectors[digest]) is not None]
        return np.stack(held) if held else np.zeros((0, 1), np.float32)
