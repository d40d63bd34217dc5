"""A LoRA and an embedding, or a bundle, as files: their names, what they say of themselves, and what happens when one fails."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from e4t_core.concept import Concept
from e4t_core.files.file_name import FileNameError
from e4t_core.files.stock_export import LOCK, Exported, ExportError, Folders, export_bundle, export_pair
from e4t_core.files.stock_lora import StockLora
from e4t_core.methods.e4t.settings import TuningSettings

LORA = StockLora({"lora_unet_conv_in.lora_up.weight": torch.ones(4, 2, 1, 1)}, 2, 0.25)
EXACT = StockLora({"lora_unet_conv_in.diff": torch.ones(4, 2, 1, 1)}, 0, 0.0)
WRITERS = [export_pair, export_bundle]


def concept(width: int = 768) -> Concept:
    word = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    return Concept("S*", "e4t", "f", "b", word, (), TuningSettings(), 7, domain_name="faces")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("loras", "embeddings"):
        (tmp_path / name).mkdir()
    return Folders(tmp_path / "loras", tmp_path / "embeddings", "embedding:")


def names(folders: Folders) -> list[str]:
    return sorted(
        f"{path.parent.name}/{path.name}"
        for folder in (folders.loras, folders.embeddings)
        for path in folder.iterdir()
        if path.name != LOCK
    )


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("write", WRITERS)
def test_both_files_have_the_name_and_files_that_are_there_stay(folders: Folders, write) -> None:  # type: ignore[no-untyped-def]
    other = folders.embeddings / "anna.safetensors"
    other.write_bytes(b"somebody's")
    made: Exported = write(folders, "anna", concept(), LORA, {})
    assert made.prompt == "embedding:anna_00002" and other.read_bytes() == b"somebody's"
    assert made.lora == folders.loras / "anna_00002.safetensors"
    assert made.embedding == folders.embeddings / "anna_00002.safetensors"
    assert write(folders, "anna", concept(), LORA, {}).prompt == "embedding:anna_00003"
    assert write(folders, "anna", concept(), LORA, {}, overwrite=True).prompt == "embedding:anna"
    assert other.read_bytes() != b"somebody's"
    found = [
        f"{place}/anna{number}.safetensors" for place in ("embeddings", "loras") for number in ("", "_00002", "_00003")
    ]
    assert names(folders) == sorted(found)


def test_a_pair_is_a_lora_and_an_embedding(folders: Folders) -> None:
    made = export_pair(folders, "anna", concept(), LORA, {})
    with safe_open(made.embedding, framework="pt") as file:
        assert torch.equal(file.get_tensor("clip_l"), concept().embedding)
    with safe_open(made.lora, framework="pt") as file:
        assert set(file.keys()) == set(LORA.tensors)


def test_a_bundle_is_one_file_with_two_names_also_when_it_is_written_anew(folders: Folders) -> None:
    for lora in (LORA, EXACT):
        made = export_bundle(folders, "anna", concept(), lora, {}, overwrite=True)
        assert os.path.samefile(made.lora, made.embedding) and not made.copied
        with safe_open(made.embedding, framework="pt") as file:
            assert torch.equal(file.get_tensor("bundle_emb.anna.string_to_param.*"), concept().embedding)
            assert set(file.keys()) - {"bundle_emb.anna.string_to_param.*"} == set(lora.tensors)
    assert names(folders) == ["embeddings/anna.safetensors", "loras/anna.safetensors"]


def test_where_a_disk_gives_no_second_name_a_bundle_is_copied(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_names: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    made = export_bundle(folders, "anna", concept(), LORA, {})
    assert made.copied and not os.path.samefile(made.lora, made.embedding)
    assert made.lora.read_bytes() == made.embedding.read_bytes()
    assert names(folders) == ["embeddings/anna.safetensors", "loras/anna.safetensors"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_that_is_gone_is_named(folders: Folders, write) -> None:  # type: ignore[no-untyped-def]
    folders.embeddings.rmdir()
    with pytest.raises(ExportError, match="embeddings"):
        write(folders, "anna", concept(), LORA, {})


@pytest.mark.parametrize("write", WRITERS)
def test_a_word_of_no_known_text_encoder_is_refused_before_anything_is_written(folders: Folders, write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="width 512"):
        write(folders, "anna", concept(512), LORA, {})
    assert names(folders) == []


@pytest.mark.parametrize(("width", "version", "family"), [(768, "sd_v1", "SD 1"), (1024, "sd_v2", "SD 2")])
def test_the_lora_says_what_it_is_in_the_words_of_those_who_read_it(
    folders: Folders, width: int, version: str, family: str
) -> None:
    made = export_bundle(folders, "anna", concept(width), LORA, {"e4t.effect_lost": "0.04"})
    about = metadata(made.lora)
    assert json.loads(about["trained_words"]) == [about["modelspec.trigger_phrase"]] == ["embedding:anna"]
    assert about["ss_base_model_version"] == version and about["modelspec.base_model"] == family
    assert about["modelspec.title"] == "anna" and about["modelspec.architecture"].endswith("/lora")
    assert about["ss_network_module"] == "networks.lora" and about["ss_network_dim"] == about["ss_network_alpha"] == "2"
    assert (about["e4t.rank"], about["e4t.weights_error"], about["e4t.effect_lost"]) == ("2", "0.250000", "0.04")
    assert (about["e4t.trigger"], about["e4t.domain"], about["e4t.seed"]) == ("S*", "faces", "7")
    assert metadata(export_pair(folders, "ben", concept(width), EXACT, {}).lora)["ss_network_module"] == "lycoris.kohya"


@pytest.mark.parametrize("name", ["../out", "a/b", "con", "", "a b", "x" * 300])
@pytest.mark.parametrize("write", WRITERS)
def test_a_name_that_is_no_file_s_is_refused(folders: Folders, write, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNameError):
        write(folders, name, concept(), LORA, {}, overwrite=True)
    assert names(folders) == []


@pytest.mark.skipif(os.name == "nt", reason="links need an administrator there")
def test_a_link_out_of_the_folder_is_not_followed(folders: Folders, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(b"somebody's")
    (folders.embeddings / "anna.safetensors").symlink_to(elsewhere)
    with pytest.raises(FileNameError, match="which is not written to"):
        export_pair(folders, "anna", concept(), LORA, {}, overwrite=True)
    assert elsewhere.read_bytes() == b"somebody's"
    assert export_pair(folders, "anna", concept(), LORA, {}).prompt == "embedding:anna_00002"


def test_writers_at_once_take_different_names(folders: Folders) -> None:
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: export_bundle(folders, "anna", concept(), LORA, {}), range(24)))
    assert len({exported.prompt for exported in made}) == 24
    assert all(os.path.samefile(folders.loras / path.name, path) for path in folders.embeddings.iterdir())
