"""Where the face is in a picture: dlib's detector and its 68 landmarks, from packages that hold the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..faults import EvaluationError

LONGEST = 1024
"""Pixels of the longer side that are looked at."""
UPSCALED = 1
"""Doublings before the search: the detector knows faces of 80 pixels and more, so it finds those of 40."""
INSTALL = "python -m pip install dlib-bin face-recognition-models"


@dataclass(frozen=True)
class Face:
    """A found face.

    Attributes:
        pixels: ``(H, W, 3)`` uint8, the picture that was looked at.
        shape: the landmarks as dlib has them.
        points: ``(68, 2)`` the same, in pixels to the right and down.
    """

    pixels: np.ndarray
    shape: Any
    points: np.ndarray


class Faces:
    """Finds the largest face of a picture.

    Raises:
        EvaluationError: the packages are not installed.
    """

    def __init__(self) -> None:
        dlib = import_dlib()
        self._detector = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(weights("shape_predictor_68_face_landmarks.dat")))

    def find(self, picture: Image.Image) -> Face | None:
        """The face; none where the detector sees none."""
        picture = picture.convert("RGB")
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        pixels = np.array(picture)
        boxes = self._detector(pixels, UPSCALED)
        if not boxes:
            return None
        shape = self._landmarks(pixels, max(boxes, key=lambda box: (box.area(), -box.left(), -box.top())))
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
        return Face(pixels, shape, points)


def import_dlib() -> Any:
    """The module.

    Raises:
        EvaluationError: it is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise EvaluationError(f"Faces are found by dlib, which is not installed: {INSTALL}.") from error
    return dlib


def weights(name: str) -> Path:
    """A file of the package face-recognition-models, found without importing it: that needs an old setuptools.

    Raises:
        EvaluationError: it is not installed.
    """
    found = find_spec("face_recognition_models")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / "models" / name).is_file():
            return path
    raise EvaluationError(f"The weights {name} are not installed: {INSTALL}.")


def five_points(points: np.ndarray) -> np.ndarray:
    """68 landmarks ``(68, 2)`` to the five that networks are aligned by: the eyes, the nose's tip, the mouth's corners."""
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


def aligned(
    picture: Image.Image, points: np.ndarray, template: Sequence[tuple[float, float]], edge: int
) -> Image.Image:
    """The picture turned, scaled and moved so that points come as near to the template's as they can (Umeyama 1991).

    Args:
        picture: in RGB.
        points: ``(K, 2)`` in its pixels.
        template: where they belong, as shares of the edge.
        edge: of the result, in pixels.
    """
    source, target = np.asarray(points, np.float64), np.asarray(template, np.float64) * edge
    # From the result's pixels to the picture's: what PIL asks for.
    middle_from, middle_to = target.mean(0), source.mean(0)
    before, after = target - middle_from, source - middle_to
    left, spread, right = np.linalg.svd(after.T @ before)
    upright = np.diag([1.0, np.sign(np.linalg.det(left @ right))])
    turn = left @ upright @ right
    scale = (spread * np.diag(upright)).sum() / (before**2).sum()
    matrix = scale * turn
    shift = middle_to - matrix @ middle_from
    rows = (*matrix[0], shift[0], *matrix[1], shift[1])
    # PIL reads single pixels: a picture much larger than the result is made smaller first.
    if scale > 2:
        smaller = (max(1, round(picture.width / scale)), max(1, round(picture.height / scale)))
        factors = np.array([smaller[0] / picture.width, smaller[1] / picture.height])
        picture = picture.resize(smaller, Image.Resampling.BOX)
        rows = tuple(np.array(rows) * np.repeat(factors, 3))
    return picture.transform((edge, edge), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
