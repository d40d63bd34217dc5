"""CLIP (Radford et al. 2021) by open_clip from a file on this machine: how well a picture fits a text, or another picture."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from e4t_core.files.file_errors import FileKind, shown
from e4t_core.files.whole_file import check_is_file

from ..faults import EvaluationError
from .network import Embedded, cosine, digest

FILE = FileKind("CLIP file", "name the weights of that architecture, as open_clip reads them", EvaluationError)
INSTALL = "python -m pip install open_clip_torch"


class Clip:
    """Args:
        written: ``ARCHITECTURE:FILE``, such as ``ViT-L-14:clip.safetensors``.

    Raises:
        EvaluationError: the architecture is unknown, the file is missing or does not fit, or open_clip is not installed.
    """

    name = "CLIP"

    def __init__(self, written: str) -> None:
        architecture, _, file = written.partition(":")
        # Nothing is fetched: the file is all there is.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import open_clip
            import torch
        except ImportError as error:
            raise EvaluationError(f"CLIP is run by open_clip, which is not installed: {INSTALL}.") from error
        if architecture not in open_clip.list_models() or not file:
            raise EvaluationError(
                f"--clip {shown(written)} names no architecture of open_clip and its file: write for example"
                " ViT-L-14:FILE.safetensors."
            )
        path = Path(file).absolute()
        check_is_file(path, FILE)
        self._torch = torch
        try:
            with _quiet():
                self._model, _, self._prepared = open_clip.create_model_and_transforms(architecture, str(path))
                self._tokens = open_clip.get_tokenizer(architecture)
        except Exception as error:
            raise FILE.fault(path, f"does not hold the weights of {architecture}") from error
        self._model.eval()
        self.architecture = architecture
        self.fingerprint = digest(path)

    def embed(self, pictures: Sequence[Image.Image]) -> Embedded:
        """Unit vectors of whole pictures: there is always something to look at."""
        with self._torch.inference_mode():
            given = self._torch.stack([self._prepared(picture.convert("RGB")) for picture in pictures])
            vectors = self._model.encode_image(given, normalize=True)
        return Embedded(vectors.float().numpy(), np.ones(len(pictures), bool))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors ``(N, D)`` of texts."""
        with self._torch.inference_mode():
            vectors = self._model.encode_text(self._tokens(list(texts)), normalize=True)
        return np.asarray(vectors.float().numpy())

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The cosine."""
        return cosine(left, right)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip tells the root logger what it does."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
