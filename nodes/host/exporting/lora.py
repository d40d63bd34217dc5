"""A concept's weight changes on a MODEL as a stock LoRA."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher

from ....e4t_core.concept import Concept
from ....e4t_core.files.stock_lora import StockLora, exact_lora, low_rank_lora, thin_lora
from ....e4t_core.weight_changes import TotalDifferences
from ..learning.result_store import STORE
from ..networks.base_model import ComfyUNet
from ..progress_bar import advance

# Where torch has the float64 that singular values need.
PRECISE = ("cpu", "cuda")


def make_lora(concept: Concept, model: ModelPatcher, exact: bool, error: float, rank: int, vectors: bool) -> StockLora:
    """A LoRA that draws a concept on the MODEL's base; LoRAs on the MODEL belong to the base, concepts do not.

    Args:
        concept: to be exported.
        model: the base that it is drawn on.
        exact: nothing is lost; the next three do not count.
        error, rank, vectors: see ``low_rank_lora``.

    Raises:
        UnsupportedModelError: the MODEL is no Stable Diffusion 1.x or 2.x.
        ValueError: the concept changes no weights, or those of another kind of base.
        InterruptProcessingException: the person has cancelled.
    """
    if concept.to_learn:
        raise ValueError(
            f"{concept.trigger} is a recipe that was not learned again yet: wire in the concept that Apply E4T Concept gives."
        )
    if concept.attention is not None and not concept.weights:
        raise ValueError(
            f"{concept.trigger} is read by each layer of the network in a way of its own, which no stock file holds: keep it by"
            " Save E4T Concept, whose file stock prompts read as one plain word."
        )
    if not concept.weights:
        raise ValueError(
            f"{concept.trigger} is a word alone, without weights, so there is no LoRA to make: keep the word by Save E4T Concept."
        )
    unet = ComfyUNet(model)
    base = unet.parameters()
    unknown = {change.name for change in concept.weights} - base.keys()
    if unknown or unet.context_width != concept.embedding.shape[-1]:
        raise ValueError(
            f"{concept.trigger} was learned on a base of another kind than this MODEL: wire in one of the family that it was"
            " learned on."
        )
    with torch.inference_mode(False):
        # What was learned thin goes out as it is, whatever form is asked for; a rank by hand makes it thinner.
        own = thin_lora(concept.weights)
        if own is not None and not 0 < rank < own.rank:
            return own
        differences = TotalDifferences(concept.weights, base)
        if exact:
            return exact_lora(differences, advance)
        device = model.load_device if model.load_device.type in PRECISE else "cpu"
        return low_rank_lora(differences, error, rank, vectors, device, advance)


def is_another_base(concept: Concept, model: ModelPatcher) -> bool:
    """Whether a MODEL's base is not the one that a concept was learned on, as far as that is known."""
    hashes = STORE.hashes
    found = hashes.base_fingerprint(hashes.weights_key(model), ComfyUNet(model).parameters())
    return bool(concept.base_fingerprint) and concept.base_fingerprint != found
