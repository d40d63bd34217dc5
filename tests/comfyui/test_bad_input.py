"""Bad input gets one clear sentence before any work; odd but good input simply works."""

from __future__ import annotations

import dataclasses
import json
import re

import comfy.sd
import folder_paths
import pytest
import torch
from e4t_pack.nodes.host import model_folders
from e4t_pack.nodes.host.learning.photos import PhotoError, cut, read_photos, usual_square
from e4t_pack.nodes.host.learning.request import LoadedDomain, UnsupportedVAEError
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.model_folders import ModelFileError
from e4t_pack.nodes.host.networks.base_model import ComfyUNet, UnsupportedModelError
from e4t_pack.nodes.load_domain import LoadDomain
from e4t_pack.nodes.personalize import Personalize
from e4t_pack.nodes.settings import Settings
from safetensors.torch import load_file, save_file
from world import QUICK, chosen, make_base, make_domain, make_state, photo, text_options

from e4t_core.crop import Square
from e4t_core.files.domain_file import DomainFileError, save_domain
from e4t_core.methods.e4t.clip_backbone import BackboneError
from e4t_core.methods.e4t.domain_info import DomainMismatchError
from e4t_core.trigger import TriggerError
from e4t_core.unet import WordError

INSTANT = dataclasses.replace(QUICK, steps=0)


def personalize(base, domain, image=None, mask=None, word="S*", model=None, clip_vision=None, vae=None):
    image = photo() if image is None else image
    loaded = LoadedDomain(domain, clip_vision)
    return Personalize.execute(
        model or base[0], base[1], vae or base[2], loaded, image, word, 1, mask, chosen(INSTANT)
    ).args


def one_sentence(error) -> str:
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(re.findall(r"\.\s+[A-Z]", text)) == 0, text
    return text


# Photos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.rand((1, 1, 1, 3)), "1×1 pixels, too small"),
        (torch.rand((0, 64, 64, 3)), "is empty"),
        (torch.full((1, 64, 64, 3), float("nan")), "NaN or infinity"),
        (torch.rand((1, 64, 64, 2)), "2 channels"),
    ],
    ids=["one pixel", "no image", "NaN", "two channels"],
)
def test_an_image_that_holds_nothing_is_refused(base, domain, image, words):
    with pytest.raises(PhotoError) as error:
        personalize(base, domain, image)
    assert words in one_sentence(error)
    assert len(STORE) == 0


def test_another_number_of_masks_than_photos_is_refused(base, domain):
    with pytest.raises(PhotoError) as error:
        personalize(base, domain, photo(3), torch.ones((2, 64, 64)))
    assert "2 masks for 3 photos" in one_sentence(error)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (torch.rand((1, 64, 64, 4)), None),
        (torch.rand((1, 3000, 200, 3)), None),
        (photo(), (torch.arange(31) < 9).float().expand(1, 17, 31)),
        (photo(2), torch.ones((1, 64, 64))),
        (photo(2), torch.stack([torch.zeros((64, 64)), torch.ones((64, 64))])),
    ],
    ids=["alpha", "huge", "mask of another size", "one mask for two photos", "one empty mask of two"],
)
def test_odd_photos_simply_work(base, domain, image, mask):
    _, _, parts, _ = personalize(base, domain, image, mask)
    assert torch.isfinite(parts.embedding[0]).all()


def prepared_photos(image, mask=None, size=64, margin=0.25):
    read = read_photos(image, mask, size)
    return cut(read, [usual_square(one, margin) for one in read.photos], size)


def test_a_ten_thousand_pixel_photo_is_scaled_down():
    prepared = prepared_photos(torch.rand((1, 2000, 1, 3)).expand(1, 2000, 10000, 3))
    assert prepared.images.shape == (1, 64, 64, 3)


def test_the_node_takes_a_ten_thousand_pixel_photo(base, domain):
    _, _, parts, _ = personalize(base, domain, torch.rand((1, 500, 1, 3)).expand(1, 500, 10000, 3))
    assert torch.isfinite(parts.embedding[0]).all()


