"""Identity networks from a file by path, run by OpenVINO, which reads its own format and ONNX.

A file does not say how it wants its faces, so there are two kinds: Open Model Zoo's face re-identification (``openvino:FILE.xml``),
and networks in ArcFace's manner (``onnx:FILE.onnx``; insightface's own weights are for research only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from e4t_core.files.file_errors import FileKind
from e4t_core.files.whole_file import check_is_file

from ..faults import EvaluationError
from .faces import Faces, aligned, five_points
from .network import Embedded, cosine, digest

FILE = FileKind("Identity network", "name a network that makes one vector of a face", EvaluationError)
INSTALL = "python -m pip install openvino"
LEAST_WIDTH = 64


@dataclass(frozen=True)
class Manner:
    """How a network wants its faces.

    Attributes:
        template: where eyes, nose and mouth's corners belong, as shares of the edge.
        blue_first: whether channels are BGR.
        middle: subtracted from pixels of 0 to 255.
        unit: they are divided by it.
    """

    template: tuple[tuple[float, float], ...]
    blue_first: bool
    middle: float
    unit: float


MANNERS = {
    # docs of Open Model Zoo, face-reidentification-retail-0095
    "openvino": Manner(
        ((0.315569, 0.461574), (0.682623, 0.461574), (0.500262, 0.640505), (0.349472, 0.824692), (0.653436, 0.823251)),
        blue_first=True,
        middle=0.0,
        unit=1.0,
    ),
    # Deng et al. 2019, faces of 112 pixels
    "onnx": Manner(
        ((0.341916, 0.461574), (0.656534, 0.459834), (0.500225, 0.640505), (0.370976, 0.824692), (0.631517, 0.823251)),
        blue_first=False,
        middle=127.5,
        unit=127.5,
    ),
}


class FileNetwork:
    """Args:
        path: of the network.
        manner: a key of ``MANNERS``.
        faces: makes what finds faces; asked only once the file is known to be right.

    Raises:
        EvaluationError: the file is missing or of another kind, or a package is not installed.
    """

    def __init__(self, path: Path, manner: str, faces: Callable[[], Faces] = Faces) -> None:
        check_is_file(path, FILE)
        self._manner = MANNERS[manner]
        self.name = path.stem
        self._network, self._edge = _opened(path)
        # The format of OpenVINO keeps the numbers in a second file.
        beside = [other for other in [path.with_suffix(".bin")] if path.suffix == ".xml" and other.is_file()]
        self.fingerprint = digest(path, *beside)
        self._faces = faces()

    def embed(self, pictures: Sequence[Image.Image]) -> Embedded:
        """The largest face of each picture, aligned by five of its points."""
        answers = [self._answer(picture) for picture in pictures]
        width = next((len(answer) for answer in answers if answer is not None), 1)
        vectors = np.stack([np.zeros(width) if answer is None else answer for answer in answers])
        return Embedded(vectors.astype(np.float32), np.array([answer is not None for answer in answers]))

    def _answer(self, picture: Image.Image) -> np.ndarray | None:
        face = self._faces.find(picture)
        if face is None:
            return None
        chip = aligned(Image.fromarray(face.pixels), five_points(face.points), self._manner.template, self._edge)
        return self.answer(chip)

    def answer(self, chip: Image.Image) -> np.ndarray:
        """The vector ``(D,)`` of an aligned face, of any size."""
        pixels = np.asarray(chip.convert("RGB").resize((self._edge, self._edge)), np.float32)
        pixels = (pixels[..., ::-1] if self._manner.blue_first else pixels) - self._manner.middle
        given = np.ascontiguousarray((pixels / self._manner.unit).transpose(2, 0, 1)[None])
        return np.asarray(self._network(given)[0], np.float32).reshape(-1)

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The cosine."""
        return cosine(left, right)


def _opened(path: Path) -> tuple[Any, int]:
    """The compiled network, and the edge of the faces that it takes in pixels."""
    try:
        from openvino import Core
    except ImportError as error:
        raise EvaluationError(f"{path.name} is run by OpenVINO, which is not installed: {INSTALL}.") from error
    try:
        network = Core().read_model(str(path))
        if len(network.inputs) == 1 and network.inputs[0].partial_shape.rank.get_length() == 4:
            given = network.inputs[0].partial_shape
            # A batch of unknown size is one picture here.
            network.reshape([1, *(given[i].get_length() for i in (1, 2, 3))])
        # Left to itself it rounds to 16 bits on some processors, and figures would differ between machines.
        compiled = Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        text = "is no network that OpenVINO can read"
        advice = "name an .xml with its .bin beside it, or an .onnx"
        raise FILE.fault(path, text, advice) from error
    shapes = [list(port.shape) for port in (*compiled.inputs, *compiled.outputs)]
    is_square = len(compiled.inputs) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 3 and shapes[0][2] == shapes[0][3]
    sizes = sorted(shapes[1]) if is_square else []
    if not sizes or sizes[-1] < LEAST_WIDTH or int(np.prod(sizes)) != sizes[-1]:
        takes, gives = shapes[: len(compiled.inputs)], shapes[len(compiled.inputs) :]
        raise FILE.fault(path, f"is of another kind: it takes {takes} and gives {gives}")
    return compiled, int(shapes[0][2])
