"""``train faces``: pre-trains the face domain (encoder and weight offsets; base, VAE and backbone frozen).

It is the paper's pre-training (section 3.3) on photos of training identities, with the core that the nodes use. It runs on the
160-channel networks; ``widen_domain`` makes the result fit the 320-channel base, exactly but for that base's tie-break.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm import tqdm

from e4t_core.clip_backbone import ClipBackbone
from e4t_core.concept_encoder import ConceptEncoder
from e4t_core.domain import Domain
from e4t_core.domain_info import DomainInfo
from e4t_core.fingerprint import fingerprint
from e4t_core.objective import diffusion_losses, draw_samples
from e4t_core.presets import MINI, templates_of
from e4t_core.weight_offsets import WeightOffsets

from .attributes import DOMAINS, Identity, Scene, identities_of, random_identity, random_scene
from .autoencoder import Autoencoder
from .models import read
from .renderer import SIZE, render
from .sampling import sample
from .text_encoder import TextEncoder
from .train_backbone import INFO as BACKBONE
from .training import Run, Schedule
from .training_unet import TrainingText, TrainingUNet
from .unet import STOCK_WIDTH, UNetModel
from .widen import double

log = logging.getLogger(__name__)
SCALE = 0.1  # the text encoder's word rows have CLIP's norm
REGULARIZATION = 1e-4
CONCEPTS, CONCEPT_SEED = 4096, 11  # training identities, one photo each, and the seed they are drawn from
CHUNK = 64
STYLE_PHOTO, ZOOM_PORTRAIT = 0, 0
LATENT = SIZE // 8


def concept_scene(rng: np.random.Generator) -> Scene:
    """Concept pictures are photos in portrait; half of them with an accessory."""
    accessory = int(rng.integers(1, 5)) if rng.random() < 0.5 else 0
    return random_scene(rng, style=STYLE_PHOTO, zoom=ZOOM_PORTRAIT, accessory=accessory)


def training_identities(domain: str, chunk: int, rng: np.random.Generator | None = None) -> list[Identity]:
    """The ``CHUNK`` individuals of one chunk of the training concepts."""
    rng = rng or np.random.default_rng([CONCEPT_SEED, chunk])
    return [random_identity(rng, domain, "train") for _ in range(CHUNK)]


def load_backbone(device: torch.device | str = "cpu") -> ClipBackbone:
    """The shipped image backbone."""
    return ClipBackbone(BACKBONE, read("backbone")[0], device)


def subject_masks(identities: Sequence[Identity], scenes: Sequence[Scene], pictures: Tensor) -> Tensor:
    """Where the person is ``(B, 1, 128, 128)`` in {0, 1}: neither background nor accessory.

    With it the loss does not reward a word for telling the background, which no template mentions.
    """
    elsewhere = [replace(scene, background=(scene.background + 4) % 8) for scene in scenes]
    bare = [replace(scene, accessory=0) for scene in scenes]
    background = (render(identities, elsewhere) - pictures).abs().amax(1, keepdim=True) > 0.02
    accessory = (render(identities, bare) - pictures).abs().amax(1, keepdim=True) > 0.02
    return (~background & ~accessory).float()


class Concepts:
    """Latents, CLIP features and face masks of the training identities, one photo each.

    Computed once and kept in ``folder``.
    """

    def __init__(self, folder: Path, domain: str, vae: Autoencoder, backbone: ClipBackbone) -> None:
        weights = {f"vae.{k}": v for k, v in vae.state_dict().items()} | backbone.tower.state_dict()
        path = folder / f"concepts-{fingerprint(weights, f'{domain} {CONCEPTS} {CONCEPT_SEED} masks')[:12]}.safetensors"
        if path.exists():
            kept = load_file(path)
            self.latents, self.features, self.masks = kept["latents"], kept["features"], kept["masks"]
            return
        latents, features, masks = [], [], []
        for chunk in tqdm(range(CONCEPTS // CHUNK), desc="concept photos", disable=None):
            rng = np.random.default_rng([CONCEPT_SEED, chunk])
            identities = training_identities(domain, chunk, rng)
            scenes = [concept_scene(rng) for _ in identities]
            pictures = render(identities, scenes)
            masks.append(F.adaptive_avg_pool2d(subject_masks(identities, scenes, pictures), LATENT))
            with torch.no_grad():
                latents.append(vae.to_unet(vae.encode(pictures)))
                features.append(backbone.cls_features(pictures))
        self.latents, self.features, self.masks = torch.cat(latents), torch.cat(features), torch.cat(masks)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"latents": self.latents, "features": self.features, "masks": self.masks}, path)


class _Trained(nn.Module):
    def __init__(self, encoder: ConceptEncoder, offsets: WeightOffsets) -> None:
        super().__init__()
        self.encoder, self.offsets = encoder, offsets


def train(
    folder: Path,
    domain: str,
    model: UNetModel,
    text_model: TextEncoder,
    concepts: Concepts,
    schedule: Schedule,
    batch: int,
    seed: int,
    regularization: float = REGULARIZATION,
    start: Mapping[str, Tensor] | None = None,
) -> tuple[ConceptEncoder, WeightOffsets]:
    """Trains encoder and offsets, from scratch or on from the shipped narrow weights ``start``."""
    unet, text = TrainingUNet(model), TrainingText(text_model)
    encoder = ConceptEncoder(len(BACKBONE.layers), BACKBONE.width, unet.feature_width, text.width)
    with torch.no_grad():  # an untrained offset should not drown the domain word
        encoder.final.weight.mul_(0.1)
        encoder.final.bias.zero_()
    trained = _Trained(encoder, WeightOffsets(unet.attention_projections()))
    if start is not None:
        trained.load_state_dict(start)
    run = Run(folder, trained, schedule)
    base, word, empty = unet.parameters(), text.word(DOMAINS[domain].word), text.empty()
    templates = templates_of("mini")

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        indices = range(step * batch, (step + 1) * batch)
        sample = draw_samples(
            seed,
            indices,
            latent_shape=concepts.latents.shape[1:],
            batch=batch,
            photos=len(concepts.latents),
            templates=len(templates),
            stream="pre-training",
        )
        with unet.using(trained.offsets.apply_all(base)):
            parts = diffusion_losses(
                unet,
                text,
                trained.encoder,
                latents=concepts.latents[sample.photos],
                clip_features=concepts.features[sample.photos],
                timesteps=sample.timesteps,
                noise=sample.noise,
                templates=[templates[t] for t in sample.templates],
                domain_word_embedding=word,
                scale=SCALE,
                empty=empty,
                masks=concepts.masks[sample.photos],
            )
        ratio = SCALE * parts.offset.detach().sqrt().median() / word.norm()
        measured = {"diffusion": float(parts.diffusion.detach().mean()), "ratio": float(ratio)}
        return parts.total(regularization), measured

    run.train(loss)
    run.finish()
    return trained.encoder, trained.offsets


SHEET_TEMPLATES = ("a photo of {}", "a pencil sketch of {}", "a photo of {}, wearing a hat, blue background")


@torch.no_grad()
def sample_sheet(
    path: Path,
    domain: str,
    model: UNetModel,
    text_model: TextEncoder,
    vae: Autoencoder,
    backbone: ClipBackbone,
    encoder: ConceptEncoder,
    offsets: WeightOffsets,
    count: int = 6,
) -> None:
    """Validation identities before any tuning: photo, then ``SHEET_TEMPLATES`` with the word refined at every step."""
    unet, text = TrainingUNet(model), TrainingText(text_model)
    rng = np.random.default_rng(3)
    identities = identities_of(domain, "validation", count)
    photos = render(identities, [concept_scene(rng) for _ in identities])
    clip_features = backbone.cls_features(photos).repeat(len(SHEET_TEMPLATES), 1, 1)
    templates = [template for template in SHEET_TEMPLATES for _ in identities]
    word, empty = text.word(DOMAINS[domain].word), text.empty()

    def denoise(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        half = len(templates)
        features = unet.features(z[:half], t[:half], empty.expand(half, -1, -1)).float()
        words = word + SCALE * encoder(clip_features, features)
        return unet.denoise(z, t, torch.cat([text.encode(templates, words), context[half:]]))

    placeholder = empty.expand(len(templates), -1, -1)
    with torch.autocast("cpu", torch.bfloat16), unet.using(offsets.apply_all(unet.parameters())):
        latents = sample(denoise, placeholder, empty, seed=1)
        drawn = vae.decode(vae.from_unet(latents)).float().clamp(0, 1)
    save_image(torch.cat([photos, drawn]), path, nrow=count)


def widen_domain(encoder: ConceptEncoder, offsets: WeightOffsets) -> tuple[ConceptEncoder, WeightOffsets]:
    """The domain of a 160-channel base -> the domain of the base that ``widen.widen_unet`` makes of it."""
    narrow = encoder.feature_width
    wide_encoder = ConceptEncoder(encoder.layers, encoder.clip_width, 2 * narrow, encoder.word_width)
    state = dict(encoder.state_dict())
    image, features = state["final.weight"].split([encoder.clip_width, narrow], dim=1)
    state["final.weight"] = torch.cat([image, double(features, 1) / 2], dim=1)
    wide_encoder.load_state_dict(state)

    def widened(size: int) -> int:
        return 2 * size if 2 * size == STOCK_WIDTH else size

    shapes = {name: (widened(m), widened(n)) for name, (m, n) in offsets.shapes.items()}
    wide_offsets = WeightOffsets(shapes, offsets.v_size)
    wide_offsets.load_state_dict(_widen_offsets(offsets.state_dict(), offsets.shapes))
    return wide_encoder, wide_offsets


def _widen_offsets(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    wide: dict[str, Tensor] = {}
    for name, (rows, columns) in shapes.items():
        prefix = name.removesuffix(".weight")
        for layer, size in (("y", rows), ("row", rows), ("u", columns), ("column", columns)):
            weight, bias = state[f"{prefix}.{layer}.weight"], state[f"{prefix}.{layer}.bias"]
            if 2 * size == STOCK_WIDTH:
                weight = double(weight, 0) if layer in "yu" else double(double(weight, 0), 1) / 2
                bias = double(bias, 0)
            wide[f"{prefix}.{layer}.weight"], wide[f"{prefix}.{layer}.bias"] = weight, bias
        wide[f"{prefix}.v0"] = state[f"{prefix}.v0"]
    return wide


def build_domain(
    name: str, domain: str, state: Mapping[str, Tensor], backbone: Mapping[str, Tensor], step: int
) -> Domain:
    """The domain checkpoint for the 320-channel base, from shipped narrow weights (``encoder.*``, ``offsets.*``)."""
    encoder_state = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    offset_state = {k.removeprefix("offsets."): v for k, v in state.items() if k.startswith("offsets.")}
    word_width, inputs = encoder_state["final.weight"].shape
    encoder = ConceptEncoder(len(BACKBONE.layers), BACKBONE.width, inputs - BACKBONE.width, word_width)
    encoder.load_state_dict(encoder_state)
    shapes = {
        f"{key.removesuffix('.y.weight')}.weight": (
            offset_state[key].shape[0],
            offset_state[key.replace(".y.weight", ".u.weight")].shape[0],
        )
        for key in offset_state
        if key.endswith(".y.weight")
    }
    offsets = WeightOffsets(shapes)
    offsets.load_state_dict(offset_state)
    wide_encoder, wide_offsets = widen_domain(encoder, offsets)
    info = DomainInfo(
        name=name,
        word=DOMAINS[domain].word,
        base_family="sd1",
        prediction="epsilon",
        context_width=word_width,
        feature_width=wide_encoder.feature_width,
        projections=wide_offsets.shapes,
        backbone=replace(BACKBONE),
        scale=SCALE,
        templates="mini",
        preset=MINI,
        image_size=SIZE,
        crop_margin=0.25,
        training={"data": f"rendered photos of training {domain}s of the mini world", "regularization": REGULARIZATION},
        licence="Apache-2.0",
        step=step,
    )
    return Domain(wide_encoder, wide_offsets, info, {k: v.half() for k, v in backbone.items()})
