"""What stands in a converted domain file, and how the command writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mkshing import CONFIG, SCALE, architecture, encoder_state, make_tower, offset_state, tuned_config, write
from mkshing_world import TOKENS, Directory
from safetensors.torch import load_file
from system_faults import largest_file
from tiny import CONTEXT, TinyUNet

from commands.convert.__main__ import main
from commands.convert.conversion import VOCABULARY
from commands.convert.mkshing_directory import read_directory
from commands.convert.to_domain import Options, to_domain
from e4t_core.files.domain_file import load_domain, save_domain
from e4t_core.methods.e4t.settings import for_new_domain
from e4t_core.templates import NEUTRAL, STYLE

pytest.importorskip("open_clip")


def test_the_description_follows_the_directory(published: Directory, tmp_path: Path) -> None:
    info = published.domain(tmp_path / "a.safetensors", "--name", "people", "--license", "MIT").info
    assert (info.name, info.word, info.scale, info.license) == ("people", "face", SCALE, "MIT")
    assert (info.base_family, info.prediction, info.templates, info.preset) == (
        "sd1",
        "epsilon",
        NEUTRAL,
        for_new_domain("face"),
    )
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
