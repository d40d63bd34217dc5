"""What the comparison learns and draws, each arm and individual once: kept under runs/compare, so that it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from e4t_core.concept import Concept
from e4t_core.files.checked_file import write_tensors
from e4t_core.files.domain_file import load_domain
from e4t_core.files.file_errors import FileKind
from e4t_core.methods.e4t.clip_backbone import ClipBackbone
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.hypernetwork import HyperNetwork
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.perfusion import Perfusion
from e4t_core.methods.registered import SIBLINGS
from e4t_core.photos import Photos, TuningError
from e4t_core.prior import PriorSibling, WantedPrior, draw_prior, kept
from e4t_core.run import BaseModel, Method
from e4t_core.text_covariance import text_covariance
from miniworld.attributes import DOMAINS, Identity
from miniworld.captions import subject_phrases
from miniworld.concept_photos import concept_scene
from miniworld.domains import load_backbone, narrow_domain
from miniworld.heldout import concept_photo
from miniworld.models import load_judges, load_text, load_unet, load_vae
from miniworld.pretraining import MiniBase, MiniVae
from miniworld.renderer import render
from miniworld.training_unet import TrainingText
from miniworld.unet import STOCK_WIDTH, UNetModel, UNetShape
from miniworld.widen import widen_unet

from . import host
from .arms import SAMPLING, WEIGHTS, Subject, load_subjects
from .compare_arms import WORD, Arm, bytes_here
from .compare_learning import CountingUNet, Learned, learn
from .narrow_drawing import bfloat16_products, draw_concept, draw_prompts
from .prompts import Prompt, seed_of, targets
from .quality import kept_visibility
from .quality_report import ArmScores
from .scoring import score

ROOT = host.ROOT / "runs" / "compare"
DOMAIN = "face"
KIND = FileKind("Comparison")


@dataclass(frozen=True, eq=False)
class Drawn:
    """One arm of one individual after a number of steps.

    Attributes:
        pictures: ``(prompts, 3, 128, 128)`` in [0, 1]; black where learning failed.
        seconds: of one core, from the photo to the concept.
        passes: of samples through the UNet, see ``compare_learning``.
        bytes: of the concept.
    """

    pictures: Tensor
    seconds: float
    passes: float
    bytes: int


def photos_of(identity: Identity, count: int) -> Tensor:
    """Photos ``(count, 3, 128, 128)`` of an individual, in other scenes from the same hash; the first is its concept photo."""
    rng = np.random.default_rng([int.from_bytes(identity.order()[:8], "big"), 1])
    more = [concept_scene(rng) for _ in range(count - 1)]
    first = concept_photo(identity)[1][None]
    return torch.cat([first, render([identity] * len(more), more)]) if more else first


class Painter:
    """Learns and draws arms of the first individuals of a split.

    Args:
        split: "held-out" or "validation".
        count: of individuals.
        asked: numbers of the prompts that are drawn.
        root: where all is kept.
    """

    def __init__(self, split: str, count: int, asked: Sequence[int], root: Path = ROOT) -> None:
        self.split, self.asked = split, tuple(asked)
        self.people = load_subjects(split, count, DOMAIN)
        weights = host.weights_fingerprint("base", "text", "vae", "backbone", WEIGHTS[DOMAIN])
        self._root, self._folder = root, root / f"{split}-{weights}"
        self._covariance: Tensor | None = None
        self._domains: dict[str, Domain] = {}

    @cached_property
    def base(self) -> MiniBase:
        """The narrow networks."""
        return _base(load_unet())

    @cached_property
    def _wide_base(self) -> MiniBase:
        wide = UNetModel(UNetShape(width=STOCK_WIDTH))
        wide.load_state_dict(widen_unet(load_unet().state_dict()))
        return _base(wide)

    @cached_property
    def _backbone(self) -> ClipBackbone:
        return load_backbone()

    def _domain(self, path: str) -> Domain:
        if path not in self._domains:
            self._domains[path] = load_domain(Path(path)) if path else narrow_domain(WEIGHTS[DOMAIN])
        return self._domains[path]

    def prompts(self, person: Subject) -> tuple[Prompt, ...]:
        """Those of a person that are drawn."""
        return tuple(person.prompts[number] for number in self.asked)

    def path(self, person: Subject, arm: Arm) -> Path:
        """Where an arm's pictures of a person lie: named by all that decides them but the code."""
        settings = arm.settings and {**arm.settings.for_photos(arm.photos).learned_with(), "steps": 0}
        wanted = [prompt.text for prompt in self.prompts(person)]
        file = hashlib.sha256(Path(arm.domain_file).read_bytes()).hexdigest() if arm.domain_file else ""
        decides = repr([arm.method or arm.name, settings, arm.points, arm.photos, file, wanted, self.asked, SAMPLING])
        key = hashlib.sha256(f"{person.identity.order().hex()}{decides}".encode()).hexdigest()[:16]
        return self._folder / (arm.method or arm.name).replace(" ", "_") / f"{person.number:02d}-{key}.safetensors"

    def drawn(self, person: Subject, arm: Arm) -> dict[int, Drawn]:
        """Number of steps -> what is drawn then; now, if it is not kept."""
        path = self.path(person, arm)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = self._made(person, arm)
            tensors = {str(steps): (one.pictures * 255).round().to(torch.uint8) for steps, one in made.items()}
            figures = {steps: [one.seconds, one.passes, one.bytes] for steps, one in made.items()}
            write_tensors(path, tensors, {"figures": json.dumps(figures)}, KIND)
        with safe_open(path, "pt") as file:
            figures = json.loads(file.metadata()["figures"])
            return {
                int(steps): Drawn(file.get_tensor(steps).float() / 255, *figure) for steps, figure in figures.items()
            }

    def _made(self, person: Subject, arm: Arm) -> dict[int, Drawn]:
        wanted = self.prompts(person)
        seeds = [seed_of(person.number, number, 0) for number in self.asked]
        if not arm.method:
            word = DOMAINS[DOMAIN].word
            said = word if arm.name == WORD else ", ".join([word, *subject_phrases(person.identity)])
            return {0: Drawn(draw_prompts(self.base, [p.text.format(said) for p in wanted], seeds), 0.0, 0.0, 0)}
        texts = [prompt.text for prompt in wanted]
        try:
            learned, before, base = self.learned(person, arm)
        except TuningError:
            black = torch.zeros(len(texts), 3, *person.photo.shape[1:])
            return {steps: Drawn(black, float("nan"), float("nan"), 0) for steps in arm.points}
        return {
            one.steps: Drawn(
                draw_concept(base, one.concept, texts, seeds), before + one.seconds, one.passes, bytes_here(one.concept)
            )
            for one in learned
        }

    def learned(self, person: Subject, arm: Arm) -> tuple[list[Learned], float, MiniBase]:
        """An arm's concepts of a person, the seconds that the photos took before, and the base that they were learned on."""
        images = photos_of(person.identity, arm.photos)
        needs_domain = arm.method in (E4T.name, HyperNetwork.name)
        # Loaded before time counts.
        vae, backbone = self.base.vae, self._backbone if needs_domain else None
        begun = time.process_time()
        latents = vae.encode(images)
        features = None if backbone is None else backbone.cls_features(images)
        before = time.process_time() - begun
        base, method = self.base, self._method(arm)
        if needs_domain and self._domain(arm.domain_file).info.feature_width != self.base.unet.feature_width:
            base = self._wide_base
        model = BaseModel(base.unet, base.text, "mini world")
        return learn(method, model, Photos(latents, features), arm.settings, arm.points), before, base  # type: ignore[arg-type]

    def _method(self, arm: Arm) -> Method:
        if arm.method in (E4T.name, HyperNetwork.name):
            kind = HyperNetwork if arm.method == HyperNetwork.name else E4T
            return kind(self._domain(arm.domain_file))
        sibling = next(kind for kind in SIBLINGS if kind.name == arm.method)
        if sibling is Perfusion:
            return Perfusion(DOMAINS[DOMAIN].word, self.covariance())
        method = sibling(DOMAINS[DOMAIN].word)
        if isinstance(method, PriorSibling):
            wanted = method.wanted_prior(arm.settings)
            return method if wanted is None else method.with_prior(self.prior(wanted))
        return method

    def covariance(self) -> Tensor:
        """Of the text encoder, once."""
        if self._covariance is None:
            with torch.no_grad():
                self._covariance = text_covariance(self.base.text, DOMAINS[DOMAIN].word)
        return self._covariance

    def prior(self, wanted: WantedPrior) -> Tensor:
        """Prior pictures as latents, drawn once for all individuals."""
        weights = host.weights_fingerprint("base", "text")
        path = self._root / f"prior-{weights}-{wanted.word}-{wanted.count}-{wanted.seed}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            size, model = (16, 16), BaseModel(self.base.unet, self.base.text)
            with bfloat16_products():
                parts = [kept(draw_prior(model, wanted, group, size)) for group in wanted.groups()]
            write_tensors(path, {"latents": torch.cat(parts)[: wanted.count].contiguous()}, {}, KIND)
        return load_file(path)["latents"].float()

    def scores(
        self, drawn: Mapping[Any, Sequence[Tensor]], people: Sequence[Subject]
    ) -> dict[str, dict[Any, ArmScores]]:
        """judge -> key -> scores of pictures, by a key each, of these people in turn."""
        wanted = [t for p in people for t in targets(p.identity, self.prompts(p))]
        seen = kept_visibility(self.split, wanted)
        scenes = [p.scene for p in people for _ in self.asked]
        strangers = [p.identity for p in people]
        found: dict[str, dict[Any, ArmScores]] = {}
        for name, judge in load_judges().items():
            known = judge.read(torch.stack([p.photo for p in people])).identity
            known = known.repeat_interleave(len(self.asked), dim=0)
            found[name] = {
                key: ArmScores.by_identity(
                    score(judge, torch.cat(list(parts)), wanted, seen, strangers, scenes, known), len(people)
                )
                for key, parts in drawn.items()
            }
        return found


def _base(unet: UNetModel) -> MiniBase:
    return MiniBase("miniworld", "sd1", CountingUNet(unet), TrainingText(load_text()), MiniVae(load_vae()))


def learned_concept(painter: Painter, person: Subject, arm: Arm) -> Concept:
    """The concept of an arm's last point."""
    return painter.learned(person, arm)[0][-1].concept
