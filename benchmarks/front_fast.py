"""The front benchmark's pictures ten times as fast: by the mini world's networks as they were trained, without ComfyUI.

They have 160 channels; what ComfyUI loads is the same, widened to 320 (``miniworld.widen``). A widened layer reads every channel
twice, so that one step of Adam moves twice as much there: here the learning rate is twice the preset's. All else is the same:
individuals, prompts, starting noise, steps, guidance, refinement at every step, and the method's own code for learning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.file_errors import FileKind
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.weight_offsets import offset_weight
from e4t_core.methods.e4t.word_predictor import E4TPredictor
from e4t_core.photos import Photos
from e4t_core.run import BaseModel
from e4t_core.training import train
from e4t_core.weight_changes import full_differences
from miniworld.attributes import DOMAINS
from miniworld.domains import load_backbone, narrow_domain
from miniworld.presets import PRESETS
from miniworld.pretraining import load_base
from miniworld.text_encoder import pad_tokens

from .arms import SAMPLING, Subject
from .host import GUIDANCE, noise, weights_fingerprint
from .picture_cache import cached, that_count
from .prompts import seed_of

if TYPE_CHECKING:
    from .front_arms import Arm
    from .front_prompts import Asked

RATE = 2.0
PRESET = PRESETS["faces"]
KIND = FileKind("Tuned concept")
Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Concept:
    """Attributes:
    differences: from base + domain offset, by canonical name.
    predictor: of its word.
    """

    differences: Weights
    predictor: E4TPredictor


class FastPainter:
    """Draws arms of some individuals; see ``front.Painter``.

    Args:
        people: of one domain, "face".
        asked: of each of them.
        root: where what was made is kept.
    """

    def __init__(self, people: Sequence[Subject], asked: Sequence[Sequence[Asked]], root: Path) -> None:
        self.people, self.asked = people, asked
        self._base, self._domain = load_base(), narrow_domain("faces")
        self._backbone = load_backbone()
        self._stock = {name: value.clone() for name, value in self._base.unet.parameters().items()}
        self._shared = self._domain.offsets.shared()
        self._empty = self._base.text.empty()
        kept = self._base.unet.schedule.alphas_cumprod
        self._levels = ((1 - kept) / kept).sqrt().log()
        self._folder = root / f"fast-{weights_fingerprint('base', 'text', 'vae', 'backbone', 'faces')}"
        self._concepts: dict[tuple[Path, float], Concept] = {}

    def pictures(self, number: int, arm: Arm) -> Tensor:
        """All pictures of an individual in an arm, ``(16, 3, 128, 128)``."""
        # How many there are decides whose concept stands beside the last one's.
        other = (number + 1) % len(self.people)
        key = hashlib.sha256(
            repr((replace(arm, name=""), that_count(PRESET), self.asked[number], other)).encode()
        ).hexdigest()[:12]
        path = self._folder / f"pictures-{key}" / f"{number:02d}.safetensors"
        return cached(path, lambda: self._draw(number, arm))

    def _draw(self, number: int, arm: Arm) -> Tensor:
        wanted = self.asked[number]
        word = {n: one.kind not in ("class", "names") and not arm.base for n, one in enumerate(wanted)}
        concepts: list[Concept] = []
        if not arm.base:
            concepts = [self._concept(n, arm) for n in (number, (number + 1) % len(self.people))]
        groups: dict[tuple[int, bool], list[int]] = {}
        for n, one in enumerate(wanted):
            held = 0 if arm.base else 2 if one.kind == "pair" else 1
            if arm.needs_trigger:
                held = min(held, 1) if word[n] else 0
            groups.setdefault((held, word[n]), []).append(n)
        made = torch.zeros(len(wanted), 3, 128, 128)
        for (held, named), rows in groups.items():
            whole = self._weights(concepts[:held], arm.strength)
            early = self._weights(concepts[:held], 0.0) if arm.late else whole

            def at(step: int, early: Weights = early, whole: Weights = whole) -> Weights:
                return early if step < round(arm.late * SAMPLING.steps) else whole

            predictor = concepts[0].predictor if named else None
            texts, seeds = [wanted[n].text for n in rows], [seed_of(number, n, 7) for n in rows]
            made[rows] = self._sample(texts, predictor, seeds, at)
        return made

    def _weights(self, concepts: Sequence[Concept], strength: float) -> Weights:
        """Base, the domain's offset once, each concept's own differences; with no concept the base's."""
        made = {}
        for name, weight in self._stock.items():
            if concepts and name in self._shared:
                weight = offset_weight(weight, *self._shared[name])
            for concept in concepts:
                if strength and name in concept.differences:
                    weight = weight + strength * concept.differences[name]
            made[name] = weight
        return made

    def _concept(self, number: int, arm: Arm) -> Concept:
        """Learned as the domain's preset says, but for the arm's settings; kept."""
        settings = replace(PRESET, **{"learning_rate": RATE * PRESET.learning_rate, **arm.settings})
        # It is learned the same however much of its word is kept.
        learned = replace(settings, word_strength=1.0)
        key = hashlib.sha256(repr(that_count(learned)).encode()).hexdigest()[:12]
        path = self._folder / f"tuned-{key}" / f"{number:02d}.safetensors"
        kept = path, settings.kept_of_word
        if kept not in self._concepts:
            if not path.exists():
                self._learn(number, learned, path)
            self._concepts[kept] = self._read(path, number, settings.kept_of_word)
        return self._concepts[kept]

    def _photo(self, number: int) -> Photos:
        picture = self.people[number].photo[None]
        return Photos(self._base.vae.encode(picture), self._backbone.cls_features(picture))

    def _learn(self, number: int, settings: Any, path: Path) -> None:
        base = BaseModel(self._base.unet, self._base.text)
        concept = train(E4T(self._domain), base, self._photo(number), settings, 0)
        assert isinstance(concept.predictor, E4TPredictor)
        tensors = {f"difference/{n}": kept.value() for n, kept in full_differences(concept.weights).items()}
        tensors |= {f"encoder/{n}": value for n, value in concept.predictor.encoder.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {n: value.contiguous() for n, value in tensors.items()}, {}, KIND)

    def _read(self, path: Path, number: int, strength: float) -> Concept:
        parts: dict[str, Weights] = {"difference": {}, "encoder": {}}
        for name, value in load_file(path).items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = value
        encoder = self._domain.encoder.blank()
        encoder.load_state_dict(parts["encoder"], assign=True)
        info, text = self._domain.info, self._base.text
        features = self._photo(number).clip_features
        assert features is not None
        scale = strength * info.scale
        predictor = E4TPredictor(encoder.eval().requires_grad_(False), features, text.word(info.word), scale)
        return Concept(parts["difference"], predictor)

    @torch.no_grad()
    def _sample(
        self, texts: Sequence[str], predictor: E4TPredictor | None, seeds: Sequence[int], at: Callable[[int], Weights]
    ) -> Tensor:
        """Pictures ``(B, 3, 128, 128)`` by DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

        Args:
            texts: with "{}" where the word stands, if it is in them.
            predictor: of the word; none: the domain word.
            at: the weights of a sampling step.
        """
        unet, steps = self._base.unet, SAMPLING.steps
        fixed = self._base.text.word(DOMAINS["face"].word).expand(len(texts), -1)
        at_level = torch.linspace(unet.schedule.timesteps - 1, 0, steps)
        low, high = self._levels[at_level.floor().long()], self._levels[at_level.ceil().long()]
        sigmas = torch.cat([torch.lerp(low, high, at_level.frac()).exp(), torch.zeros(1)])
        x = noise(seeds) * (1 + sigmas[0] ** 2).sqrt()
        before: Tensor | None = None
        for step in range(steps):
            sigma, after = sigmas[step], sigmas[step + 1]
            t = (self._levels - sigma.log()).abs().argmin().expand(len(x))
            with unet.using(at(step)):
                said = self._guided(x / (1 + sigma**2).sqrt(), t, texts, fixed, predictor)
            clean = x - sigma * said
            if after == 0:
                x = clean
                break
            step_size = sigma.log() - after.log()
            target = clean
            if before is not None:
                share = step_size / (2 * (sigmas[step - 1].log() - sigma.log()))
                target = (1 + share) * clean - share * before
            x = after / sigma * x - torch.expm1(-step_size) * target
            before = clean
        return self._base.vae.decode(x)

    def _guided(
        self, z: Tensor, t: Tensor, texts: Sequence[str], fixed: Tensor, predictor: E4TPredictor | None
    ) -> Tensor:
        """The guided noise prediction; what the network sees under the empty prompt gives the word."""
        unet, empty = self._base.unet, self._empty.expand(len(z), -1, -1)
        words = fixed if predictor is None else predictor.word(unet.features(z, t, empty))
        prompt, without = unet.denoise(z, t, self._contexts(texts, words)), unet.denoise(z, t, empty)
        return without + GUIDANCE * (prompt - without)

    def _contexts(self, texts: Sequence[str], words: Tensor) -> Tensor:
        text = self._base.text
        rows = [
            text.encode([one], words[n : n + 1]) if "{}" in one else text.network(pad_tokens([one]))
            for n, one in enumerate(texts)
        ]
        return torch.cat(rows)
