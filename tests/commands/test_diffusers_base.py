"""A base of pre-training from a diffusers folder: the core's two protocols, and one sentence for what cannot be used."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from small_base import make_base
from transformers import CLIPTextConfig, CLIPTextModel

from commands.base.clip_text import bundled_tokenizer
from commands.base.diffusers_base import DiffusersBase, load_base
from commands.base.diffusers_unet import DiffusersUNet
from commands.base.single_file import BaseModelError
from e4t_core.noise_schedule import NoiseSchedule
from e4t_core.unet import WordError

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SD 1.x's make-up, small; without a tokenizer, as the vocabulary is known."""
    return make_base(tmp_path_factory.mktemp("bases") / "small")


@pytest.fixture(scope="module")
def base(folder: Path) -> DiffusersBase:
    return load_base(folder)


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to spoil; large files are linked, so replace them instead of writing into them."""
    path = tmp_path / "spoiled"
    shutil.copytree(folder, path, copy_function=_link_large)
    yield path


def _link_large(source: str, target: str) -> None:
    if Path(source).stat().st_size > 1_000_000:
        Path(target).symlink_to(source)
    else:
        shutil.copy(source, target)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def inputs(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, 4, 8, 8, generator=generator)
    return z, torch.tensor([20, 700][:rows]), torch.randn(rows, 77, 768, generator=generator)


def test_the_unet_says_what_diffusers_says(base: DiffusersBase) -> None:
    unet = base.unet
    z, t, context = inputs()
    outputs: list[Tensor] = []
    blocks = [unet.network.conv_in, *unet.network.down_blocks, unet.network.mid_block]
    handles = [
        block.register_forward_hook(
            lambda module, given, output: outputs.extend(output[1] if isinstance(output, tuple) else [output])
        )
        for block in blocks
    ]
    with torch.no_grad():
        whole = unet.network(z, t, encoder_hidden_states=context).sample
        for handle in handles:
            handle.remove()
        assert torch.equal(unet.denoise(z, t, context), whole)
        means = torch.cat([output.mean(dim=(2, 3)) for output in outputs], dim=1)
        assert torch.allclose(unet.features(z, t, context), means, atol=1e-6)
    # conv_in, then a residual block and a downsampler, then a residual block, then the middle.
    assert unet.feature_width == means.shape[1] == 32 + 2 * 32 + 64 + 64
    assert (unet.prediction, unet.context_width, base.family, base.name) == ("epsilon", 768, "sd1", "small")
    assert torch.allclose(unet.schedule.alphas_cumprod, NoiseSchedule.scaled_linear().alphas_cumprod, atol=1e-6)


def test_projections_are_out_by_in_under_canonical_names(base: DiffusersBase) -> None:
    shapes = base.unet.attention_projections()
    assert shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (32, 768)
    assert shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"] == (64, 64)
    assert len(shapes) == 6 * 4 and shapes.keys() <= base.unet.parameters().keys()
    assert not any(parameter.requires_grad for parameter in base.unet.parameters().values())


def gradient(unet: DiffusersUNet, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    z, t, context = inputs()
    lent = (unet.parameters()[QUERY].float() * scale).requires_grad_()
    with unet.using({QUERY: lent}):
        output = unet.denoise(z, t, context)
        (output.square().mean() + unet.features(z, t, context).square().mean()).backward()
    assert lent.grad is not None
    return output.detach(), lent.grad


def test_lent_weights_get_gradients_and_leave_no_trace(base: DiffusersBase) -> None:
    before = {name: value.clone() for name, value in base.unet.parameters().items()}
    output, found = gradient(base.unet)
    assert found.abs().sum() > 0
    with torch.no_grad():
        assert not torch.allclose(base.unet.denoise(*inputs()), output, atol=1e-4)
    with pytest.raises(RuntimeError, match="stop"), base.unet.using({QUERY: torch.zeros(32, 32)}):
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in base.unet.parameters().items())
    with pytest.raises(KeyError, match=r"no parameter 'nonsense\.weight'"):
        base.unet.using({"nonsense.weight": torch.zeros(1)})


def test_gradient_checkpointing_computes_blocks_twice_with_the_same_gradients(folder: Path) -> None:
    calls, results = [], []
    for checkpointing in (False, True):
        unet = load_base(folder, gradient_checkpointing=checkpointing).unet
        count: list[int] = []
        # Behind the lent weight, so that gradients pass through it; a second forward may stop before its end.
        unet.network.mid_block.resnets[1].register_forward_pre_hook(lambda *_, count=count: count.append(1))
        results.append(gradient(unet))
        calls.append(len(count))
    assert calls[1] == 2 * calls[0] == 4
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-7)


def test_a_half_precision_base_takes_float32_weights_and_gives_float32(folder: Path, base: DiffusersBase) -> None:
    half = load_base(folder, dtype=torch.bfloat16)
    projections = half.unet.attention_projections()
    types = {(name in projections, value.dtype) for name, value in half.unet.parameters().items()}
    assert types == {(False, torch.bfloat16), (True, torch.float32)}
    output, found = gradient(half.unet)
    assert output.dtype == found.dtype == torch.float32 and found.abs().sum() > 0
    wanted, _ = gradient(base.unet)
    assert torch.allclose(output, wanted, atol=0.1 * float(wanted.abs().max()))
    assert half.text.empty().dtype == half.encode(torch.rand(1, 3, 8, 8)).dtype == torch.float32


def test_a_half_precision_base_sees_offsets_that_are_finer_than_its_numbers(folder: Path) -> None:
    """Where W0 lay on bfloat16's grid, W0 (1 + Δ) would be rounded back to W0 for every Δ below 0.2 %."""
    unet = load_base(folder, dtype=torch.bfloat16).unet
    names = unet.attention_projections()
    before = {name: unet.parameters()[name].clone() for name in names}
    with unet.using({name: before[name] * 1.001 for name in names}):
        now = {name: value.detach().clone() for name, value in unet.network.named_parameters() if name in names}
    old = torch.cat([value.bfloat16().float().flatten() for value in before.values()])
    new = torch.cat([value.bfloat16().float().flatten() for value in now.values()])
    assert float((new - old).dot(old) / old.dot(old)) == pytest.approx(0.001, rel=0.2)


