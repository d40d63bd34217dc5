"""Tuned concepts of the compact benchmark: learned once, kept under runs/, and drawn in any form of their changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.compact_body import CompactSettings
from e4t_core.files.file_errors import FileKind
from e4t_core.weight_changes import LowRank

from . import host
from .arms import SAMPLING, WORD, Drawer, Subject
from .low_rank_tuning import low_rank_method

KIND = FileKind("Tuned concept")


@dataclass(frozen=True, eq=False)
class Tuned:
    """A concept as its tuning left it; all tensors float32 on the CPU.

    Attributes:
        differences: the UNet's own, by canonical name, from base + domain offset.
        encoder: state of the tuned concept encoder.
        embedding: ``(1, D)``, the fixed word.
        clip_features: ``(1, L, C)``.
        domain_word_embedding: ``(D,)``.
        latent: ``(1, 4, h, w)`` of the photo, in the UNet's scale.
    """

    differences: dict[str, Tensor]
    encoder: dict[str, Tensor]
    embedding: Tensor
    clip_features: Tensor
    domain_word_embedding: Tensor
    latent: Tensor

    @classmethod
    def kept(cls, path: Path, drawer: Drawer, subject: Subject, unet_rank: int = 0) -> Tuned:
        """From a file, or learned now as the node "E4T Personalize" does, and put there.

        Args:
            unet_rank: of factors that are tuned in place of whole matrices; 0: whole matrices.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors, scales = _learned(drawer, subject, unet_rank)
            write_tensors(path, tensors, {"scales": json.dumps(scales)}, KIND)
        with safe_open(path, "pt") as file:
            scales = json.loads(file.metadata()["scales"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        parts: dict[str, dict[str, Tensor]] = {"difference": {}, "encoder": {}}
        for name in list(tensors):
            kind, _, rest = name.partition("/")
            if kind in parts:
                parts[kind][rest] = tensors.pop(name) * scales.get(rest if kind == "difference" else "", 1.0)
        return cls(parts["difference"], parts["encoder"], **tensors)


def _learned(drawer: Drawer, subject: Subject, unet_rank: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    base, loaded = drawer.base, drawer.domain(subject.identity.domain)
    info, settings = loaded.domain.info, drawer.settings()
    picture = subject.photo.movedim(0, -1)[None]
    if unet_rank:
        method = low_rank_method(loaded.domain, unet_rank)
    else:
        method = host.pack("e4t_core.methods.e4t.method").E4T(loaded.domain)
    request = host.pack("nodes.host.learning.request").Request(
        base.model, base.clip, base.vae, picture, None, WORD, method, settings, 0, info.image_size, info.crop_margin,
        loaded=loaded,
    )  # fmt: skip
    store = host.pack("nodes.host.learning.result_store").ResultStore(0)
    with torch.inference_mode(), host.pack("nodes.host.learning.progress").Progress(WORD) as progress:
        concept = host.pack("nodes.host.learning.learn").learn(request, store, progress)
        latent = base.model.model.process_latent_in(base.vae.encode(picture)).float().cpu()
    predictor = concept.predictor
    differences = host.pack("e4t_core.weight_changes").full_differences(concept.weights)
    tensors = {f"difference/{name}": stored.values for name, stored in differences.items()}
    tensors |= {f"encoder/{key}": value for key, value in predictor.encoder.state_dict().items()}
    tensors |= {
        "embedding": concept.embedding,
        "clip_features": predictor.clip_features,
        "domain_word_embedding": predictor.domain_word_embedding,
        "latent": latent,
    }
    return tensors, {name: stored.scale for name, stored in differences.items()}


class Studio:
    """Draws tuned concepts in any form, through the pack's own code.

    Args:
        drawer: of the base, the domain and its preset.
        domain: of the individuals.
    """

    def __init__(self, drawer: Drawer, domain: str = "face") -> None:
        self.drawer, self.domain = drawer, drawer.domain(domain).domain
        unet = host.pack("nodes.host.networks.base_model").ComfyUNet
        text = host.pack("nodes.host.networks.text_encoder").ComfyTextEncoder
        changes = host.pack("e4t_core.weight_changes")
        with torch.inference_mode(False), torch.no_grad():
            self._scaled = host.pack("e4t_core.methods.e4t.method").domain_changes(self.domain)
            base = unet(drawer.base.model).parameters()
            self.empty = text(drawer.base.clip).empty().detach().cpu()
            # What all concepts of the domain have in common.
            self.shared = changes.shared_differences(base, changes.shared_factors(self._scaled))

    def held(
        self,
        tuned: Tuned,
        differences: Mapping[str, Tensor],
        encoder: Any,
        name: str,
        shared: Mapping[str, Any] | None = None,
        refine: bool = True,
    ) -> Any:
        """The pack's ``HeldConcept`` with these differences and this encoder.

        Args:
            encoder: predicts its word.
            name: of the form.
            shared: of the domain, where it is not its own.
            refine: whether the word is predicted anew at every evaluation.
        """
        pack = host.pack
        full, settings = pack("e4t_core.weight_changes").Full, self.drawer.settings()
        sampling = pack("e4t_core.loop_settings").SamplingSettings(refine=refine)
        predictor = pack("e4t_core.methods.e4t.word_predictor").E4TPredictor(
            encoder, tuned.clip_features, tuned.domain_word_embedding, self.domain.info.scale * settings.kept_of_word
        )
        with torch.inference_mode(False):
            concept = pack("e4t_core.concept").Concept(
                trigger=WORD,
                method="e4t",
                fingerprint=f"{name} of {id(tuned)}",
                base_fingerprint="the base",
                embedding=tuned.embedding,
                weights=(*self._scaled, *(full.of(key, value) for key, value in differences.items() if value.any())),
                settings=settings,
                seed=0,
                predictor=predictor,
                domain_fingerprint="the domain",
                sampling=sampling,
            )
            shared = self.shared if shared is None else shared
            return pack("nodes.host.sampling.held_concept").HeldConcept.of(concept, self.empty, {}, shared)

    def fitted(self, tuned: Tuned, size: CompactSettings) -> dict[str, Tensor | LowRank]:
        """A concept's changes as the node "Save E4T Concept" tunes them before it writes a compact file."""
        pack, base = host.pack, self.drawer.base
        concept = self.held(tuned, tuned.differences, self.encoder(tuned), "to fit").concept
        method = pack("e4t_core.methods.compact_fit")
        unet = pack("nodes.host.networks.base_model").ComfyUNet(base.model)
        text = pack("nodes.host.networks.text_encoder").ComfyTextEncoder(base.clip)
        settings = pack("e4t_core.files.compact_body").CompactSettings(**asdict(size))
        small = pack("e4t_core.training").train(
            method.CompactFit(concept, settings),
            pack("e4t_core.run").BaseModel(unet, text, "the base"),
            pack("e4t_core.photos").Photos(tuned.latent),
            method.CompactFitSettings(),
            0,
        )
        own = {change.name: change for change in small.weights if not hasattr(change, "owner")}
        return {
            name: LowRank(name, change.up, change.down, change.shape) if hasattr(change, "up") else change.difference()
            for name, change in own.items()
        }

    def encoder(self, tuned: Tuned) -> Any:
        """The domain's encoder as a concept's tuning left it."""
        encoder = self.domain.encoder.blank()
        encoder.load_state_dict(tuned.encoder, assign=True)
        return encoder.eval().requires_grad_(False)

    def base(self, held: Any) -> host.Base:
        """MODEL and CLIP that know a concept."""
        pack, base, concept = host.pack, self.drawer.base, held.concept
        memory = pack("nodes.host.learning.result_store").STORE.prompts
        with torch.inference_mode():
            clip = pack("nodes.host.prompt.concept_clip").with_concept(
                base.clip, WORD, concept.fingerprint, concept.embedding, memory
            )
            model = pack("nodes.host.sampling.patched_model").with_concept(base.model, held, memory)
        return replace(base, model=model, clip=clip)

    def pictures(self, base: host.Base, subject: Subject, refined: bool = True) -> Tensor:
        """All prompts of a subject, ``(11, 3, 128, 128)``, from the noise that all benchmarks draw them with."""
        texts = [prompt.text.format(WORD) for prompt in subject.prompts]
        seeds = [self.drawer.seeds(subject, number)[0] for number in range(len(texts))]
        if not refined:  # all in one batch, where nothing refines the word
            return host.draw(base, texts, seeds, SAMPLING)
        return torch.cat([host.draw(base, [text], [seed], SAMPLING) for text, seed in zip(texts, seeds, strict=True)])