def test_the_crop_follows_the_mask_with_the_margin_and_stays_inside():
    def cropped(mask):
        return usual_square(read_photos(torch.rand((1, 100, 200, 3)), mask, 64).photos[0], 0.25)

    mask = torch.zeros((100, 200))
    mask[40:60, 100:110] = 1
    assert cropped(mask) == Square(35, 90, 30)
    mask[:] = 0
    mask[0:20, 190:200] = 1
    assert cropped(mask) == Square(0, 170, 30)
    assert cropped(None) == Square(0, 50, 100)


def test_what_the_mask_marks_is_in_the_middle_of_what_is_learned():
    image, mask = torch.zeros((1, 100, 200, 3)), torch.zeros((1, 100, 200))
    image[:, 40:60, 150:170] = mask[:, 40:60, 150:170, None] = 1
    mask[:, 40:60, 150:170] = 1
    image[:, 40:60, 150:170] = 1
    prepared = prepared_photos(image, mask, 60, 0.5)
    assert prepared.images[0, 30, 30].min() > 0.9 and prepared.images[0, 2, 2].max() < 0.1
    assert prepared.masks is not None and prepared.masks[0, 0, 30, 30] > 0.9


# What is wired in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["", "S", "a word", "S:2"])
def test_a_bad_word_is_refused_before_queueing_and_again_when_linked(base, domain, word):
    assert "choose a word" in Personalize.validate_inputs(trigger=word)
    with pytest.raises(TriggerError) as error:
        personalize(base, domain, word=word)
    one_sentence(error)


@pytest.mark.parametrize(("missing", "words"), [(1, "holds no text encoder"), (2, "holds no VAE")])
def test_what_a_checkpoint_does_not_hold_is_named(base, domain, missing, words):
    parts = [None if index == missing else part for index, part in enumerate(base)]
    with pytest.raises(ValueError) as error:
        Personalize.execute(*parts, LoadedDomain(domain, None), photo(), "S*", 1, None, chosen(INSTANT))
    assert words in one_sentence(error)


def test_a_word_in_use_is_refused_before_any_work(base, domain, monkeypatch):
    _, clip, _, _ = personalize(base, domain)
    monkeypatch.setattr(
        "e4t_pack.nodes.host.learning.learn.read_photos", lambda *_: pytest.fail("worked before it checked")
    )
    with pytest.raises(ValueError, match="already stands for another concept"):
        personalize((base[0], clip, base[2]), domain)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"context_width": 1024}, "width 1024"),
        ({"prediction": "v"}, "'v' prediction"),
        ({"feature_width": 10880}, "10880"),
    ],
)
def test_a_domain_for_another_base_is_refused(base, domain, change, words):
    other = dataclasses.replace(domain, info=dataclasses.replace(domain.info, **change))
    with pytest.raises(DomainMismatchError) as error:
        personalize(base, other)
    assert words in one_sentence(error)


def test_a_domain_word_of_several_tokens_is_refused(base, domain):
    other = dataclasses.replace(domain, info=dataclasses.replace(domain.info, word="facelessness"))
    with pytest.raises(WordError) as error:
        personalize(base, other)
    assert "'facelessness' must be one token" in str(error.value)


def test_a_domain_without_a_backbone_asks_for_clip_vision(base, domain):
    bare = dataclasses.replace(domain, backbone_state=None)
    with pytest.raises(BackboneError) as error:
        personalize(base, bare)
    assert "wire a CLIP_VISION" in str(error.value) and "models/clip_vision" in str(error.value)


