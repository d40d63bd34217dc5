"""A base in one ``.safetensors`` checkpoint, the layout artists have: built and converted without any download.

The shapes in the file say which Stable Diffusion it is; diffusers' own conversion functions rename the weights. Every
parameter must then be there with its shape, and nothing may be left over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from e4t_core.files.checked_file import read_header, read_tensors
from e4t_core.files.file_errors import FileError, FileKind
from e4t_core.noise_schedule import PREDICTIONS, NoiseSchedule, Prediction

from .clip_text import bundled_tokenizer
from .latents import SCALING, LatentCoder

FAMILIES = {768: "sd1", 1024: "sd2"}
"""Context width -> family."""
SUPPORTED = "A domain is trained on Stable Diffusion 1.x or 2.x (4 latent channels, context 768 or 1024)"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_L = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
OPEN_CLIP_ROWS = ("token_embedding.weight", "positional_embedding")
HEADS = 8  # of every SD 1.x attention
HEAD_WIDTH = 64  # of every SD 2.x attention, and of CLIP's text towers
SAID = "modelspec.prediction_type"
TINY_SCALARS = ("vae_scale", "vae_shift")


class BaseModelError(FileError):
    """A base model that cannot be used; the message is one sentence: value, file, folder, what to do."""


BASE_MODEL = FileKind(
    "Base model",
    error=BaseModelError,
    missing="put a Stable Diffusion 1.x or 2.x .safetensors checkpoint or diffusers folder there, or correct the path",
)
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


class SingleFile:
    """An opened checkpoint; its parts are read one at a time, so that nothing is held twice.

    Args:
        path: of the ``.safetensors`` file.
        shapes_only: give networks on the meta device: nothing but the header is read.

    Raises:
        BaseModelError: it is missing, no safetensors file, truncated, or not a plain Stable Diffusion 1.x or 2.x.
    """

    def __init__(self, path: Path, shapes_only: bool = False) -> None:
        self.path, self._shapes_only = path, shapes_only
        if path.suffix.lower() in PICKLES and path.is_file():
            raise BASE_MODEL.fault(
                path,
                f"is no safetensors file, and {path.suffix} files can hold programs",
                "take the .safetensors file of the same model",
            )
        header = read_header(path, BASE_MODEL)
        self._tensors, self._shapes, self._metadata = header.tensors, header.shapes, header.metadata
        self.context_width = self._check()

    @property
    def family(self) -> str:
        """ "sd1" or "sd2"."""
        return FAMILIES[self.context_width]

    def schedule(self) -> NoiseSchedule:
        """The noise schedule of all Stable Diffusion 1.x and 2.x: a single file does not say it."""
        return schedule_of(DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))

    def tokenizer(self) -> CLIPTokenizer:
        """CLIP's, which a single file does not hold."""
        return bundled_tokenizer(self.family)

    def prediction(self) -> Prediction:
        """What the UNet predicts: as the file says, else "epsilon" for SD 1.x and what the weights suggest for SD 2.x.

        SD 2.x comes as both. ComfyUI tells them apart by one bias, which spreads by more than 0.09 in those trained to
        predict v; the same is done here, so that a domain made here fits there.
        """
        if self._metadata.get(SAID) in PREDICTIONS:
            return "v" if self._metadata[SAID] == "v" else "epsilon"
        bias = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
        if self.family == "sd1" or bias not in self._shapes:
            return "epsilon"
        return "v" if self._read(bias)[bias].float().std(correction=0) > 0.09 else "epsilon"

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet.

        Raises:
            BaseModelError: its shapes are of no Stable Diffusion 1.x or 2.x.
        """
        config = self._unet_config()
        state = self._part(UNET)
        return self._fill(
            self._build(UNet2DConditionModel, config, "UNet"), convert_ldm_unet_checkpoint(state, config), dtype, "UNet"
        )

    def text(self, dtype: torch.dtype) -> CLIPTextModel:
        """The text model; SD 2.x's without its last layer, which prompts skip.

        Raises:
            BaseModelError: there is none, or its shapes are of no CLIP text model.
        """
        for prefix in OPEN_CLIP:
            if f"{prefix}token_embedding.weight" in self._shapes:
                return self._open_clip_text(prefix, dtype)
        state = convert_ldm_clip_checkpoint(self._part(*CLIP_L))
        state = {name.removeprefix("text_model."): value for name, value in state.items()}
        return self._clip_text(state, "quick_gelu", dtype)

    def vae(self, dtype: torch.dtype) -> LatentCoder:
        """The VAE: Stable Diffusion's, or a tiny one (TAESD) that carries its own scale and shift.

        Raises:
            BaseModelError: there is none in the file, or its shapes are of no Stable Diffusion VAE.
        """
        if f"{VAE}taesd_encoder.0.weight" in self._shapes:
            return self._tiny_vae(dtype)
        state = self._part(*(f"{VAE}{part}." for part in ("encoder", "decoder", "quant_conv", "post_quant_conv")))
        if f"{VAE}encoder.conv_in.weight" not in state:
            raise BaseModelError(
                f"Base model {self.path.name} in {self.path.parent} holds no VAE: take a checkpoint that does, or the"
                " diffusers folder of the same model."
            )
        config = self._vae_config(state)
        network = self._build(AutoencoderKL, config, "VAE")
        return LatentCoder(self._fill(network, convert_ldm_vae_checkpoint(state, config), dtype, "VAE"), SCALING)

    def _tiny_vae(self, dtype: torch.dtype) -> LatentCoder:
        state = {}
        for name, value in self._part(f"{VAE}taesd_").items():
            part, number, rest = name.removeprefix(f"{VAE}taesd_").split(".", 2)
            # diffusers has the decoder's clamp in its forward, not as layer 0.
            state[f"{part}.layers.{int(number) - (part == 'decoder')}.{rest}"] = value
        network = self._build(AutoencoderTiny, {}, "VAE")
        names = [f"{VAE}{name}" for name in TINY_SCALARS if f"{VAE}{name}" in self._shapes]
        scale, shift = map(float, self._read(*names).values()) if len(names) == 2 else (1.0, 0.0)
        return LatentCoder(self._fill(network, state, dtype, "VAE"), SCALING / scale, SCALING * shift)

    def _check(self) -> int:
        where = f"base model {self.path.name} in {self.path.parent}"
        first = self._shapes.get(f"{UNET}input_blocks.0.0.weight")
        if first is None:
            raise BaseModelError(
                f"{SUPPORTED}, but {where} holds no such UNet (there is no"
                f" {UNET}input_blocks.0.0.weight): take a whole SD 1.5 checkpoint, not a LoRA, VAE or other model."
            )
        if first[1] != 4:
            raise BaseModelError(
                f"{SUPPORTED}, but {where} reads {first[1]} channels, as inpaint and edit models do: take"
                " the plain checkpoint of the same family."
            )
        widths = {shape[1] for name, shape in self._shapes.items() if name.endswith("attn2.to_k.weight")}
        if len(widths) != 1 or not widths <= FAMILIES.keys() or f"{UNET}label_emb.0.0.weight" in self._shapes:
            found = ", ".join(map(str, sorted(widths))) or "none"
            raise BaseModelError(
                f"{SUPPORTED}, but {where} has context width {found}"
                f"{' and label embeddings' if f'{UNET}label_emb.0.0.weight' in self._shapes else ''} (SDXL, unCLIP and"
                " their relatives): take an SD 1.5 checkpoint."
            )
        small = [name for name, info in self._tensors.items() if info.dtype in EIGHT_BITS]
        if small:
            raise BaseModelError(
                f"Base model {self.path.name} in {self.path.parent} is quantized ({small[0]} has 8 bits): take the same"
                " model in fp16, bf16 or fp32."
            )
        return widths.pop()

    def _part(self, *prefixes: str) -> dict[str, Tensor]:
        """The tensors under any of these prefixes, by their full names."""
        found = {name: info for name, info in self._tensors.items() if name.startswith(prefixes)}
        if self._shapes_only:
            return {name: torch.empty(info.shape, dtype=info.dtype, device="meta") for name, info in found.items()}
        return self._read(*found)

    def _read(self, *names: str) -> dict[str, Tensor]:
        return read_tensors(self.path, {name: self._tensors[name] for name in names}, BASE_MODEL)

    def _unet_config(self) -> dict[str, Any]:
        """diffusers' configuration, from the shapes; sampling rates and heads are those of the family."""
        levels: list[list[int]] = [[]]
        number = 1
        while any(name.startswith(f"{UNET}input_blocks.{number}.") for name in self._shapes):
            if f"{UNET}input_blocks.{number}.0.op.weight" in self._shapes:
                levels.append([])
            else:
                levels[-1].append(number)
            number += 1
        channels: list[int] = []
        attends: list[bool] = []
        for blocks in levels:
            outputs = {self._shapes.get(f"{UNET}input_blocks.{i}.0.out_layers.3.weight", (0,))[0] for i in blocks}
            attention = {f"{UNET}input_blocks.{i}.1.norm.weight" in self._shapes for i in blocks}
            if len(outputs) != 1 or outputs == {0} or len(attention) != 1 or len(blocks) != len(levels[0]):
                raise self._odd_shape("UNet", f"its level {len(channels) + 1} of {len(levels)} is irregular")
            channels.append(outputs.pop())
            attends.append(attention.pop())
        sd2 = self.family == "sd2"
        return {
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": tuple(channels),
            "layers_per_block": len(levels[0]),
            "down_block_types": tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
            "up_block_types": tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
            "cross_attention_dim": self.context_width,
            # diffusers' name for the NUMBER of heads.
            "attention_head_dim": tuple(count // HEAD_WIDTH for count in channels) if sd2 else HEADS,
            "use_linear_projection": sd2,
            # As SD 2.1 says of itself; SD 2.0 does not need it, and loses nothing.
            "upcast_attention": sd2,
        }

    def _vae_config(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        channels: list[int] = []
        while (weight := state.get(f"{VAE}encoder.down.{len(channels)}.block.0.conv2.weight")) is not None:
            channels.append(int(weight.shape[0]))
        blocks = sum(name.startswith(f"{VAE}encoder.down.0.block.") and name.endswith("conv1.weight") for name in state)
        latents = state.get(f"{VAE}quant_conv.weight")
        if not channels or latents is None:
            raise self._odd_shape("VAE", "it has no blocks or no quant_conv")
        return {
            "block_out_channels": tuple(channels),
            "layers_per_block": blocks,
            "down_block_types": ("DownEncoderBlock2D",) * len(channels),
            "up_block_types": ("UpDecoderBlock2D",) * len(channels),
            "latent_channels": int(latents.shape[0]) // 2,
            "scaling_factor": SCALING,
        }

    def _open_clip_text(self, prefix: str, dtype: torch.dtype) -> CLIPTextModel:
        # Without the projection of pooled outputs, which prompts do not need, the widths come from the configuration.
        state = self._part(
            f"{prefix}transformer.", f"{prefix}ln_final.", *(f"{prefix}{part}" for part in OPEN_CLIP_ROWS)
        )
        blocks = {int(name.split("resblocks.")[1].split(".")[0]) for name in state if "resblocks." in name}
        last = f"{prefix}transformer.resblocks.{max(blocks, default=0)}."
        kept = {name: value for name, value in state.items() if not name.startswith(last)}
        width = int(state[f"{prefix}token_embedding.weight"].shape[1])
        converted = convert_open_clip_checkpoint(
            SimpleNamespace(config=CLIPTextConfig(hidden_size=width)), kept, prefix
        )
        return self._clip_text({n.removeprefix("text_model."): v for n, v in converted.items()}, "gelu", dtype)

    def _clip_text(self, state: Mapping[str, Tensor], activation: str, dtype: torch.dtype) -> CLIPTextModel:
        rows = state.get("embeddings.token_embedding.weight")
        inner = state.get("encoder.layers.0.mlp.fc1.weight")
        if rows is None or inner is None:
            raise BaseModelError(
                f"Base model {self.path.name} in {self.path.parent} holds no text encoder: take a whole checkpoint, or"
                " the diffusers folder of the same model."
            )
        if rows.shape[1] != self.context_width:
            raise self._odd_shape(
                "text encoder", f"its width is {rows.shape[1]}, the UNet's context {self.context_width}"
            )
        layers = len({name.split(".")[2] for name in state if name.startswith("encoder.layers.")})
        config = CLIPTextConfig(
            vocab_size=rows.shape[0],
            hidden_size=rows.shape[1],
            intermediate_size=inner.shape[0],
            num_hidden_layers=layers,
            num_attention_heads=rows.shape[1] // HEAD_WIDTH,
            max_position_embeddings=state["embeddings.position_embedding.weight"].shape[0],
            hidden_act=activation,
            bos_token_id=rows.shape[0] - 2,
            eos_token_id=rows.shape[0] - 1,
        )
        with init_empty_weights():
            network = CLIPTextModel(config)
        unused = ("text_projection", "logit_scale", "embeddings.position_ids")
        found = {name: value for name, value in state.items() if not name.startswith(unused)}
        # transformers before 5.6 wraps it once more.
        self._fill(getattr(network, "text_model", network), found, dtype, "text encoder")
        return network

    def _build(self, kind: Any, config: Mapping[str, Any], part: str) -> Any:
        """A network of these shapes without weights."""
        try:
            with init_empty_weights():
                return kind(**config)
        except (ValueError, ZeroDivisionError) as error:
            raise self._odd_shape(part, one_line(error)) from error

    def _fill(self, network: Any, state: Mapping[str, Tensor], dtype: torch.dtype, part: str) -> Any:
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        for name, shape in expected.items():
            if name not in state:
                raise self._odd_shape(part, f"{name} is missing")
            if tuple(state[name].shape) != shape:
                raise self._odd_shape(part, f"{name} has shape {tuple(state[name].shape)} in place of {shape}")
        extra = sorted(state.keys() - expected.keys())
        if extra:
            raise self._odd_shape(part, f"{extra[0]} is too many")
        network.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
        return network.eval().requires_grad_(False)

    def _odd_shape(self, part: str, found: str) -> BaseModelError:
        return BaseModelError(
            f"The {part} of base model {self.path.name} in {self.path.parent} is of no Stable Diffusion 1.x or 2.x"
            f" ({found}): take another checkpoint of these families."
        )


def schedule_of(scheduler: DDPMScheduler) -> NoiseSchedule:
    """A diffusers scheduler's noise schedule."""
    return NoiseSchedule(scheduler.alphas_cumprod.float().clone())


def one_line(error: BaseException) -> str:
    """An error's first words on one line: libraries write paragraphs."""
    return " ".join(str(error).split())[:200]
