"""Converted checkpoints in the nodes: "Load E4T Domain", "E4T Personalize", refinement, and a tuned one's concept in a MODEL."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path

import comfy.clip_vision
import pytest
import torch
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.networks.backbone import image_features
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from e4t_pack.nodes.host.networks.text_encoder import ComfyTextEncoder
from e4t_pack.nodes.host.prompt import concept_clip
from e4t_pack.nodes.host.sampling import patched_model
from e4t_pack.nodes.load_domain import LoadDomain
from e4t_pack.nodes.personalize import Personalize
from oracle import ksample
from world import LATENT, QUICK, chosen, held, photo

import nodes
from e4t_core.concept import Concept
from e4t_core.weight_changes import full_differences

sys.path.append(str(Path(__file__).parents[1] / "commands"))
import mkshing

from commands.convert.__main__ import main
from commands.convert.mkshing_directory import read_directory
from commands.convert.to_concept import to_concept
from commands.convert.to_domain import Options, to_domain
from e4t_core.photos import Photos

TOKENS, WIDTH = 9, 32
ARCHITECTURE = mkshing.architecture(grid=4, patch=8, layers=2, width=WIDTH)
SOME = {"domain_embed_scale": 0.1, "resolution": 64}


@pytest.fixture(scope="module")
def files(base):
    """mkshing's state dicts for the tests' base model: encoder, offsets, and a tuned UNet."""
    unet = ComfyUNet(base[0])
    tower = mkshing.make_tower(ARCHITECTURE)
    shapes = unet.attention_projections()
    offsets = {key: value * (0.3 if "row" in key else 1) for key, value in mkshing.offset_state(shapes).items()}
    draw = torch.Generator().manual_seed(12)
    tuned = {k: v + 0.01 * v.std() * torch.randn(v.shape, generator=draw) for k, v in unet.parameters().items()}
    encoder = mkshing.encoder_state(tower, TOKENS, unet.feature_width, 768)
    return {"encoder": encoder, "offsets": offsets, "tuned": tuned, "tower": tower}


def convert(files, folder, *arguments):
    """Converted by the command and loaded by the node."""
    with torch.inference_mode(False):
        source = mkshing.write(
            folder.parent / "people", mkshing.CONFIG | SOME, encoder=files["encoder"], weight_offsets=files["offsets"]
        )
        assert main([str(source), "-o", str(folder), "--architecture", ARCHITECTURE, *arguments]) == 0
    assert LoadDomain.validate_inputs("people.safetensors") is True
    return LoadDomain.execute("people.safetensors").args[0]


def encode(clip, text):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def draw(model, clip, text):
    return ksample(model, {"positive": encode(clip, text), "negative": encode(clip, "blurry")})


def noisy():
    draw = torch.Generator().manual_seed(1)
    z, t = torch.randn((2, 4, LATENT, LATENT), generator=draw), torch.tensor([20, 700])
    return z, t, torch.randn((2, 77, 768), generator=draw)


def naive_word(files, features, image, word):
    """e_c ``(B, 768)`` by the naive implementation; image ``(1, H, W, 3)`` in [0, 1]."""
    picture = 2 * image[0].movedim(-1, 0).double() - 1
    return word.double() + 0.1 * mkshing.encode(files["encoder"], files["tower"], picture, features)


def test_a_converted_domain_is_loaded_tuned_and_refined_like_any_other(base, files, folder):
    loaded = convert(files, folder, "--backbone", "inside")
    model, clip, parts, losses = Personalize.execute(*base, loaded, photo(), "*s", 1, None, chosen(QUICK)).args
    assert isinstance(parts, Concept) and len(losses["loss"]) == 1
    assert parts.predictor.clip_features.shape == (1, TOKENS, WIDTH)
    trained = parts.predictor.encoder.state_dict()
    assert any(not torch.equal(trained[key], value) for key, value in loaded.domain.encoder.state_dict().items())
    with_word = draw(model, clip, "a photo of *s")
    assert torch.isfinite(with_word).all()
    assert not torch.equal(with_word, draw(model, clip, "a photo of a cat"))
    calls, original = [], concept_clip.ConceptCLIP.encode_again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concept_clip.ConceptCLIP, "encode_again", lambda self, *a: calls.append(1) or original(self, *a))
        draw(model, clip, "a photo of *s")
    assert len(calls) == 2, "the word was not predicted anew at both steps"


def test_without_tuning_word_and_denoise_in_the_node_are_mkshings(base, files, folder):
    loaded = convert(files, folder, "--backbone", "inside")
    settings = dataclasses.replace(QUICK, steps=0)
    _, _, parts, _ = Personalize.execute(*base, loaded, photo(), "*s", 1, None, chosen(settings)).args
    check_is_mkshings(base, files, parts, held(base, parts).shared, ComfyUNet(base[0]).parameters(), square(photo()))


def test_the_concept_of_a_tuned_directory_is_held_by_a_model_and_is_mkshings(base, files, folder):
    image = square(photo(seed=3))
    unet, text = ComfyUNet(base[0]), ComfyTextEncoder(base[1])
    with torch.inference_mode(False):
        source = read_directory(
            mkshing.write(
                folder.parent / "tuned",
                mkshing.tuned_config() | {"pretrained_args": mkshing.CONFIG | SOME},
                encoder=files["encoder"],
                unet=files["tuned"] | files["offsets"],
            )
        )
        domain, _ = to_domain(source, Options(architecture=ARCHITECTURE, backbone="inside"))
        vectors = image_features(domain, None, image.clone())
        concept = to_concept(source, domain, unet, text, Photos(torch.randn(1, 4, LATENT, LATENT), vectors))
    parts = held(base, concept)
    check_is_mkshings(base, files, concept, parts.shared, files["tuned"], image)
    clip = concept_clip.with_concept(base[1], "*s", concept.fingerprint, concept.embedding, STORE.prompts)
    model = patched_model.with_concept(base[0], parts, STORE.prompts)
    with_word = draw(model, clip, "a photo of *s")
    assert torch.isfinite(with_word).all()
    assert not torch.equal(with_word, draw(base[0], base[1], "a photo of a cat"))


def square(images):
    """The middle square of an IMAGE at the domain's size, as the node crops it (64 × 64: nothing is resized)."""
    top = (images.shape[1] - 64) // 2
    return images[:, top : top + 64]


