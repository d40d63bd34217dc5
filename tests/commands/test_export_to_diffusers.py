"""An exported concept in diffusers, on the mini world's base as a diffusers folder: what it predicts, and what it cannot read."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

from diffusers import DDIMScheduler, StableDiffusionPipeline

from commands.base.diffusers_folder import DiffusersFolder
from commands.base.single_file import SingleFile
from e4t_core.canonical_names import ATTENTION_PROJECTION
from e4t_core.concept import Concept
from e4t_core.files.stock_export import Exported, Folders, export_bundle, export_pair
from e4t_core.files.stock_lora import StockLora, exact_lora, low_rank_lora
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.weight_changes import Full, Scaled, TotalDifferences, WeightChange
from miniworld.checkpoint import write_checkpoint
from miniworld.models import load_text, load_unet, load_vae

PROBES, SIDE = 4, 16
# Of the concept's own effect on a noise prediction: float32, in another order.
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini world's base, as other programs have Stable Diffusion."""
    place = tmp_path_factory.mktemp("base")
    write_checkpoint(place / "mini.safetensors", load_unet().state_dict(), load_text(), load_vae())
    file = SingleFile(place / "mini.safetensors")
    tokenizer = file.tokenizer()
    tokenizer.model_max_length = 77  # as the folders of Stable Diffusion say
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    StableDiffusionPipeline(
        vae=file.vae(torch.float32).network,
        text_encoder=file.text(torch.float32),
        tokenizer=tokenizer,
        unet=file.unet(torch.float32),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(place / "diffusers")
    return place / "diffusers"


@pytest.fixture(scope="module")
def base(folder: Path) -> dict[str, Tensor]:
    """The UNet's weights; diffusers' names are the canonical ones."""
    return dict(DiffusersFolder(folder).unet(torch.float32).state_dict())


@pytest.fixture(scope="module")
def concept(base: dict[str, Tensor]) -> Concept:
    """One that changes every weight by two per cent, as tuning does: most of it in few directions."""
    generator = torch.Generator().manual_seed(0)
    changes: list[WeightChange] = []
    for name, weight in base.items():
        drawn = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            rows = drawn.flatten(1)
            thin = rows[:, :4] @ torch.randn(4, rows.shape[1], generator=generator)
            drawn = (thin / thin.std() + 0.05 * rows).reshape(weight.shape)
        changes.append(Full.of(name, 0.02 * weight.std().clamp_min(1e-3) * drawn))
        if re.fullmatch(ATTENTION_PROJECTION, name):
            p = 0.05 * torch.randn(weight.shape[0], 1, generator=generator)
            changes.append(Scaled(name, p, torch.randn(weight.shape[1], 1, generator=generator), "domain"))
    word = 0.38 / 768**0.5 * torch.randn(2, 768, generator=generator)
    return Concept("S*", "e4t", "f", "b", word, tuple(changes), TuningSettings(), 0)


@pytest.fixture(scope="module")
def total(base: dict[str, Tensor], concept: Concept) -> TotalDifferences:
    return TotalDifferences(concept.weights, base)


@pytest.fixture
def pipe(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("loras", "embeddings"):
        (tmp_path / name).mkdir()
    return Folders(tmp_path / "loras", tmp_path / "embeddings", "embedding:")


@torch.no_grad()
def predict(unet: torch.nn.Module, context: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((PROBES, 4, SIDE, SIDE), generator=generator)
    t = torch.tensor([60, 310, 560, 910])
    return unet(z, t, encoder_hidden_states=context.expand(PROBES, -1, -1)).sample


def share(found: Tensor, wanted: Tensor, base: Tensor) -> float:
    return float((found - wanted).norm() / (wanted - base).norm())


def with_differences(pipe: StableDiffusionPipeline, differences: dict[str, Tensor]) -> None:
    state = pipe.unet.state_dict()
    pipe.unet.load_state_dict({name: value + differences.get(name, 0) for name, value in state.items()})


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, text: str) -> Tensor:
    return pipe.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0]


def test_the_exported_pair_predicts_what_the_concept_does_within_the_stated_error(
    pipe: StableDiffusionPipeline, folders: Folders, concept: Concept, total: TotalDifferences, folder: Path
) -> None:
    lora = low_rank_lora(total, 0.05, vectors=False)
    made = export_pair(folders, "anna", concept, lora, {})
    pipe.load_textual_inversion(made.embedding, token="<anna>")
    rows = pipe.text_encoder.get_input_embeddings().weight
    ids = pipe.tokenizer.convert_tokens_to_ids(["<anna>", "<anna>_1"])
    assert torch.equal(rows[ids], concept.embedding)
    context = encode(pipe, pipe.maybe_convert_prompt("a photo of <anna>", pipe.tokenizer))

    plain = predict(pipe.unet, context)
    pipe.load_lora_weights(made.lora)
    found = predict(pipe.unet, context)
    before = {name: value.clone() for name, value in DiffusersFolder(folder).unet(torch.float32).state_dict().items()}
    pipe.fuse_lora()
    fused = {
        name.replace(".base_layer", ""): value.clone()
        for name, value in pipe.unet.state_dict().items()
        if "lora_" not in name
    }
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.allclose(predict(pipe.unet, context), plain, atol=1e-5)

    # The weights: exactly as far off as the file says.
    wanted = {name: d.value() for name, d in total.items() if d.values.ndim > 1}
    errors = [float((fused[name] - before[name] - d).norm() / d.norm()) for name, d in wanted.items()]
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) == pytest.approx(lora.error, rel=1e-3)
    assert 0.04 < lora.error <= 0.05

    # What a LoRA can hold of the concept: its matrices.
    with_differences(pipe, wanted)
    matrices = predict(pipe.unet, context)
    assert share(found, matrices, plain) < 0.05
    # And what diffusers does not read: norms and biases. All that is lost beyond the stated error is theirs.
    with_differences(pipe, {name: d.value() for name, d in total.items() if d.values.ndim < 2})
    whole = predict(pipe.unet, context)
    vectors = share(matrices, whole, plain)
    assert 0 < vectors < 0.5
    assert share(found, whole, plain) == pytest.approx(vectors, abs=0.05)


def test_of_full_rank_it_is_the_concept_s_matrices(
    pipe: StableDiffusionPipeline, folders: Folders, concept: Concept, total: TotalDifferences
) -> None:
    made = export_pair(folders, "anna", concept, low_rank_lora(total, 1, rank=10_000, vectors=False), {})
    context = encode(pipe, "a photo of a face")
    plain = predict(pipe.unet, context)
    pipe.load_lora_weights(made.lora)
    found = predict(pipe.unet, context)
    pipe.unload_lora_weights()
    with_differences(pipe, {name: d.value() for name, d in total.items() if d.values.ndim > 1})
    assert share(found, predict(pipe.unet, context), plain) < ROUNDING


@pytest.mark.parametrize("form", ["vectors", "exact", "bundle"])
def test_diffusers_refuses_what_only_comfyui_and_the_web_ui_read(
    pipe: StableDiffusionPipeline, folders: Folders, concept: Concept, total: TotalDifferences, form: str
) -> None:
    small = {name: total[name] for name in list(total)[:6]}
    lora: StockLora = exact_lora(small) if form == "exact" else low_rank_lora(small, 0.5, vectors=form == "vectors")
    write = export_bundle if form == "bundle" else export_pair
    made: Exported = write(folders, "anna", concept, lora, {})
    with pytest.raises(ValueError, match="not been correctly renamed|Invalid LoRA checkpoint"):
        pipe.load_lora_weights(made.lora)
