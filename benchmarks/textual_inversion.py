"""Textual inversion of the word slot alone: nothing but one word embedding is trained, on one photo.

It asks of the base model whether an identity can be said in a word at all. The embedding is trained on the mini world's
own networks (which the stock checkpoint equals but for its tie-break), saved as a stock embedding file, and drawn by
stock nodes as ``embedding:NAME``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from commands.progress import Progress
from e4t_core.objective import draw_samples
from miniworld.attributes import Scene
from miniworld.heldout import concept_photo, held_out
from miniworld.models import load_text, load_unet, load_vae
from miniworld.training_unet import TrainingText, TrainingUNet

from . import host
from .picture_cache import cached
from .scoring import Target

RATE = 3e-3  # of Adam; a word row has norm 0.38
BATCH = 4  # noise levels per identity and step
SEEDS = 4
TEMPLATE = "a photo of {}"


def invert(latents: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Word embeddings ``(n, 768)`` of n photos' latents ``(n, 4, 16, 16)``, each trained from the domain word."""
    unet, text = TrainingUNet(load_unet()), TrainingText(load_text())
    count = len(latents)
    start = text.word("face")
    words = torch.nn.Parameter(start.expand(count, -1).clone())
    optimizer = torch.optim.Adam([words], lr=RATE)
    for step in Progress(range(steps), desc="textual inversion"):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (steps - step) / steps)
        total = count * BATCH
        sample = draw_samples(
            seed,
            range(step * total, (step + 1) * total),
            latent_shape=latents.shape[1:],
            batch=total,
            photos=count,
            templates=1,
            stream="textual inversion",
        )
        # A shuffled turn of the identities: stratified timesteps must not tie an identity to a part of the schedule.
        turn = torch.randperm(total, generator=torch.Generator().manual_seed(step)) % count
        z0 = latents[turn]
        z = unet.schedule.add_noise(z0, sample.noise, sample.timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            context = text.encode([TEMPLATE] * total, words[turn])
            error = unet.denoise(z, sample.timesteps, context).float() - sample.noise
        loss = error.square().mean((1, 2, 3)).sum() / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return words.detach()


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
