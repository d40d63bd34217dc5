"""The small world that the tests share: a random base, a random domain, photos, and how to sample with stock nodes."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import comfy.clip_model
import comfy.ops
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.taesd.taesd
import comfy.utils
import torch
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.learning.settings_choice import SettingsChoice
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from e4t_pack.nodes.host.networks.text_encoder import ComfyTextEncoder
from e4t_pack.nodes.host.prompt import concept_clip
from e4t_pack.nodes.host.sampling import patched_model
from e4t_pack.nodes.host.sampling.held_concept import HeldConcept

from e4t_core.concept import Concept
from e4t_core.loop_settings import SamplingSettings
from e4t_core.methods.e4t.clip_backbone import build_vision_tower
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.domain_info import BackboneInfo, DomainInfo
from e4t_core.methods.e4t.offset_forms import make_offsets
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.word_predictor import E4TPredictor
from e4t_core.templates import NEUTRAL
from e4t_core.weight_changes import Full, Scaled

ROOT = Path(__file__).resolve().parents[2]
LATENT = 4  # side of a latent in the tests
TEXT_CONFIG = {"num_hidden_layers": 2, "intermediate_size": 256}
QUICK = TuningSettings(
    steps=1, learning_rate=1e-4, regularization=0.01, batch=2, micro_batch=2, train_unet=False, find_subject=False
)
# As the product has it; looking for the subject costs more than all the rest of a quick tuning.
LOOKING = dataclasses.replace(QUICK, find_subject=True)


def _training_unet():
    spec = importlib.util.spec_from_file_location("miniworld_unet", ROOT / "miniworld" / "unet.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["miniworld_unet"] = module
    spec.loader.exec_module(module)
    shape = module.UNetShape(width=320, input_depths=((1,),), output_depths=((0, 1),), middle_depth=1)
    return module.UNetModel(shape)


def make_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint's state dict as Stable Diffusion 1.x has it, with random weights."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape, scale):
        return torch.randn(shape, generator=generator) * scale

    state = {}
    for name, value in _training_unet().state_dict().items():
        if value.ndim < 2:
            state[name] = torch.ones_like(value) if name.endswith("weight") else draw(value.shape, 0.02)
        else:
            state[name] = draw(value.shape, value[0].numel() ** -0.5)
    unet = {f"model.diffusion_model.{name}": value for name, value in state.items()}
    text = {}
    shapes = comfy.clip_model.CLIPTextModel(text_config(), torch.float32, "meta", comfy.ops.manual_cast)
    for name, value in shapes.state_dict().items():
        scale = 0.014 if "embedding" in name else value.shape[-1] ** -0.5
        is_norm = "norm" in name and name.endswith("weight")
        text[f"cond_stage_model.transformer.{name}"] = torch.ones(value.shape) if is_norm else draw(value.shape, scale)
    vae = {}
    for name, value in comfy.taesd.taesd.TAESD().state_dict().items():
        vae[f"first_stage_model.{name}"] = draw(value.shape, 0.05) if value.ndim else torch.ones(())
    return unet | text | vae


def text_config() -> dict:
    """CLIP-L's shapes, with fewer layers and a narrower MLP."""
    stock = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    return stock | TEXT_CONFIG


def text_options() -> dict:
    """A two-layer text encoder, to save time: everything else is stock."""
    return {"clip_l_model_config": TEXT_CONFIG, "dtype": torch.float32}


def make_base(seed: int = 0, embeddings: Path | None = None, **options):
    """(MODEL, CLIP, VAE) through ComfyUI's own checkpoint loading; textual inversions are looked for in ``embeddings``."""
    folders = [] if embeddings is None else [str(embeddings)]
    model, clip, vae, _ = comfy.sd.load_state_dict_guess_config(
        make_state(seed), embedding_directory=folders, te_model_options=text_options(), model_options=options
    )
    # Checkpoints of Stable Diffusion 1.5 bring none, so ComfyUI leaves memory as it was there: sometimes NaN, which no
    # comparison of weights would survive.
    torch.nn.init.eye_(clip.cond_stage_model.clip_l.transformer.text_projection.weight)
    return model, clip, vae


def backbone_info() -> BackboneInfo:
    """A two-block vision transformer of width 32."""
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    }
    return BackboneInfo("open_clip", json.dumps(architecture), (1, 2), 32, 32, weights_inside=True)