def check_is_mkshings(base, files, concept, domain_offset, weights, image):
    """A concept as a MODEL holds it against the naive implementation with the UNet weights W: features, word, one denoise."""
    unet, text = ComfyUNet(base[0]), ComfyTextEncoder(base[1])
    z, t, context = noisy()
    plain = unet.parameters()
    held = dict(plain)
    for extra in (domain_offset, full_differences(concept.weights)):
        held |= {name: held[name] + stored.value() for name, stored in extra.items()}
    used = {name: weight.float() for name, weight in mkshing.used_weights(weights, files["offsets"]).items()}
    results = []
    for lent in (held, used, plain):
        with unet.using(lent):
            results.append((unet.features(z, t, text.empty().expand(2, -1, -1)), unet.denoise(z, t, context)))
    (features, noise), (naive_features, naive_noise), (_, plain_noise) = results
    scale, moved = naive_noise.abs().max(), (naive_noise - plain_noise).abs().max()
    assert moved > 0.01 * scale
    # A MODEL holds what moves it in half precision, which rounds a number by at most 2**-11 of it.
    assert (noise - naive_noise).abs().max() <= 1e-5 * max(1.0, float(scale)) + 2.0**-11 * moved
    word = naive_word(files, naive_features, image, text.word("face"))
    assert (concept.predictor.word(features).double() - word).abs().max() <= 1e-5


def test_a_stock_clip_vision_gives_the_tokens_of_the_same_open_clip_tower(files, folder):
    inside = convert(files, folder, "--backbone", "inside").domain
    outside = convert(files, folder, "--overwrite").domain
    assert outside.backbone_state is None and outside.info.backbone.tokens == TOKENS
    config = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 4 * WIDTH,
        "num_channels": 3,
        "patch_size": 8,
        "image_size": 32,
        "hidden_act": "gelu",
        "model_type": "clip_vision_model",
    }
    stock = comfy.clip_vision.ClipVisionModel(config)
    visual = {f"visual.{key}": value.clone() for key, value in files["tower"].state_dict().items()}
    converted = comfy.clip_vision.convert_to_transformers(copy.copy(visual), "visual.")
    stock.load_sd({key: value.to(stock.dtype) for key, value in converted.items()})
    images = photo(2, 64, 64)
    expected, found = image_features(inside, None, images), image_features(outside, stock, images)
    assert found.shape == (2, TOKENS, WIDTH)
    assert torch.allclose(found, expected, atol=2e-2 if stock.dtype != torch.float32 else 1e-4)
