"""What ComfyUI's own modules compute with the exported weights is what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from miniworld.autoencoder import UNET_SCALE, Autoencoder, start_from_colors, stock_state, whiten
from miniworld.text_encoder import TextEncoder, TextShape, pad_tokens
from miniworld.text_encoder import stock_state as text_stock_state

CAPTIONS = ["a photo of emma, red hair, closeup", "a watercolor of a cat, striped pattern, wearing headphones", ""]


@pytest.fixture(scope="module", autouse=True)
def comfyui():
    from benchmarks.host import NoComfyUIError, import_comfyui

    try:
        import_comfyui()
    except NoComfyUIError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder()
    start_from_colors(model)
    with torch.no_grad():
        whiten(model, model.encode(torch.rand(8, 3, 64, 64)))
    model.latent_mean.fill_(0.37)
    model.latent_std.fill_(1.7)
    return model.eval()


@torch.no_grad()
def test_the_stock_vae_encodes_to_the_unets_latents(autoencoder: Autoencoder) -> None:
    import comfy.sd

    vae = comfy.sd.VAE(sd=dict(stock_state(autoencoder)))
    pictures = torch.rand(2, 3, 64, 64)
    stock = vae.encode(pictures.movedim(1, -1)) * UNET_SCALE
    own = autoencoder.to_unet(autoencoder.encode(pictures))
    assert own.std() > 0.1
    assert torch.allclose(stock, own, atol=1e-4)


@torch.no_grad()
def test_the_stock_vae_decodes_as_trained(autoencoder: Autoencoder) -> None:
    import comfy.sd

    vae = comfy.sd.VAE(sd=dict(stock_state(autoencoder)))
    latents = torch.randn(2, 4, 8, 8)
    stock = vae.decode(latents / UNET_SCALE).movedim(-1, 1)
    own = autoencoder.decode(autoencoder.from_unet(latents)).clamp(0, 1)
    assert 0 < own.mean() < 1
    assert torch.allclose(stock, own, atol=1e-4)


@torch.no_grad()
def test_the_stock_text_encoder_gives_the_same_states() -> None:
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip

    torch.manual_seed(0)
    own = TextEncoder(TextShape(layers=2, heads=3, mlp=256)).eval()
    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    stock = comfy.clip_model.CLIPTextModel(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    missing, unexpected = stock.load_state_dict(text_stock_state(own), strict=False)
    # SD 1.x's prompts are read before the projection, and its file has none.
    assert set(missing) <= {"text_projection.weight"} and not unexpected
    tokens = pad_tokens(CAPTIONS[:2])
    assert torch.allclose(stock(tokens)[0], own(tokens), atol=1e-4)


def test_the_stock_tokenizer_makes_the_same_tokens() -> None:
    import comfy.sd1_clip

    tokenizer = comfy.sd1_clip.SD1Tokenizer()
    stock = [[token for token, _ in tokenizer.tokenize_with_weights(text)["l"][0]] for text in CAPTIONS]
    assert stock == pad_tokens(CAPTIONS).tolist()
