"""dlib's face recognition ResNet (King 2017): 128 numbers of a face, compared by their distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .faces import Faces, import_dlib, weights
from .network import Embedded, digest

WIDTH = 128
WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"


class DlibNetwork:
    """Its similarity is one minus the distance: 0.4 and more is the same person by the network's own threshold.

    Args:
        faces: finds them.

    Raises:
        EvaluationError: its packages are not installed.
    """

    name = "dlib"

    def __init__(self, faces: Faces) -> None:
        self._faces = faces
        path = weights(WEIGHTS)
        self._network = import_dlib().face_recognition_model_v1(str(path))
        self.fingerprint = digest(path)

    def embed(self, pictures: Sequence[Image.Image]) -> Embedded:
        """The largest face of each picture."""
        vectors, found = np.zeros((len(pictures), WIDTH), np.float32), np.zeros(len(pictures), bool)
        for number, picture in enumerate(pictures):
            if (face := self._faces.find(picture)) is not None:
                vectors[number] = self._network.compute_face_descriptor(face.pixels, face.shape)
                found[number] = True
        return Embedded(vectors, found)

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """One minus the Euclidean distance."""
        return np.asarray(1 - np.linalg.norm(left[:, None] - right[None], axis=2), np.float64)
