"""What a method has to know of a text encoder beyond a photo's prompts: computed once for each, and kept."""

from __future__ import annotations

import logging

from ....e4t_core.methods.perfusion import Perfusion
from ....e4t_core.run import Method
from ....e4t_core.text_covariance import PASSES, text_covariance
from ..networks.text_encoder import ComfyTextEncoder
from ..progress_bar import advance
from .result_store import ResultStore

logger = logging.getLogger(__name__)


def with_covariance(method: Method, text: ComfyTextEncoder, key: str, store: ResultStore) -> Method:
    """Perfusion with the covariance of a text encoder's answers; any other method as it is.

    Args:
        key: content hash of all that decides what the text encoder gives.

    Raises:
        InterruptProcessingException: the person has cancelled.
    """
    if not isinstance(method, Perfusion) or method.covariance is not None:
        return method
    known = store.covariance(key)
    if known is None:
        logger.info("E4T: looking at what this text encoder says of common sentences, once.")
        done = 0

        def on_pass() -> None:
            nonlocal done
            done += 1
            advance(done, PASSES)

        known = text_covariance(text, method.class_word, on_pass)
        store.remember_covariance(key, known)
    return Perfusion(method.class_word, known)
