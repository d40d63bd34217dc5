"""Conversion against a naive implementation of mkshing's: encoder output, offsets, one denoise; concepts of tuned directories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mkshing import (
    architecture,
    delta,
    encode,
    encoder_state,
    make_tower,
    offset_state,
    picture,
    projections,
    tokens_of,
    tuned_config,
    unet_shapes,
    used_weights,
    write,
)
from mkshing_world import TOKENS, Directory
from tiny import CONTEXT, TinyText
from torch import Tensor

from commands.convert.__main__ import main
from commands.convert.mkshing_directory import read_directory
from commands.convert.mkshing_tensors import MkshingFileError
from commands.convert.to_concept import to_concept
from commands.convert.to_domain import Options, to_domain
from e4t_core.files.domain_file import load_domain
from e4t_core.methods.e4t.clip_backbone import ClipBackbone
from e4t_core.methods.e4t.patch_token_encoder import PatchTokenEncoder
from e4t_core.methods.e4t.weight_offsets import offset_weight
from e4t_core.methods.e4t.word_model import WordModel
from e4t_core.photos import Photos
from e4t_core.weight_changes import full_differences, shared_factors

pytest.importorskip("open_clip")


def noisy() -> tuple[Tensor, Tensor]:
    return torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(4)), torch.tensor([10, 500, 990])


def image() -> Tensor:
    """The picture as the core takes it, ``(1, 3, H, W)`` in [0, 1]."""
    return ((picture() + 1) / 2).float()[None]


@pytest.mark.parametrize(("grid", "patch", "layers", "width"), [(4, 56, 2, 8), (3, 11, 1, 12), (1, 16, 3, 4)])
def test_any_tower_and_any_number_of_first_linears_give_mkshings_word_offset(
    tmp_path: Path, grid: int, patch: int, layers: int, width: int
) -> None:
    described = architecture(grid, patch, layers, width)
    tower, tokens = make_tower(described), 1 + grid * grid // 2
    shapes = unet_shapes()
    state = encoder_state(tower, tokens, 70, CONTEXT)
    write(tmp_path / "published", encoder=state, weight_offsets=offset_state(projections(shapes)))
    domain, _ = to_domain(read_directory(tmp_path / "published"), Options(architecture=described, backbone="inside"))
    assert isinstance(domain.encoder, PatchTokenEncoder) and domain.encoder.layers == tokens
    assert domain.backbone_state is not None
    vectors = ClipBackbone(domain.info.backbone, domain.backbone_state).cls_features(image())
    assert torch.allclose(vectors[0].double(), tokens_of(tower, picture()), atol=1e-5)
    features = torch.randn((3, 70), generator=torch.Generator().manual_seed(6))
    expected = encode(state, tower, picture(), features)
    assert expected.std() > 0.1
    assert (domain.encoder(vectors, features).double() - expected).abs().max() <= 1e-5


def test_the_published_checkpoints_shapes_have_657_encoder_tensors_and_a_named_backbone() -> None:
    import open_clip
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    with torch.device("meta"):
        tower = _build_vision_tower(1024, CLIPVisionCfg(**open_clip.get_model_config("ViT-H-14")["vision_cfg"]), False)
        head = PatchTokenEncoder(129, 1280, 10880, 768, device="meta")
    tower.proj = None
    assert len(tower.state_dict()) + len(head.state_dict()) == 657
    assert sum(parameter.numel() for parameter in tower.parameters()) == 630_766_080  # 2.5 GB in float32, says --help
    assert sum(parameter.numel() for parameter in head.parameters()) == 231_347_968


def test_the_key_set_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), cross_attention_dim=24)
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    assert shapes == unet_shapes((32, 64, 128, 128), 24)


def test_full_key_sets_convert_and_every_offset_is_mkshings(tmp_path: Path) -> None:
    shapes = unet_shapes()
    draw = torch.Generator().manual_seed(3)
    unet = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    offsets = offset_state(projections(shapes))
    assert (len(unet), len(offsets)) == (686, 864)
    encoder = encoder_state(make_tower(architecture()), TOKENS, 10880, CONTEXT)
    write(tmp_path / "published", encoder=encoder, weight_offsets=offsets)
    write(tmp_path / "tuned", tuned_config(), encoder=encoder, unet=unet | offsets)
    used = used_weights(unet, offsets)
    for folder in ("published", "tuned"):
        assert main([str(tmp_path / folder), "-o", str(tmp_path)]) == 0
        domain = load_domain(tmp_path / f"{folder}.safetensors")
        weights = domain.offsets.apply_all(unet)
        assert len(weights) == 96
        for name, weight in weights.items():
            assert torch.allclose(weight.double(), used[name], atol=1e-5, rtol=1e-5), name
            p, q = domain.offsets.factors(name)
            assert torch.allclose((p @ q.T).double(), delta(offsets, name), atol=1e-5, rtol=1e-5), name
    assert read_directory(tmp_path / "tuned").unet.keys() == unet.keys()


def test_one_denoise_with_a_converted_domain_is_mkshings(published: Directory, tmp_path: Path) -> None:
    domain, text, unet = published.domain(tmp_path / "faces.safetensors"), TinyText(), published.unet
    z, t = noisy()
    words, noise = published.word_and_noise(z, t, text.word("face"))
    vectors = ClipBackbone(domain.info.backbone, domain.backbone_state).cls_features(image())  # type: ignore[arg-type]
    with unet.using(domain.offsets.apply_all(unet.parameters())):
        model = WordModel.of(unet, text, domain.encoder, "face", domain.info.scale, ("a photo of {}",))
        found = model.word(z, t, vectors)
        prediction = unet.denoise(z, t, text.encode(["a photo of {}"] * 3, found))
    assert (words[0] - words[1]).abs().max() > 1e-3, "the word must follow the noise level, or this test is blind"
    assert (found - words).abs().max() <= 1e-5
    assert (prediction - noise).abs().max() <= 1e-5
    plain = unet.network(z, t, text.encode(["a photo of {}"] * 3, found))
    assert (plain - noise).abs().max() > 1e-2, "the offsets must matter, or this test is blind"


def test_a_tuned_directory_is_a_concept_whose_weights_word_and_denoise_are_mkshings(tmp_path: Path) -> None:
    published = Directory(tmp_path / "tuned", tuned=True)
    source = read_directory(published.folder)
    domain, _ = to_domain(source, Options(architecture=published.architecture, backbone="inside"))
    vectors = ClipBackbone(domain.info.backbone, domain.backbone_state).cls_features(image())  # type: ignore[arg-type]
    text, unet = TinyText(), published.unet
    before = {name: weight.clone() for name, weight in unet.parameters().items()}
    photos = Photos(torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5)), vectors)
    concept = to_concept(source, domain, unet, text, photos)
    assert concept.trigger == "*s" and concept.settings.steps == 0
    weights = unet.parameters()
    assert all(torch.equal(weights[name], before[name]) for name in before), "the base was changed"
    # As a MODEL holds it: base, the domain's offset once, the concept's own difference.
    held = dict(weights)
    for name, (p, q) in shared_factors(concept.weights).items():
        held[name] = offset_weight(held[name], p, q)
    own = {name: stored.value() for name, stored in full_differences(concept.weights).items()}
    held |= {name: held[name] + difference for name, difference in own.items()}
    used = used_weights(published.weights, published.offsets)
    # Differences are stored in half precision, which rounds a number by at most 2**-11 of it.
    bounds = {name: 1e-5 + 2.0**-11 * own[name].abs() if name in own else 1e-5 for name in used}
    assert all(((held[name].double() - used[name]).abs() <= bounds[name]).all() for name in used)
    z, t = noisy()
    words, noise = published.word_and_noise(z, t, text.word("face"))
    with unet.using(held):
        found = concept.predictor.word(unet.features(z, t, text.empty().expand(3, -1, -1)))
        prediction = unet.denoise(z, t, text.encode(["a photo of {}"] * 3, found))
    with unet.using({}):
        moved = (unet.denoise(z, t, text.encode(["a photo of {}"] * 3, words)) - noise).abs().max()
    assert moved > 0.01 and (found - words).abs().max() <= 1e-5
    assert (prediction - noise).abs().max() <= 1e-5 + 2.0**-11 * moved
    assert torch.isfinite(concept.embedding[0]).all()
    assert (concept.embedding[0] - text.word("face")).abs().max() > 1e-3
    assert len({concept.fingerprint, concept.base_fingerprint, concept.domain_fingerprint}) == 3


def test_a_tuned_directory_of_offsets_alone_changes_no_other_weight(tmp_path: Path) -> None:
    published = Directory(tmp_path / "published")
    write(tmp_path / "tuned", tuned_config(), encoder=published.encoder, weight_offsets=published.offsets)
    source = read_directory(tmp_path / "tuned")
    domain, _ = to_domain(source, Options(architecture=published.architecture))
    photos = Photos(torch.randn(1, 4, 8, 8), torch.randn(1, TOKENS, 8))
    assert full_differences(to_concept(source, domain, published.unet, TinyText(), photos).weights) == {}


def test_a_concept_needs_a_tuned_directory_and_its_own_base(published: Directory, tmp_path: Path) -> None:
    source = read_directory(published.folder)
    domain, _ = to_domain(source)
    photos = Photos(torch.randn(1, 4, 8, 8), torch.randn(1, TOKENS, 8))
    with pytest.raises(MkshingFileError, match="is pre-trained, not tuned"):
        to_concept(source, domain, published.unet, TinyText(), photos)
    tuned = Directory(tmp_path / "tuned", tuned=True)
    tuned.weights["conv_in.weight"] = tuned.weights["conv_in.weight"][:, :3]
    write(tuned.folder, tuned_config(), unet=tuned.weights | tuned.offsets)
    with pytest.raises(MkshingFileError, match=r"conv_in\.weight: \(8, 3, 3, 3\) in place of \(8, 4, 3, 3\)"):
        to_concept(read_directory(tuned.folder), domain, tuned.unet, TinyText(), photos)