def make_domain(unet: ComfyUNet, name: str = "faces", seed: int = 0, **changes) -> Domain:
    """A random domain for a base; its offsets and its encoder do something."""
    generator = torch.Generator().manual_seed(seed)
    shapes = unet.attention_projections()
    form = changes.get("offset_form", "network")
    offsets = make_offsets(form, shapes, 32 if form == "hypernetwork" else 1, generator=generator)
    with torch.no_grad():
        for module in offsets.modules():
            if hasattr(module, "delta"):
                module.delta.copy_(0.1 * torch.randn(module.delta.shape, generator=generator))
            if hasattr(module, "row"):
                module.row.bias.copy_(0.1 * torch.randn(module.row.bias.shape, generator=generator))
    info = DomainInfo(
        name=name,
        word="face",
        base_family="sd1",
        prediction="epsilon",
        context_width=768,
        feature_width=unet.feature_width,
        projections=shapes,
        backbone=backbone_info(),
        scale=0.1,
        templates=NEUTRAL,
        preset=QUICK,
        image_size=8 * LATENT,
    )
    info = dataclasses.replace(info, **changes)
    encoder = ConceptEncoder(2, 32, unet.feature_width, info.context_width, generator=generator)
    with torch.no_grad():
        # Strong enough that the word moves visibly over the schedule.
        encoder.final.weight.mul_(3)
    tower = build_vision_tower(backbone_info())
    drawn = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in tower.state_dict().items()}
    return Domain(encoder.eval().requires_grad_(False), offsets.eval().requires_grad_(False), info, drawn)


def photo(count: int = 1, height: int = 80, width: int = 64, seed: int = 0) -> torch.Tensor:
    """IMAGE ``(count, height, width, 3)``."""
    return torch.rand((count, height, width, 3), generator=torch.Generator().manual_seed(seed))


def make_concept(
    domain: Domain,
    seed: int = 0,
    trigger: str = "S*",
    differences: dict[str, torch.Tensor] | None = None,
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    **changes,
) -> Concept:
    """A concept as tuning would make it, without tuning: random differences and features."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: 0.01 * torch.randn(shape, generator=generator) for name, shape in domain.info.projections.items()}
    word_row = 0.38 / 768**0.5 * torch.randn(768, generator=torch.Generator().manual_seed(99))
    clip_features = torch.randn((1, 2, 32), generator=generator)
    pairs = domain.offsets.collapse() if factors is None else factors
    # A copy, as a tuned one is: ComfyUI collects garbage at every load while a network outlives its patcher.
    with torch.inference_mode(False), torch.no_grad():
        encoder = copy.deepcopy(domain.encoder)
    concept = Concept(
        trigger=trigger,
        method="e4t",
        fingerprint=f"concept {seed} {trigger}",
        base_fingerprint="",
        embedding=(word_row + 0.1 * torch.randn(768, generator=generator) / 768**0.5)[None],
        weights=(
            *(Scaled(name, p, q, domain.fingerprint) for name, (p, q) in pairs.items()),
            *(Full.of(name, value) for name, value in (drawn if differences is None else differences).items()),
        ),
        settings=QUICK,
        seed=seed,
        predictor=E4TPredictor(encoder, clip_features, word_row, domain.info.scale),
        domain_name=domain.info.name,
        domain_fingerprint=domain.fingerprint,
    )
    return dataclasses.replace(concept, **changes)


def held(base, concept: Concept) -> HeldConcept:
    """A concept as a MODEL holds it."""
    return HeldConcept.of(concept, ComfyTextEncoder(base[1]).empty(), ComfyUNet(base[0]).parameters())


def chosen(settings: TuningSettings, **sampling) -> SettingsChoice:
    """What E4T Settings gives with every value set."""
    return SettingsChoice("", dataclasses.asdict(settings), SamplingSettings(**sampling))


def hold(base, concept: Concept, memory=None):
    """(MODEL, CLIP) that hold a concept, as "E4T Personalize" makes them."""
    memory = memory or STORE.prompts
    new_clip = concept_clip.with_concept(base[1], concept.trigger, concept.fingerprint, concept.embedding, memory)
    return patched_model.with_concept(base[0], held(base, concept), memory), new_clip