def test_a_stock_clip_vision_gives_the_features_of_the_same_open_clip_tower(domain):
    import comfy.clip_vision
    from e4t_pack.nodes.host.networks.backbone import image_features

    from e4t_core.methods.e4t.clip_backbone import ClipBackbone

    config = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "num_channels": 3,
        "patch_size": 16,
        "image_size": 32,
        "hidden_act": "gelu",
        "model_type": "clip_vision_model",
        "projection_dim": 16,
    }
    stock = comfy.clip_vision.ClipVisionModel(config)
    visual = {f"visual.{key}": value.clone() for key, value in domain.backbone_state.items()}
    stock.load_sd(
        {k: v.to(stock.dtype) for k, v in comfy.clip_vision.convert_to_transformers(visual, "visual.").items()}
    )
    bare = dataclasses.replace(domain, backbone_state=None)
    images = photo(2, 64, 64)
    found = image_features(bare, stock, images)
    with torch.inference_mode(False):
        expected = ClipBackbone(domain.info.backbone, domain.backbone_state).cls_features(images.clone().movedim(-1, 1))
    assert found.shape == (2, 2, 32)
    assert torch.allclose(found, expected, atol=2e-2 if stock.dtype != torch.float32 else 1e-4)
    wide = dataclasses.replace(domain.info, backbone=dataclasses.replace(domain.info.backbone, layers=(1, 9)))
    with pytest.raises(BackboneError, match="load the one that the domain names"):
        image_features(dataclasses.replace(bare, info=wide), stock, images)


def test_a_vae_of_another_latent_width_is_refused(base, domain):
    import copy

    vae = copy.copy(base[2])
    vae.latent_channels = 16
    with pytest.raises(UnsupportedVAEError) as error:
        personalize(base, domain, vae=vae)
    assert "this VAE has 16 channels" in one_sentence(error)


def loaded(state):
    """The MODEL of a checkpoint's state dict, as the stock loader reads it."""
    return comfy.sd.load_state_dict_guess_config(state, te_model_options=text_options())[0]


@pytest.mark.parametrize("channels", [9, 8])
def test_inpaint_and_edit_models_are_refused_by_the_node(base, domain, channels):
    state = make_state()
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.randn(320, channels, 3, 3) * 0.1
    with pytest.raises(UnsupportedModelError) as error:
        personalize(base, domain, model=loaded(state))
    assert "Stable Diffusion 1.x and 2.x" in one_sentence(error) and f"reads {channels} channels" in str(error.value)


def test_a_quantized_model_is_refused_by_the_node(base, domain):
    state = make_state()
    name = "middle_block.1.transformer_blocks.0.ff.net.2"
    key = f"model.diffusion_model.{name}"
    scale = state[f"{key}.weight"].abs().max() / 448
    state[f"{key}.weight"] = (state[f"{key}.weight"] / scale).to(torch.float8_e4m3fn)
    state[f"{key}.weight_scale"] = scale.clone()
    written = json.dumps({"format": "float8_e4m3fn"}).encode()
    state[f"{key}.comfy_quant"] = torch.tensor(list(written), dtype=torch.uint8)
    with pytest.raises(UnsupportedModelError) as error:
        personalize(base, domain, model=loaded(state))
    assert f"quantized ({name}.weight is a QuantizedTensor)" in one_sentence(error)


def test_a_model_in_eight_bits_is_refused_by_the_node(base, domain):
    eight = make_base(dtype=torch.float8_e4m3fn)[0]
    with pytest.raises(UnsupportedModelError) as error:
        personalize(base, domain, model=eight)
    assert "torch.float8_e4m3fn" in one_sentence(error)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"steps": 200_000}, "steps"),
        ({"batch": 0}, "batch"),
        ({"micro_batch": 257}, "micro_batch"),
        ({"memory": "huge"}, "memory"),
        ({"end_percent": 2.0}, "end_percent"),
    ],
)
def test_settings_out_of_range_name_the_setting(change, name):
    values = {"steps": 1, "learning_rate": 1e-4, "regularization": 0.1, "batch": 16, "micro_batch": 4, **change}
    with pytest.raises(ValueError, match=name):
        Settings.execute(**values)


# Domain files -------------------------------------------------------------------------------------------------------


