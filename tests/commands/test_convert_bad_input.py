"""Directories that cannot be converted: one sentence that names value, file, folder and what to do; no pickle runs."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peer import CONFIG, architecture, encoder_state, make_tower, offset_state, tuned_config, write
from tiny import CONTEXT, TinyUNet
from torch import Tensor

from commands.convert.__main__ import main

pytest.importorskip("open_clip")
State = dict[str, Any]
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def good() -> dict[str, State]:
    """The files of a directory that converts."""
    unet = TinyUNet()
    offsets = offset_state(unet.attention_projections())
    encoder = encoder_state(make_tower(architecture()), 9, unet.feature_width, CONTEXT)
    return {"encoder": encoder, "weight_offsets": offsets, "unet": unet.parameters() | offsets}


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command on ``tmp_path / "peer"``, which must be refused; returns the sentence."""

    def run(*arguments: str) -> str:
        target = tmp_path / "out.safetensors"
        assert main([str(tmp_path / "peer"), "-o", str(target), *arguments]) == 1
        text = capsys.readouterr().err.split("Not converted: ", 1)[1].strip()
        assert not target.exists() and not list(tmp_path.glob(".*tmp")), "something was written"
        assert text.endswith(".") and "\n" not in text and not re.search(r"\.\s+[A-Z]", text), text
        assert str(tmp_path) in text, "the folder is not named"
        assert ": " in text, "what to do is not said"
        return text

    return run


# Pickles ----------------------------------------------------------------------------------------------------------------


