"""A base in a diffusers folder: ``unet``, ``text_encoder``, ``vae``, ``scheduler`` and, if there, ``tokenizer``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from e4t_core.files.checked_file import read_header
from e4t_core.noise_schedule import NoiseSchedule, Prediction

from .clip_text import bundled_tokenizer
from .latents import LatentCoder
from .single_file import BASE_MODEL, FAMILIES, SUPPORTED, BaseModelError, one_line, schedule_of

PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
"""diffusers' word -> the core's."""
PLAIN = {
    "in_channels": (4,),
    "out_channels": (4,),
    "cross_attention_dim": tuple(FAMILIES),
    "addition_embed_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "time_cond_proj_dim": (None,),
}
"""What a UNet's configuration must say (or leave out) to be a plain Stable Diffusion 1.x or 2.x."""


class DiffusersFolder:
    """An opened folder; its parts are read one at a time.

    Args:
        path: of the folder.
        shapes_only: give networks on the meta device: nothing but configurations and headers is read.

    Raises:
        BaseModelError: its UNet is of no plain Stable Diffusion 1.x or 2.x.
    """

    def __init__(self, path: Path, shapes_only: bool = False) -> None:
        self.path, self._shapes_only = path, shapes_only
        config = self._config("unet", "config.json")
        for name, allowed in PLAIN.items():
            value = config.get(name, allowed[0])
            if value not in allowed:
                raise BaseModelError(
                    f"{SUPPORTED}, but the unet of base model {path.name} in {path.parent} has {name} ="
                    f" {value!r}, as inpaint, SDXL, unCLIP and their relatives do: take the folder of SD 1.5."
                )
        if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
            raise BaseModelError(
                f"{SUPPORTED}, but the unet of base model {path.name} in {path.parent} is a"
                f" {config['_class_name']}: take the folder of SD 1.5."
            )
        self.context_width = int(config.get("cross_attention_dim", 0))

    @property
    def family(self) -> str:
        """ "sd1" or "sd2"."""
        return FAMILIES[self.context_width]

    def prediction(self) -> Prediction:
        found = self._config("scheduler", "scheduler_config.json").get("prediction_type", "epsilon")
        if found not in PREDICTIONS:
            raise BaseModelError(
                f"Base model {self.path.name} in {self.path.parent} has prediction_type {found!r} in its"
                f" scheduler/scheduler_config.json: it must be one of {', '.join(PREDICTIONS)}, so take another base."
            )
        return PREDICTIONS[found]

    def schedule(self) -> NoiseSchedule:
        return schedule_of(DDPMScheduler.from_config(self._config("scheduler", "scheduler_config.json")))

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        return self._load(UNet2DConditionModel, "unet", "diffusion_pytorch_model", dtype)

    def text(self, dtype: torch.dtype) -> CLIPTextModel:
        self._config("text_encoder", "config.json")
        return self._load(CLIPTextModel, "text_encoder", "model", dtype)

    def vae(self, dtype: torch.dtype) -> LatentCoder:
        config = self._config("vae", "config.json")
        if config.get("latent_channels", 4) != 4:
            raise BaseModelError(
                f"{SUPPORTED}, but the vae of base model {self.path.name} in {self.path.parent} has"
                f" {config['latent_channels']} latent channels: take the folder of SD 1.5."
            )
        network = self._load(AutoencoderKL, "vae", "diffusion_pytorch_model", dtype)
        return LatentCoder(network, float(network.config.scaling_factor))

    def tokenizer(self) -> CLIPTokenizer:
        """Its own, whose vocabulary a fine-tune may have extended; else the one that all of the family share."""
        if not (self.path / "tokenizer").is_dir():
            return bundled_tokenizer(self.family)
        try:
            return CLIPTokenizer.from_pretrained(self.path / "tokenizer", local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise self._unreadable("tokenizer", error) from error

    def _config(self, part: str, name: str) -> Mapping[str, Any]:
        file = self.path / part / name
        if not file.is_file():
            raise BaseModelError(
                f"Base model folder {self.path.name} in {self.path.parent} has no {part}/{name}: it must be a diffusers"
                " folder with unet, text_encoder, vae and scheduler, or give the path of a .safetensors checkpoint."
            )
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it is no JSON object")
        except (OSError, ValueError) as error:
            raise self._unreadable(f"{part}/{name}", error) from error
        return found

    def _load(self, kind: Any, part: str, stem: str, dtype: torch.dtype) -> Any:
        folder = self.path / part
        plain, half = (any(folder.glob(f"{stem}{end}")) for end in (".safetensors*", ".fp16*.safetensors*"))
        plain = plain or any(folder.glob(f"{stem}-*.safetensors"))
        if not (plain or half):
            raise BaseModelError(
                f"Base model folder {self.path.name} in {self.path.parent} has no {part}/{stem}.safetensors: download"
                " the .safetensors files of the same model, because .bin files can hold programs."
            )
        variant = None if plain else "fp16"
        if self._shapes_only:
            return self._outline(kind, part, self._files(part, stem, variant)).to(dtype)
        try:
            network, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                torch_dtype=dtype,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
            raise self._unreadable(part, error) from error
        for fault in ("missing_keys", "mismatched_keys"):
            # Old text encoders carry their positions' numbers as a tensor, newer ones count.
            found = [name for name in report.get(fault, ()) if "position_ids" not in str(name)]
            if found:
                raise self._unreadable(part, ValueError(f"{fault.replace('_', ' ')}: {min(map(str, found))}"))
        return network

    def _files(self, part: str, stem: str, variant: str | None) -> list[Path]:
        """The safetensors files of a part: one, or those that its index names."""
        folder = self.path / part
        index = next(iter(sorted(folder.glob(f"{stem}.safetensors.index*.json"))), None)
        if index is None:
            return [folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors"]
        named = self._config(part, index.name).get("weight_map")
        if not isinstance(named, dict):
            raise self._unreadable(f"{part}/{index.name}", ValueError("it has no weight_map"))
        return [folder / str(name) for name in sorted(set(named.values()))]

    def _outline(self, kind: Any, part: str, files: list[Path]) -> Any:
        """The network that the configuration describes, on the meta device; the files' shapes must agree with it.

        Names are not compared: libraries rename those of older files while they load.
        """
        config = dict(self._config(part, "config.json"))
        try:
            with init_empty_weights():
                network = kind(CLIPTextConfig.from_dict(config)) if kind is CLIPTextModel else kind.from_config(config)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, ZeroDivisionError) as error:
            raise self._unreadable(part, error) from error
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        for file in files:
            for name, shape in read_header(file, BASE_MODEL).shapes.items():
                if expected.get(name, shape) != shape:
                    raise self._unreadable(part, ValueError(f"mismatched keys: {name}"))
        return network

    def _unreadable(self, part: str, error: Exception) -> BaseModelError:
        return BaseModelError(
            f"{part} of base model folder {self.path.name} in {self.path.parent} could not be read"
            f" ({one_line(error)}): download it again."
        )
