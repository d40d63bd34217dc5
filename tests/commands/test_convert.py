"""Conversion against a naive implementation of mkshing's: encoder output, offsets, one denoise; the command; concepts of tuned directories."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mkshing import (
    CONFIG,
    SCALE,
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
from safetensors.torch import load_file
from system_faults import largest_file
from tiny import CONTEXT, TinyText, TinyUNet
from torch import Tensor

from commands.convert.__main__ import VOCABULARY, main
from commands.convert.mkshing_directory import read_directory
from commands.convert.mkshing_tensors import MkshingFileError
from commands.convert.to_concept import to_concept
from commands.convert.to_domain import Options, to_domain
from e4t_core.files.domain_file import load_domain, save_domain
from e4t_core.methods.e4t.clip_backbone import ClipBackbone
from e4t_core.methods.e4t.domain import Domain
from e4t_core.methods.e4t.patch_token_encoder import PatchTokenEncoder
from e4t_core.methods.e4t.settings import FACE
from e4t_core.methods.e4t.weight_offsets import offset_weight
from e4t_core.methods.e4t.word_model import WordModel
from e4t_core.templates import NEUTRAL, STYLE
from e4t_core.training import Photos
from e4t_core.weight_changes import full_differences, shared_factors

pytest.importorskip("open_clip")
TOKENS = 9  # 4 × 4 patches: [CLS] and every second one


class Directory:
    """A directory for the tiny base model, with all that is in it."""

    def __init__(self, folder: Path, tuned: bool = False, **config: object) -> None:
        self.unet, self.architecture = TinyUNet(), architecture()
        self.tower = make_tower(self.architecture)
        self.encoder = encoder_state(self.tower, TOKENS, self.unet.feature_width, CONTEXT)
        self.offsets = offset_state(self.unet.attention_projections())
        self.weights = self.unet.parameters()
        if tuned:
            draw = torch.Generator().manual_seed(8)
            self.weights = {k: v + 0.05 * torch.randn(v.shape, generator=draw) for k, v in self.weights.items()}
            write(folder, tuned_config() | config, encoder=self.encoder, unet=self.weights | self.offsets)
        else:
            write(folder, CONFIG | config, encoder=self.encoder, weight_offsets=self.offsets)
        self.folder = folder

    def domain(self, path: Path, *arguments: str) -> Domain:
        """Converted by the command, read from its file."""
        backbone = ("--backbone", "inside", "--architecture", self.architecture)
        assert main([str(self.folder), "-o", str(path), *backbone, *arguments]) == 0
        return load_domain(path)

    def word_and_noise(self, z: Tensor, t: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        """e_c ``(B, D)`` and the noise prediction of "a photo of *s", by the naive implementation."""
        used, text = used_weights(self.weights, self.offsets), TinyText()
        network = copy.deepcopy(self.unet.network)
        network.load_state_dict(used)
        outputs = network.encode(z, t, text.empty().expand(len(z), -1, -1))
        features = torch.cat([output.mean(dim=(2, 3)) for output in outputs], dim=1)
        words = (word.double() + SCALE * encode(self.encoder, self.tower, picture(), features)).float()
        return words, network(z, t, text.encode(["a photo of {}"] * len(z), words))


@pytest.fixture
def published(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "pretrained")


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


# What the domain file says --------------------------------------------------------------------------------------------


def test_the_description_follows_the_directory(published: Directory, tmp_path: Path) -> None:
    info = published.domain(tmp_path / "a.safetensors", "--name", "people", "--license", "MIT").info
    assert (info.name, info.word, info.scale, info.license) == ("people", "face", SCALE, "MIT")
    assert (info.base_family, info.prediction, info.templates, info.preset) == ("sd1", "epsilon", NEUTRAL, FACE)
    assert (info.image_size, info.step, info.context_width, info.feature_width) == (64, 30000, CONTEXT, 32)
    assert info.projections == published.unet.attention_projections()
    assert info.training["placeholder_token"] == "*s" and info.training["converted_from"] == "mkshing/e4t-diffusion"
    backbone = info.backbone
    assert (backbone.reading, backbone.tokens, backbone.layers, backbone.width) == ("patch_tokens", TOKENS, (2,), 8)
    assert (backbone.image_size, backbone.weights_inside) == (224, True)


def test_an_untrained_backbone_is_named_and_left_out(published: Directory, tmp_path: Path) -> None:
    assert main([str(published.folder), "-o", str(tmp_path / "a.safetensors")]) == 0
    domain = load_domain(tmp_path / "a.safetensors")
    assert domain.backbone_state is None
    assert (domain.info.backbone.architecture, domain.info.backbone.pretrained) == ("ViT-H-14", "laion2b_s32b_b79k")


def test_a_trained_backbone_goes_inside_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = Directory(tmp_path / "published", unfreeze_clip_vision=True)
    assert (
        main([str(published.folder), "-o", str(tmp_path / "a.safetensors"), "--architecture", published.architecture])
        == 0
    )
    assert "no stock file has its weights" in capsys.readouterr().out
    state = load_domain(tmp_path / "a.safetensors").backbone_state
    assert state is not None
    assert all(torch.equal(value, published.tower.state_dict()[key]) for key, value in state.items())


def test_half_precision_halves_the_file_backbone_included(published: Directory, tmp_path: Path) -> None:
    full = published.domain(tmp_path / "full.safetensors")
    half = published.domain(tmp_path / "half.safetensors", "--half")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    assert half.backbone_state is not None and half.backbone_state["conv1.weight"].dtype == torch.float16
    features, vectors = torch.randn(2, 32), torch.randn(1, TOKENS, 8)
    assert torch.allclose(half.encoder(vectors, features), full.encoder(vectors, features), atol=1e-2)


def test_missing_fields_take_their_defaults_and_each_is_said(
    published: Directory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(published.folder, {})
    assert main([str(published.folder), "-o", str(tmp_path / "a.safetensors")]) == 0
    said = capsys.readouterr().out
    info = load_domain(tmp_path / "a.safetensors").info
    assert (info.word, info.scale, info.image_size, info.training["placeholder_token"]) == ("face", 0.1, 512, "*s")
    for name in (
        "domain_class_token",
        "domain_embed_scale",
        "placeholder_token",
        "clip_model_name_or_path",
        "resolution",
    ):
        assert f"config.json has no {name}" in said
    assert "Offsets: 6 matrices, 54 tensors." in said


def test_sampling_takes_the_scale_of_the_pre_training_and_a_difference_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = Directory(tmp_path / "tuned", tuned=True, domain_embed_scale=0.7)
    assert published.domain(tmp_path / "a.safetensors").info.scale == SCALE
    assert "domain_embed_scale 0.7" in capsys.readouterr().out


def test_art_takes_style_templates_and_sd2_predicts_v(tmp_path: Path) -> None:
    tower = make_tower(architecture())
    shapes = {name: (m, 1024 if n == CONTEXT else n) for name, (m, n) in TinyUNet().attention_projections().items()}
    config = CONFIG | {
        "domain_class_token": "art",
        "prompt_template": "art",
        "pretrained_model_name_or_path": "x/sd-2-1",
    }
    write(tmp_path / "a", config, encoder=encoder_state(tower, TOKENS, 32, 1024), weight_offsets=offset_state(shapes))
    domain, notes = to_domain(read_directory(tmp_path / "a"))
    info = domain.info
    assert (info.base_family, info.prediction, info.templates, info.preset.steps) == ("sd2", "v", STYLE, 5)
    assert any("taken to predict 'v', by its name" in note for note in notes)
    write(tmp_path / "a", config | {"pretrained_model_name_or_path": "x/sd-2-1-base"})
    assert to_domain(read_directory(tmp_path / "a"))[0].info.prediction == "epsilon"


def test_a_tuned_text_encoder_is_written_beside_the_domain(tmp_path: Path) -> None:
    published = Directory(tmp_path / "tuned", tuned=True)
    rows = torch.randn(VOCABULARY + 1, 2)
    tensors = {
        "text_model.embeddings.token_embedding.weight": rows,
        "text_model.embeddings.position_ids": torch.arange(77),
        "text_model.final_layer_norm.bias": torch.ones(2),
    }
    write(published.folder, tuned_config(), text_encoder=tensors)
    assert main([str(published.folder), "-o", str(tmp_path / "a.safetensors")]) == 0
    written = load_file(tmp_path / "a_text_encoder.safetensors")
    assert written.keys() == tensors.keys() - {"text_model.embeddings.position_ids"}
    assert torch.equal(written["text_model.embeddings.token_embedding.weight"], rows[:VOCABULARY])
    assert main([str(published.folder), "-o", str(tmp_path / "a.safetensors"), "--overwrite"]) == 0


def test_a_converted_domain_comes_back_as_it_was_saved(published: Directory, tmp_path: Path) -> None:
    domain, _ = to_domain(
        read_directory(published.folder), Options(architecture=published.architecture, backbone="inside")
    )
    save_domain(tmp_path / "a.safetensors", domain)
    loaded = load_domain(tmp_path / "a.safetensors")
    assert loaded.info == domain.info and loaded.fingerprint == domain.fingerprint
    assert loaded.encoder.state_dict().keys() == domain.encoder.state_dict().keys()


def test_the_output_is_never_half_there_and_never_lost(
    published: Directory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out" / "a.safetensors"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    assert main([str(published.folder), "-o", str(target)]) == 1
    assert "--overwrite" in capsys.readouterr().err and target.read_bytes() == b"mine"

    with largest_file(1000):
        assert main([str(published.folder), "-o", str(target), "--overwrite"]) == 1
    assert "disk has room" in capsys.readouterr().err
    assert target.read_bytes() == b"mine" and list(target.parent.iterdir()) == [target]
    assert main([str(published.folder), "-o", str(target), "--overwrite"]) == 0
    assert load_domain(target).info.name == "pretrained"


# What is kept of the checkpoint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "kept"),
    [
        ("a photo of {placeholder_token}", ("a photo of {}",)),
        ("{placeholder_token} in an oil painting", ("{} in an oil painting",)),
        ("normal", NEUTRAL),
        ("face", NEUTRAL),
        ("art", STYLE),
        ("a photo", NEUTRAL),
        ("{placeholder_token} and {placeholder_token}", NEUTRAL),
    ],
)
def test_the_template_it_was_tuned_with_is_kept(tmp_path: Path, template: str, kept: tuple[str, ...]) -> None:
    pretrained = Directory(tmp_path / "pretrained", prompt_template=template)
    domain, notes = to_domain(read_directory(pretrained.folder))
    assert domain.info.templates == kept
    assert any("has no {placeholder_token}" in note for note in notes) == (
        template not in ("normal", "face", "art") and kept == NEUTRAL
    )
    # A tuned directory's own template counts, not the one of its pre-training.
    tuned = Directory(tmp_path / "tuned", tuned=True, prompt_template=template)
    assert to_domain(read_directory(tuned.folder))[0].info.templates == kept
    asked = to_domain(read_directory(pretrained.folder), Options(templates=("a bust of {}",)))[0]
    assert asked.info.templates == ("a bust of {}",)


def test_the_base_and_the_training_without_masks_are_in_the_file_and_said(
    published: Directory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = published.domain(tmp_path / "a.safetensors").info
    said = capsys.readouterr().out
    assert info.base_name == "CompVis/stable-diffusion-v1-4" and info.base_name in said
    assert info.trained_with_masks is False and "without masks, so find_subject" in said


def test_names_of_a_network_that_was_spread_over_cards_are_the_same(published: Directory, tmp_path: Path) -> None:
    spread = {f"module.{key}": value for key, value in published.offsets.items()}
    write(tmp_path / "spread", encoder=published.encoder, weight_offsets=spread)
    plain, found = read_directory(published.folder).offsets, read_directory(tmp_path / "spread").offsets
    assert found.shapes == plain.shapes
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in found.state_dict().items())


def test_the_command_that_help_shows_converts_the_published_files(
    published: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  python -m"))
    arguments = shown.split("python -m commands.convert ", 1)[1].split()
    published.folder.rename(tmp_path / arguments[0])
    (tmp_path / "COMFYUI" / "models" / "e4t_domains").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    assert load_domain(tmp_path / "COMFYUI/models/e4t_domains/faces.safetensors").info.name == "faces"
