"""ComfyUI in this process, without a server: its loaders, its sampler and this pack's nodes, on the mini world.

The pack is imported as ComfyUI does it, as a package of another name, and ComfyUI's folder stands before the repository
on the path, because both have a ``nodes``. Import this module before anything of ComfyUI.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commands.inside import imported
from commands.inside.one_core import PACK
from e4t_core.fingerprint import fingerprint
from e4t_core.methods.e4t.settings import TuningSettings

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "runs" / "bench"  # the benchmarks' own ComfyUI base directory
GUIDANCE, SCHEDULER = 5.0, "normal"


@dataclass(frozen=True)
class Sampling:
    """Attributes:
    sampler: a stock sampler's name.
    steps: of the sampler.
    """

    sampler: str
    steps: int


EULER = Sampling("euler", 20)  # what the base's gate is defined with
SECOND_ORDER = Sampling("dpmpp_2m", 10)  # the same picture in half the evaluations


class NoComfyUIError(RuntimeError):
    """There is no ComfyUI to run in."""


def import_comfyui() -> None:
    """Makes ``comfy`` and this pack (as ``e4t_pack``) importable; a second call does nothing.

    Raises:
        NoComfyUIError: neither COMFYUI_PATH nor .dev/comfyui holds one.
    """
    if PACK in sys.modules:
        return
    comfyui = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "comfyui")
    if not (comfyui / "comfy").is_dir():
        raise NoComfyUIError(f"{comfyui} holds no ComfyUI: run 'python3 dev.py demo' once, or set COMFYUI_PATH.")
    on = [] if torch.cuda.is_available() else ["--cpu"]
    imported.import_comfyui(comfyui, ["--base-directory", str(BASE), *on])
    logging.getLogger().setLevel(logging.WARNING)  # ComfyUI tells of every model that it loads


def pack(name: str) -> Any:
    """A module of this pack by its dotted name, for example "nodes.host.learning.learn"."""
    import_comfyui()
    return imported.pack(name)


@cache
def weights_fingerprint(*names: str) -> str:
    """A short hash of shipped weights: what was measured with other weights is never mistaken for these."""
    from miniworld.models import read

    return fingerprint({f"{name}.{k}": v for name in names for k, v in read(name)[0].items()})[:12]


@dataclass(frozen=True)
class Base:
    """A base as CheckpointLoaderSimple gives it."""

    model: Any
    clip: Any
    vae: Any


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it (AVX512-BF16 or AMX): about twice as fast."""
    found = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(known() for known in found if known)


def load_base(checkpoint: Path) -> Base:
    """Loads a checkpoint by ComfyUI's own loader; samples in bfloat16, as its node ModelComputeDtype does, where a CPU can.

    Weights and tuning stay float32.
    """
    import_comfyui()
    import comfy.sd
    import folder_paths

    embeddings = BASE / "models" / "embeddings"
    embeddings.mkdir(parents=True, exist_ok=True)
    folders = [str(embeddings), *folder_paths.get_folder_paths("embeddings")]
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(checkpoint), embedding_directory=list(dict.fromkeys(folders))
        )
        if model.load_device.type == "cpu" and multiplies_bfloat16():
            model = model.clone()
            model.set_model_compute_dtype(torch.bfloat16)
    return Base(model, clip, vae)


def mini_checkpoint() -> Path:
    """The mini world's checkpoint at stock shapes, expanded from the shipped weights once for each state of them.

    Raises:
        MissingWeightsError: the base model has not been trained.
    """
    from miniworld.checkpoint import write_checkpoint
    from miniworld.models import load_text, load_unet, load_vae

    path = BASE / "models" / "checkpoints" / f"miniworld-{weights_fingerprint('base', 'text', 'vae')}.safetensors"
    if not path.exists():
        write_checkpoint(path, load_unet().state_dict(), load_text(), load_vae())
    return path


def mini_domain(weights: str = "faces") -> Path:
    """A domain of the mini world ("faces", "cats") as a file, expanded likewise; named by weights and description, which it holds.

    Raises:
        MissingWeightsError: it has not been trained.
    """
    from e4t_core.files.domain_file import save_domain
    from miniworld.domains import load_mini_domain

    domain = load_mini_domain(weights)
    described = hashlib.sha256(repr(domain.info).encode()).hexdigest()[:8]
    key = f"{weights_fingerprint(weights, 'backbone')}-{described}"
    path = BASE / "models" / "e4t_domains" / f"mini_{weights}-{key}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_domain(path, domain, torch.float16)
    return path


def learn_as_a_card_does() -> None:
    """From now on the nodes of this process learn with a UNet in bfloat16, as on a graphics card, whatever the device."""
    pack("nodes.host.learning.learn").compute_type = lambda _device: torch.bfloat16


def chosen(settings: TuningSettings, **sampling: Any) -> Any:
    """What E4T Settings gives with all of these values set.

    Args:
        sampling: values of how the word is drawn that are not the default.
    """
    drawn = pack("e4t_core.loop_settings").SamplingSettings(**sampling)
    return pack("nodes.host.learning.settings_choice").SettingsChoice("", asdict(settings), drawn)


@torch.inference_mode()
def encode(clip: Any, texts: Sequence[str]) -> Any:
    """CLIPTextEncode. Several texts become ONE conditioning with a row for each, so that they are drawn in one batch."""
    # ComfyUI's, which stands before this pack's on the path; a type checker would take this pack's.
    nodes: Any = importlib.import_module("nodes")
    found = [nodes.CLIPTextEncode().encode(clip, text)[0] for text in texts]
    if len(found) == 1:
        return found[0]
    rows = torch.cat([conditioning[0][0] for conditioning in found])
    pooled = torch.cat([conditioning[0][1]["pooled_output"] for conditioning in found])
    return [[rows, {"pooled_output": pooled}]]


def noise(seeds: Sequence[int], size: int = 16) -> Tensor:
    """Starting noise ``(B, 4, size, size)``, a generator for each picture: the same whatever the batch."""
    return torch.stack([torch.randn(4, size, size, generator=torch.Generator().manual_seed(s)) for s in seeds])


@torch.inference_mode()
def draw(base: Base, texts: Sequence[str], seeds: Sequence[int], sampling: Sampling = EULER) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in [0, 1] by a stock sampler (CFG 5, empty negative prompt).

    One text with many seeds goes in as it is, so that a concept's word in it is refined; several texts, one for each
    seed, share a batch as rows of one conditioning (stock prompts only).
    """
    import comfy.sample

    start = noise(seeds)
    samples = comfy.sample.sample(
        base.model, start, sampling.steps, GUIDANCE, sampling.sampler, SCHEDULER,
        encode(base.clip, texts), encode(base.clip, [""]), torch.zeros_like(start), disable_pbar=True,
    )  # fmt: skip
    return base.vae.decode(samples).movedim(-1, 1)[:, :3].float().clamp(0, 1).cpu().clone()
