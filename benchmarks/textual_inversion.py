"""Textual inversion of the word slot alone: nothing but one word embedding is trained, on one photo.

It asks of the base model whether an identity can be said in a word at all. The embedding is trained on the mini world's
own networks (which the stock checkpoint equals but for its tie-break), saved as a stock embedding file, and drawn by
stock nodes as ``embedding:NAME``.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from commands.progress import Progress
from e4t_core.methods.textual_inversion import TextualInversion, TextualInversionSettings
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.training import train
from miniworld.attributes import Scene
from miniworld.heldout import concept_photo, held_out
from miniworld.models import load_text, load_unet, load_vae
from miniworld.training_unet import TrainingText, TrainingUNet

from . import host
from .picture_cache import cached
from .scoring import Target

SEEDS = 4
TEMPLATE = "a photo of {}"
# A word row of this world has norm 0.38; the rate falls over the second half.
SETTINGS = TextualInversionSettings(learning_rate=3e-3, batch=4, micro_batch=4, templates=TEMPLATE)


def invert(latents: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Word embeddings ``(n, 768)`` of n photos' latents ``(n, 4, 16, 16)``, each trained from the domain word."""
    base = BaseModel(TrainingUNet(load_unet()), TrainingText(load_text()), "mini world")
    settings, method, words = replace(SETTINGS, steps=steps), TextualInversion("face"), []
    for number, latent in enumerate(Progress(latents, desc="textual inversion")):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            words.append(train(method, base, Photos(latent[None]), settings, seed + number).embedding[0])
    return torch.stack(words)


def invert_and_draw(base: host.Base, identities: int, steps: int) -> tuple[Tensor, Tensor, list[Target]]:
    """Pictures with the inverted words and with the domain word (same seeds), and what they should show."""
    people = held_out(split="validation", count=identities)
    key = f"{host.weights_fingerprint('base', 'text', 'vae')}-{identities}-{steps}"
    folder = host.ROOT / "runs" / "base_gate" / f"inversion-{key}"
    names = [f"inverted-{hashlib.sha256(f'{key} {n}'.encode()).hexdigest()[:8]}" for n in range(identities)]
    files = [host.BASE / "models" / "embeddings" / f"{name}.safetensors" for name in names]
    if not all(file.exists() for file in files):
        vae = load_vae()
        with torch.no_grad():
            photos = torch.stack([concept_photo(person)[1] for person in people])
            latents = vae.to_unet(vae.encode(photos))
        for file, word in zip(files, invert(latents, steps), strict=True):
            _save_embedding(file, word)
    pictures: dict[str, list[Tensor]] = {"word": [], "face": []}
    for number, name in enumerate(names):
        seeds = [1000 * number + draw for draw in range(SEEDS)]
        for arm, word in (("word", f"embedding:{name}"), ("face", "face")):
            text = TEMPLATE.format(word)
            path = folder / f"{arm}-{number}.safetensors"
            pictures[arm].append(cached(path, lambda text=text, seeds=seeds: host.draw(base, [text], seeds)))  # type: ignore[misc]
    targets = [Target(person, Scene(), ("style",)) for person in people for _ in range(SEEDS)]
    return torch.cat(pictures["word"]), torch.cat(pictures["face"]), targets


def _save_embedding(path: Path, word: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"clip_l": word[None].contiguous()}, path)