class Malicious:
    """What an attacker puts into a pickle: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["encoder", "weight_offsets", "unet", "text_encoder"])
def test_malicious_pickles_do_not_execute(
    tmp_path: Path, good: dict[str, State], refusal: Callable[..., str], name: str, zipped: bool, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    tuned = name in ("unet", "text_encoder")
    files = {key: good[key] for key in ("encoder", "unet" if tuned else "weight_offsets")}
    folder, trace = write(tmp_path / "peer", tuned_config() if tuned else CONFIG, **files), tmp_path / "was here"
    state = {**good.get(name, {}), "payload": Malicious(trace)}
    torch.save(state, folder / f"{name}.pt", _use_new_zipfile_serialization=zipped)
    text = refusal()
    assert not trace.exists(), "the pickle was executed"
    assert f"{name}.pt" in text and "io.open" in text and "do not trust" in text
    torch.load(folder / f"{name}.pt", weights_only=False)["payload"].close()
    assert trace.exists(), "the payload does nothing, so this test is blind"


def test_a_bare_malicious_pickle_does_not_execute(tmp_path: Path, refusal: Callable[..., str]) -> None:
    folder, trace = write(tmp_path / "peer"), tmp_path / "was here"
    (folder / "encoder.pt").write_bytes(pickle.dumps(Malicious(trace)))
    assert "encoder.pt" in refusal()
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds a list in place of named tensors"),
        ({}, "holds a dict in place of named tensors"),
        ({"state_dict": {"a": torch.ones(1)}}, "Entry 'state_dict' .* is a dict, not a named tensor"),
        ({3: torch.ones(1)}, "Entry 3 .* not a named tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "Tensor a .* is sparse"),
    ],
    ids=["list", "empty", "nested", "number as name", "sparse"],
)
def test_anything_but_named_tensors_is_refused(
    tmp_path: Path, refusal: Callable[..., str], content: object, told: str
) -> None:
    folder = write(tmp_path / "peer")
    torch.save(content, folder / "encoder.pt")
    assert re.search(told, refusal())


@pytest.mark.parametrize("damage", [b"", b"no pickle at all", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_refused(
    tmp_path: Path, good: dict[str, State], refusal: Callable[..., str], damage: bytes | None
) -> None:
    folder = write(tmp_path / "peer", encoder=good["encoder"])
    data = (folder / "encoder.pt").read_bytes()
    (folder / "encoder.pt").write_bytes(data[: len(data) // 2] if damage is None else damage)
    assert "could not be read as tensors" in refusal()


# Keys, shapes, counts -----------------------------------------------------------------------------------------------------


def drop(key: str) -> Callable[[State], None]:
    return lambda state: state.pop(key)


def put(key: str, value: Tensor) -> Callable[[State], None]:
    return lambda state: state.update({key: value})


def drop_all(part: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in [key for key in state if part in key]:
            del state[key]

    return change


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("weight_offsets", drop(f"{QUERY}.wo_q.linear1.bias"), r"lacks 1 of 54 tensors, .*attn1\.wo_q\.linear1\.bias"),
        ("weight_offsets", drop_all("attn2.wo_v"), r"lacks 9 of 54 tensors, .*attn2\.wo_v\.linear1\.bias"),
        ("weight_offsets", drop_all("attn2"), "lacks 27 of 54 tensors"),
        ("weight_offsets", put("more", torch.ones(1)), "holds 1 tensors besides the 54 .* more"),
        (
            "weight_offsets",
            put(f"{QUERY}.wo_q.linear_row.weight", torch.ones(12, 11)),
            r"\(12, 11\) in place of \(12, 12\)",
        ),
        (
            "weight_offsets",
            put(f"{QUERY}.wo_q.v", torch.ones(2)),
            r"\(1,\) in place of \(2,\)|\(12, 1\) in place of \(12, 2\)",
        ),
        ("weight_offsets", put(f"{QUERY}.wo_q.linear1.bias", torch.ones(3, 4)), r"\(3, 4\) in place of 1 axes"),
        ("weight_offsets", put(f"{QUERY}.wo_q.v", torch.tensor([float("nan")])), "NaN or infinity"),
        ("weight_offsets", put(f"{QUERY}.wo_q.v", torch.ones(1, dtype=torch.long)), "torch.int64"),
        ("weight_offsets", drop_all(".wo_"), "named tensors|no weight offsets"),
        ("encoder", drop("first_linears.4.bias"), r"lacks 1 of 26 tensors, .*first_linears\.4\.bias"),
        ("encoder", drop_all("first_linears.8"), "holds 8 first_linears .* gives 9 tokens"),
        ("encoder", drop_all("first_linears"), "holds no first_linears"),
        ("encoder", put("linear.weight", torch.ones(1)), "besides the 26 .* linear.weight"),
        ("encoder", put("feature_linear.weight", torch.ones(8, 8)), r"\(8, 8\) in place of \(8, 16\)"),
        ("encoder", put("final_linear.bias", torch.full((6,), float("inf"))), "NaN or infinity"),
        ("encoder", drop("clip_vision.ln_post.bias"), r"lacks 1 of 31 tensors, .*clip_vision\.ln_post\.bias"),
        ("encoder", drop("clip_vision.conv1.weight"), r"lacks 1 of 3 tensors, .*clip_vision\.conv1\.weight"),
        ("encoder", put("clip_vision.proj", torch.ones(8, 4)), r"besides the 31 .*clip_vision\.proj"),
        ("encoder", put("clip_vision.class_embedding", torch.ones(9)), r"\(9,\) in place of \(8,\)"),
        ("encoder", put("clip_vision.positional_embedding", torch.ones(16, 8)), "16 rows"),
        (
            "encoder",
            drop_all("clip_vision"),
            "holds no image backbone, and 9 tokens of width 8 are not those of ViT-H-14",
        ),
    ],
)
def test_missing_extra_and_odd_tensors_are_named(
    tmp_path: Path, good: dict[str, State], refusal: Callable[..., str], name: str, change: Any, told: str
) -> None:
    files = {key: dict(good[key]) for key in ("encoder", "weight_offsets")}
    change(files[name])
    write(tmp_path / "peer", **files)
    text = refusal()
    assert re.search(told, text) and f"{name}.pt" in text, text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop(f"{QUERY}.to_q.weight"), "to_q.weight of .* is missing, but its offset is"),
        (put(f"{QUERY}.to_q.weight", torch.ones(12, 6)), r"has shape \(12, 6\), but its offset is \(12, 12\)"),
        (put("conv_in.bias", torch.full((8,), float("nan"))), "conv_in.bias .* NaN"),
        (drop_all(".wo_"), "holds no weight offsets"),
    ],
)
def test_a_tuned_unet_must_fit_its_offsets(
    tmp_path: Path, good: dict[str, State], refusal: Callable[..., str], change: Any, told: str
) -> None:
    unet = dict(good["unet"])
    change(unet)
    write(tmp_path / "peer", tuned_config(), encoder=good["encoder"], unet=unet)
    assert re.search(told, refusal())


def test_a_whole_unets_offsets_must_be_all_there(tmp_path: Path, good: dict[str, State], refusal: Any) -> None:
    encoder = encoder_state(make_tower(architecture()), 9, 10880, CONTEXT)
    write(tmp_path / "peer", encoder=encoder, weight_offsets=good["weight_offsets"])
    assert "offsets of 6 attention matrices, 54 tensors, but the UNet that the encoder reads has 96, 864" in refusal()


def test_files_of_two_checkpoints_are_refused(tmp_path: Path, good: dict[str, State], refusal: Any) -> None:
    encoder = encoder_state(make_tower(architecture()), 9, 32, 5)
    write(tmp_path / "peer", encoder=encoder, weight_offsets=good["weight_offsets"])
    assert "words of width 5" in refusal()


# The directory and its config --------------------------------------------------------------------------------------------


def test_a_missing_directory_file_or_offsets_are_named(tmp_path: Path, good: dict[str, State], refusal: Any) -> None:
    assert "Directory" in refusal() and str(tmp_path / "peer") in refusal()
    folder = write(tmp_path / "peer", encoder=good["encoder"])
    assert "has no weight offsets, neither weight_offsets.pt nor unet.pt" in refusal()
    write(folder, weight_offsets=good["weight_offsets"])
    (folder / "encoder.pt").unlink()
    assert "encoder.pt was not found" in refusal()
    (folder / "config.json").unlink()
    assert "config.json was not found" in refusal()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{broken", "could not be read as JSON"),
        ("[1]", "must be a JSON object"),
        ('{"pretrained_args": 3}', "must be a JSON object"),
        ('{"domain_embed_scale": "big"}', "domain_embed_scale = 'big' .* must be a number above 0"),
        ('{"domain_embed_scale": 0}', "domain_embed_scale = 0 "),
        ('{"domain_embed_scale": NaN}', "domain_embed_scale = nan "),
        ('{"resolution": 12.5}', "resolution = 12.5 "),
        (f'{{"resolution": {"9" * 400}}}', "resolution = 99.* must be a whole number above 0"),
        ("[" * 100_000, "could not be read as JSON"),
        ('{"domain_class_token": 7}', "domain_class_token = 7 .* must be a text"),
        ('{"placeholder_token": " "}', "placeholder_token = ' ' "),
        ('{"unfreeze_clip_vision": "no"}', "unfreeze_clip_vision = 'no' .* must be true or false"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(tmp_path: Path, refusal: Any, text: str, told: str) -> None:
    write(tmp_path / "peer")
    (tmp_path / "peer" / "config.json").write_text(text)
    assert re.search(told, refusal())


def test_a_backbone_of_another_architecture_does_not_go_inside(
    tmp_path: Path, good: dict[str, State], refusal: Any
) -> None:
    write(tmp_path / "peer", encoder=good["encoder"], weight_offsets=good["weight_offsets"])
    other = json.loads(architecture())
    other["vision_cfg"]["mlp_ratio"] = 2.0
    assert "--architecture" in refusal("--backbone", "inside", "--architecture", json.dumps(other))


def test_outputs_that_no_node_would_find_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, told in (
        ("models/e4t_domains", "models/e4t_domains does not exist: make it"),
        ("a.pt", "must end in .safetensors"),
        ("none/a.safetensors", "Output folder"),
    ):
        assert main([str(tmp_path), "-o", str(tmp_path / target)]) == 1
        assert told in capsys.readouterr().err