def test_the_vae_gives_the_posterior_s_mean_in_the_unet_s_scale(base: DiffusersBase) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    found = base.encode(images)
    with torch.no_grad():
        wanted = base.vae.network.encode(2 * images - 1).latent_dist.mean * 0.18215
    assert torch.allclose(found, wanted, atol=1e-6) and torch.equal(found, base.encode(images))
    drawn = base.decode(found)
    assert drawn.shape == images.shape and 0 <= drawn.min() and drawn.max() <= 1


def test_a_word_s_own_row_in_its_place_is_the_word(base: DiffusersBase) -> None:
    text = base.text
    ids = [49406, 320, 1125, 539, 320, 2368, *[49407] * 71]  # "a photo of a cat", as SD 1.x pads it
    with torch.no_grad():
        stock = text.network(input_ids=torch.tensor([ids])).last_hidden_state
        word = text.word("cat")
        assert torch.allclose(text.encode(["a photo of a {}"], word[None]), stock, atol=1e-6)
        two = text.encode(["a photo of a {}", "{} in a hat"], torch.stack([word, text.word("dog")]))
        assert torch.allclose(two[:1], stock, atol=1e-5)
        assert torch.allclose(two[1:], text.encode(["{} in a hat"], text.word("dog")[None]), atol=1e-5)
        assert torch.equal(text.empty(), text.network(input_ids=torch.tensor([[49406, *[49407] * 76]]))[0])
    assert text.width == 768


def test_the_word_gets_gradients_and_the_text_model_keeps_nothing(base: DiffusersBase) -> None:
    words = base.text.word("cat").expand(2, -1).clone().requires_grad_()
    base.text.encode(["a {}", "one {} more"], words).square().mean().backward()
    assert words.grad is not None and bool((words.grad.abs().sum(dim=1) > 0).all())
    assert not base.text.network.get_input_embeddings()._forward_hooks
    with pytest.raises(RuntimeError):
        base.text.encode(["a {}"], torch.zeros(1, 5))
    assert not base.text.network.get_input_embeddings()._forward_hooks


