"""Single-file bases that cannot be used: one sentence each. That good ones work is shown against ComfyUI's loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from commands.base.single_file import BaseModelError, SingleFile

CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


def write(
    path: Path, context: int = 768, channels: int = 4, metadata: dict[str, str] | None = None, **more: Tensor
) -> Path:
    state = {CONV_IN: torch.zeros(32, channels, 3, 3), KEY: torch.zeros(32, context)}
    save_file(state | {name.replace("__", "."): value for name, value in more.items()}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("context", "bias", "metadata", "wanted"),
    [
        (768, 0.5, None, "epsilon"),
        (1024, 0.5, None, "v"),
        (1024, 0.01, None, "epsilon"),
        (1024, 0.01, {"modelspec.prediction_type": "v"}, "v"),
        (768, 0.01, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
    ],
)
def test_what_is_predicted_is_read_off_the_file(
    tmp_path: Path, context: int, bias: float, metadata: dict[str, str] | None, wanted: str
) -> None:
    spread = bias * torch.tensor([-1.0, 1.0] * 16)
    assert (
        SingleFile(write(tmp_path / "a.safetensors", context, metadata=metadata, **{BIAS: spread})).prediction()
        == wanted
    )


def test_another_family_s_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    with pytest.raises(BaseModelError, match=r"other\.safetensors in .* reads 9 channels, as inpaint"):
        SingleFile(write(file, channels=9))
    with pytest.raises(BaseModelError, match="context width 2048 .SDXL"):
        SingleFile(write(file, context=2048))
    with pytest.raises(BaseModelError, match="context width 1024 and label embeddings"):
        SingleFile(write(file, context=1024, **{"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2)}))
    with pytest.raises(BaseModelError, match="is quantized .*to_q.* has 8 bits"):
        SingleFile(write(file, to_q=torch.zeros(2, dtype=torch.float8_e4m3fn)))
    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2)}, file)
    with pytest.raises(BaseModelError, match="holds no such UNet .*not a LoRA"):
        SingleFile(file)


def test_a_file_that_is_no_safetensors_is_explained(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(BaseModelError, match=r"model\.ckpt is no safetensors file, and \.ckpt files can hold programs"):
        SingleFile(tmp_path / "model.ckpt")
    content = write(tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BaseModelError, match=r"cut\.safetensors is truncated .* download or copy it again"):
        SingleFile(tmp_path / "cut.safetensors")


def test_missing_parts_and_odd_shapes_are_explained(tmp_path: Path) -> None:
    file = SingleFile(write(tmp_path / "bare.safetensors"))
    with pytest.raises(BaseModelError, match="holds no VAE: take a checkpoint that does"):
        file.vae(torch.float32)
    with pytest.raises(BaseModelError, match="holds no text encoder"):
        file.text(torch.float32)
    with pytest.raises(BaseModelError, match=r"UNet of base model bare\.safetensors in .* is of no Stable Diffusion"):
        file.unet(torch.float32)
    block = {"model.diffusion_model.input_blocks.1.0.out_layers.3.weight": torch.zeros(40, 40, 3, 3)}
    with pytest.raises(BaseModelError, match=r"is of no Stable Diffusion 1\.x or 2\.x \(.*32"):
        SingleFile(write(tmp_path / "forty.safetensors", **block)).unet(torch.float32)
    narrow = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.zeros(9, 64)}
    narrow["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"] = torch.zeros(8, 64)
    with pytest.raises(BaseModelError, match="its width is 64, the UNet's context 768"):
        SingleFile(write(tmp_path / "narrow.safetensors", **narrow)).text(torch.float32)
