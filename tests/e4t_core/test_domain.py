import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import TinyUNet, tiny_domain
from torch import Tensor

from e4t_core.files.domain_file import DomainFileError, load_domain, read_domain_info, save_domain
from e4t_core.methods.e4t.domain import Domain

Change = Callable[[dict[str, Tensor], dict[str, str]], None]


@pytest.fixture(scope="module")
def domain() -> Domain:
    return tiny_domain(TinyUNet())


@pytest.fixture
def path(tmp_path: Path, domain: Domain) -> Path:
    save_domain(tmp_path / "tiny.safetensors", domain)
    return tmp_path / "tiny.safetensors"


def rewrite(path: Path, change: Change) -> None:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def change_info(**changes: object) -> Change:
    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        metadata["e4t.info"] = json.dumps(json.loads(metadata["e4t.info"]) | changes)

    return change


def test_a_domain_comes_back_as_it_was_saved(path: Path, domain: Domain) -> None:
    loaded = load_domain(path)
    assert loaded.info == domain.info and loaded.fingerprint == domain.fingerprint
    assert loaded.backbone_state is None
    for module, original in ((loaded.encoder, domain.encoder), (loaded.offsets, domain.offsets)):
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
        state = original.state_dict()
        assert state.keys() == module.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert read_domain_info(path) == domain.info