def test_words_and_templates_that_cannot_be_used_are_named(base: DiffusersBase) -> None:
    with pytest.raises(WordError, match=r"'photorealisticness' must be one token .* but it is \d \('photo"):
        base.text.word("photorealisticness")
    with pytest.raises(WordError, match="it is 0"):
        base.text.word("")
    word = base.text.word("cat")[None]
    with pytest.raises(ValueError, match=r"'a photo' must hold '\{\}' once"):
        base.text.encode(["a photo"], word)
    with pytest.raises(ValueError, match="5 tokens too long"):
        base.text.encode(["{}" + " cat" * 79], word)


def test_a_folder_s_own_tokenizer_is_used(damaged: Path, base: DiffusersBase) -> None:
    bundled_tokenizer("sd2").save_pretrained(damaged / "tokenizer")
    text = load_base(damaged).text
    padded = torch.tensor([[49406, 49407, *[0] * 75]])  # SD 2.x pads with token 0
    with torch.no_grad():
        assert torch.equal(text.empty(), text.network(input_ids=padded).last_hidden_state)
    assert torch.equal(text.word("cat"), base.text.word("cat"))


def test_v_prediction_is_read_from_the_scheduler(damaged: Path) -> None:
    change(damaged / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert load_base(damaged).unet.prediction == "v"
    change(damaged / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(BaseModelError, match="prediction_type 'sample' .* must be one of epsilon, v_prediction"):
        load_base(damaged)


def test_the_fp16_files_of_a_folder_serve_where_there_are_no_others(damaged: Path, base: DiffusersBase) -> None:
    for file in list(damaged.rglob("*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    found = load_base(damaged).unet.parameters()
    assert all(torch.equal(value, base.unet.parameters()[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"in_channels": 9}, "in_channels = 9, as inpaint"),
        ({"cross_attention_dim": 2048}, "cross_attention_dim = 2048"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time'"),
        ({"class_embed_type": "projection"}, "class_embed_type = 'projection'"),
        ({"_class_name": "FluxTransformer2DModel"}, "is a FluxTransformer2DModel"),
    ],
)
def test_another_family_s_folder_is_refused(damaged: Path, values: dict[str, object], told: str) -> None:
    change(damaged / "unet" / "config.json", **values)
    with pytest.raises(BaseModelError, match=f"spoiled in .*{told}.* SD 1.5"):
        load_base(damaged)


def test_a_folder_with_something_missing_or_damaged_is_explained(damaged: Path) -> None:
    weights = damaged / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(BaseModelError, match="unet of base model folder spoiled in .* could not be read .*again"):
        load_base(damaged)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BaseModelError, match=r"no unet/diffusion_pytorch_model\.safetensors: .*\.bin files"):
        load_base(damaged)
    (damaged / "unet" / "config.json").write_text("{")
    with pytest.raises(BaseModelError, match=r"unet/config\.json .* could not be read"):
        load_base(damaged)
    shutil.rmtree(damaged / "unet")
    with pytest.raises(BaseModelError, match=r"has no unet/config\.json: it must be a diffusers folder"):
        load_base(damaged)


def test_weights_that_a_folder_lacks_are_not_drawn_at_random(damaged: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = damaged / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state[QUERY]
    weights.unlink()
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=QUERY):
        load_base(damaged)


def test_parts_of_two_models_are_not_mixed(damaged: Path) -> None:
    text = CLIPTextConfig(
        hidden_size=1024, intermediate_size=8, num_hidden_layers=1, num_attention_heads=16, vocab_size=99
    )
    shutil.rmtree(damaged / "text_encoder")
    CLIPTextModel(text).save_pretrained(damaged / "text_encoder")
    with pytest.raises(
        BaseModelError, match="text encoder of base model spoiled .* width 1024, but its UNet reads 768"
    ):
        load_base(damaged)


def test_a_missing_base_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"none\.safetensors was not found in .*put a Stable Diffusion"):
        load_base(tmp_path / "none.safetensors")