def test_a_domain_is_listed_loaded_and_used(base, domain, folder):
    save_domain(folder / "faces.safetensors", domain)
    (folder / "notes.txt").write_text("not a domain")
    assert model_folders.domain_names() == ["faces.safetensors"]
    assert LoadDomain.validate_inputs("faces.safetensors") is True
    loaded = LoadDomain.execute("faces.safetensors").args[0]
    assert loaded.domain.fingerprint == domain.fingerprint
    before = LoadDomain.fingerprint_inputs("faces.safetensors")
    save_domain(folder / "faces.safetensors", make_domain(ComfyUNet(base[0]), seed=3))
    assert LoadDomain.fingerprint_inputs("faces.safetensors") != before


def truncated(path, domain):
    save_domain(path, domain)
    path.write_bytes(path.read_bytes()[:-100])


def no_safetensors(path, _domain):
    path.write_bytes(b"PK\x03\x04 a zip file, by its looks" * 10)


def no_domain(path, _domain):
    save_file({"a": torch.zeros(1)}, path)


def spoiled(path, domain):
    from safetensors import safe_open

    save_domain(path, domain)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["encoder.final.bias"][0] = float("nan")
    assert json.loads(metadata["e4t.info"])["name"] == "faces"
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (truncated, "truncated"),
        (no_safetensors, "not a safetensors"),
        (no_domain, "not an E4T domain"),
        (spoiled, "NaN or infinity"),
    ],
)
def test_a_bad_domain_file_is_named_with_what_to_do(domain, folder, make, words):
    path = folder / "bad.safetensors"
    make(path, domain)
    with pytest.raises(DomainFileError) as error:
        LoadDomain.execute("bad.safetensors")
    assert words in str(error.value) and str(path) in str(error.value)


def test_a_linked_file_and_a_linked_name_are_fine(domain, folder, tmp_path):
    save_domain(tmp_path / "kept elsewhere.safetensors", domain)
    (folder / "link.safetensors").symlink_to(tmp_path / "kept elsewhere.safetensors")
    assert LoadDomain.validate_inputs("link.safetensors") is True
    assert LoadDomain.execute("link.safetensors").args[0].domain.fingerprint == domain.fingerprint
    # A name that comes from another node is not known before that has run.
    assert LoadDomain.validate_inputs(None) is True
    LoadDomain.fingerprint_inputs(None)


@pytest.mark.parametrize("name", ["people/faces.safetensors", "people\\faces.safetensors"])
def test_a_workflow_from_windows_finds_its_domain_and_the_reverse(domain, folder, name):
    (folder / "people").mkdir()
    save_domain(folder / "people" / "faces.safetensors", domain)
    assert LoadDomain.validate_inputs(name) is True
    assert LoadDomain.execute(name).args[0].domain.fingerprint == domain.fingerprint
    assert LoadDomain.fingerprint_inputs(name)[1:] == LoadDomain.fingerprint_inputs("people/faces.safetensors")[1:]


@pytest.mark.parametrize(
    "name",
    [
        "people\\..\\..\\up.safetensors",
        "\\\\server\\a.safetensors",
        "C:\\a.safetensors",
        "gone.safetensors",
        "",
        "../secrets.safetensors",
        "..\\up.safetensors",
        "a\0.safetensors",
        "/a.safetensors",
    ],
)
def test_a_missing_domain_names_its_folder_and_three_ways_to_one(folder, name):
    (folder.parent / "secrets.safetensors").write_bytes(b"x")
    text = LoadDomain.validate_inputs(name)
    assert str(folder) in text and "convert" in text and "pre-train" in text and "mini world" in text
    with pytest.raises(ModelFileError):
        LoadDomain.execute(name)
    LoadDomain.fingerprint_inputs(name)


def test_registering_twice_keeps_yaml_folders_and_only_safetensors(tmp_path, monkeypatch):
    yaml_folder = str(tmp_path / "elsewhere")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, model_folders.DOMAINS, ([yaml_folder], set()))
    model_folders.register_folders()
    model_folders.register_folders()
    folders, extensions = folder_paths.folder_names_and_paths[model_folders.DOMAINS]
    assert folders[0] == yaml_folder and len(folders) == 2
    assert extensions == {".safetensors"}