def test_a_loaded_domain_does_not_depend_on_its_file(path: Path, domain: Domain) -> None:
    loaded = load_domain(path)
    with path.open("rb+") as file:  # in place, as copying over it does
        size = path.stat().st_size
        file.seek(size // 2)
        file.write(bytes(size // 2))
        file.truncate(size // 4)
    assert loaded.fingerprint == domain.fingerprint


def test_half_precision_on_disk_is_loaded_as_float32(path: Path, domain: Domain) -> None:
    size = path.stat().st_size
    save_domain(path, domain, torch.float16)
    loaded = load_domain(path)
    assert path.stat().st_size < 0.8 * size
    assert all(value.dtype == torch.float32 for value in loaded.encoder.state_dict().values())
    half = domain.encoder.final.weight.half().float()
    assert torch.equal(loaded.encoder.final.weight, half)


def test_the_backbones_weights_travel_inside_if_announced(tmp_path: Path, domain: Domain) -> None:
    backbone = dataclasses.replace(domain.info.backbone, weights_inside=True)
    inside = dataclasses.replace(
        domain,
        info=dataclasses.replace(domain.info, backbone=backbone),
        backbone_state={"conv1.weight": torch.ones(2, 3), "steps": torch.tensor(3)},
    )
    save_domain(tmp_path / "a.safetensors", inside)
    loaded = load_domain(tmp_path / "a.safetensors")
    assert loaded.backbone_state is not None and loaded.backbone_state.keys() == {"conv1.weight", "steps"}
    assert loaded.fingerprint == inside.fingerprint != domain.fingerprint
    with pytest.raises(DomainFileError, match="holds none"):
        save_domain(tmp_path / "b.safetensors", dataclasses.replace(inside, backbone_state=None))
    assert not (tmp_path / "b.safetensors").exists()


def test_the_fingerprint_follows_weights_and_description(domain: Domain) -> None:
    other = tiny_domain(TinyUNet(), seed=4)
    described = dataclasses.replace(domain, info=dataclasses.replace(domain.info, scale=0.6))
    assert len({domain.fingerprint, other.fingerprint, described.fingerprint}) == 3
    # A whole number is the same scale as its float: JSON does not keep them apart on every road.
    one = dataclasses.replace(domain, info=dataclasses.replace(domain.info, scale=1))
    same = dataclasses.replace(domain, info=dataclasses.replace(domain.info, scale=1.0))
    assert one.fingerprint == same.fingerprint


def test_a_domain_that_is_converted_anew_is_found_by_the_concepts_of_the_old_file(domain: Domain) -> None:
    """What newer domain files say of tuning besides is in their concepts, too."""
    plain = dataclasses.replace(domain.info.preset, more_steps=0.0, regularization_limit=0.0)
    newer = dataclasses.replace(plain, more_steps=0.5, regularization_limit=0.03)
    learned = dataclasses.replace(plain, learning_rate=3e-5)
    found = [
        dataclasses.replace(domain, info=dataclasses.replace(domain.info, preset=preset)).fingerprint
        for preset in (plain, newer, learned)
    ]
    assert found[0] == found[1] != found[2]


def test_a_missing_file_is_named_with_its_folder_and_the_ways_to_one(tmp_path: Path) -> None:
    with pytest.raises(
        DomainFileError, match="convert a published checkpoint, pre-train one, or try the mini world"
    ) as e:
        load_domain(tmp_path / "nobody.safetensors")
    assert "nobody.safetensors" in str(e.value) and str(tmp_path) in str(e.value)


def test_a_text_file_is_not_taken_for_a_domain(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("this is a text of some length, not a model at all")
    with pytest.raises(DomainFileError, match="is not a safetensors file"):
        load_domain(tmp_path / "a.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.9, 0.999])
def test_a_truncated_file_is_said_to_be_truncated(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DomainFileError, match="is truncated"):
        load_domain(path)


def test_another_safetensors_file_is_not_taken_for_a_domain(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(DomainFileError, match="is not an E4T domain"):
        load_domain(tmp_path / "a.safetensors")


def set_version(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["e4t.version"] = "7"


def drop_bias(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del tensors["encoder.final.bias"]


def add_tensor(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["encoder.more"] = torch.ones(1)


def add_backbone(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["backbone.conv1.weight"] = torch.ones(1)


def transpose(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["encoder.final.weight"] = tensors["encoder.final.weight"].T.contiguous()


def poison(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["encoder.final.bias"][2] = float("nan")


def overflow(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    next(value for key, value in tensors.items() if key.endswith("row.bias"))[0] = float("inf")


def whole_numbers(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["encoder.final.bias"] = tensors["encoder.final.bias"].long()


def break_json(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["e4t.info"] = metadata["e4t.info"][:-5]


@pytest.mark.parametrize(
    "change, told",
    [
        (set_version, "version '7', but .* reads '1'"),
        (drop_bias, "lacks 1 of 60 tensors, the first is encoder.final.bias"),
        (add_tensor, "1 unknown tensors besides its 60, the first is encoder.more"),
        (add_backbone, "unannounced"),
        (transpose, r"shape \(37, 6\) in place of \(6, 37\) for encoder.final.weight"),
        (poison, "NaN or infinity in encoder.final.bias"),
        (overflow, "NaN or infinity in .*row.bias"),
        (whole_numbers, "torch.int64"),
        (break_json, "damaged description"),
        (change_info(scale="big"), "Domain scale = 'big'"),
        (change_info(scale=True), "Domain scale = True"),
        (change_info(colour="red"), "no field 'colour'"),
        (change_info(preset={"steps": -1}), "steps = -1"),
        (change_info(projections={"a": [1]}), "Domain projection 'a'"),
        (change_info(training=[]), "training"),
        (change_info(context_width=7), "in place of"),
    ],
)
def test_damage_is_named_in_one_sentence(path: Path, change: Change, told: str) -> None:
    rewrite(path, change)
    with pytest.raises(DomainFileError, match=told) as caught:
        load_domain(path)
    assert str(path) in str(caught.value)


def test_a_description_without_a_field_is_damaged(path: Path) -> None:
    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        info = json.loads(metadata["e4t.info"])
        del info["word"]
        metadata["e4t.info"] = json.dumps(info)

    rewrite(path, change)
    with pytest.raises(DomainFileError, match="word"):
        load_domain(path)


def test_a_missing_folder_is_one_sentence(tmp_path: Path, domain: Domain) -> None:
    with pytest.raises(DomainFileError, match="could not be written"):
        save_domain(tmp_path / "nowhere" / "a.safetensors", domain)


def test_nan_is_not_written(tmp_path: Path) -> None:
    broken = tiny_domain(TinyUNet())
    broken.encoder.final.bias.data[0] = float("nan")
    with pytest.raises(DomainFileError, match=r"encoder\.final\.bias of domain 'tiny' holds NaN"):
        save_domain(tmp_path / "a.safetensors", broken)
    assert not list(tmp_path.iterdir())


def test_what_float16_cannot_hold_is_not_written_as_infinity(tmp_path: Path) -> None:
    large = tiny_domain(TinyUNet())
    large.encoder.final.bias.data[0] = 1e6
    with pytest.raises(DomainFileError, match="float32"):
        save_domain(tmp_path / "a.safetensors", large, torch.float16)
