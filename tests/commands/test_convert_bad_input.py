"""Directories that cannot be converted: one sentence that names value, file, folder and what to do; no pickle runs."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mkshing import CONFIG, architecture, encoder_state, make_tower, offset_state, tuned_config, write
from system_faults import as_a_plain_user
from tiny import CONTEXT, TinyUNet
from torch import Tensor

from commands.convert.__main__ import main
from commands.convert.mkshing_config import read_config

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
    """Runs the command on ``tmp_path / "published"``, which must be refused; returns the sentence."""

    def run(*arguments: str) -> str:
        target = tmp_path / "out.safetensors"
        assert main([str(tmp_path / "published"), "-o", str(target), *arguments]) == 1
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
    folder, trace = write(tmp_path / "published", tuned_config() if tuned else CONFIG, **files), tmp_path / "was here"
    state = {**good.get(name, {}), "payload": Malicious(trace)}
    torch.save(state, folder / f"{name}.pt", _use_new_zipfile_serialization=zipped)
    text = refusal()
    assert not trace.exists(), "the pickle was executed"
    assert f"{name}.pt" in text and "io.open" in text and "do not trust" in text
    torch.load(folder / f"{name}.pt", weights_only=False)["payload"].close()
    assert trace.exists(), "the payload does nothing, so this test is blind"


def test_a_bare_malicious_pickle_does_not_execute(tmp_path: Path, refusal: Callable[..., str]) -> None:
    folder, trace = write(tmp_path / "published"), tmp_path / "was here"
    (folder / "encoder.pt").write_bytes(pickle.dumps(Malicious(trace)))
    assert "encoder.pt" in refusal()
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds a list in place of named tensors"),
        ({}, "holds a dict in place of named tensors"),
        ({"state_dict": {"a": torch.ones(1)}}, "holds 'state_dict', a dict, which is not a named tensor"),
        ({3: torch.ones(1)}, "holds 3, a Tensor, which is not a named tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "holds a, which is sparse"),
    ],
    ids=["list", "empty", "nested", "number as name", "sparse"],
)
def test_anything_but_named_tensors_is_refused(
    tmp_path: Path, refusal: Callable[..., str], content: object, told: str
) -> None:
    folder = write(tmp_path / "published")
    torch.save(content, folder / "encoder.pt")
    assert re.search(told, refusal())


@pytest.mark.parametrize("damage", [b"", b"no pickle at all", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_refused(
    tmp_path: Path, good: dict[str, State], refusal: Callable[..., str], damage: bytes | None
) -> None:
    folder = write(tmp_path / "published", encoder=good["encoder"])
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
        ("weight_offsets", put("more", torch.ones(1)), "1 unknown tensors besides its 54, the first is more"),
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
        ("weight_offsets", put(f"{QUERY}.wo_q.v", torch.ones(1).to(torch.float8_e4m3fn)), "float8_e4m3fn"),
        ("weight_offsets", put(f"{QUERY}.wo_q.v", torch.ones(1).expand(10**9)), "whose numbers are not all there"),
        ("weight_offsets", put("x" * 1000, torch.ones(1)), "a name of 1000 characters"),
        (
            "weight_offsets",
            lambda state: state.update(offset_state({"forward.attn1.to_q.weight": (2, 2)})),
            "a matrix that no Stable Diffusion UNet has",
        ),
        ("encoder", put("first_linears.99999999.weight", torch.ones(8, 8)), r"lacks 2 of 28 .*first_linears\.9\.bias"),
        ("encoder", put(f"first_linears.{'9' * 180}.bias", torch.ones(8)), r"lacks 2 of 28 .*first_linears\.9\.bias"),
        ("encoder", put("first_linears." + "9" * 5000 + ".bias", torch.ones(8)), "a name of 5019 characters"),
        (
            "encoder",
            put("clip_vision.transformer.resblocks.99999999.ln_1.bias", torch.ones(8)),
            r"lacks 12 of 43 .*resblocks\.2\.attn",
        ),
        ("encoder", drop("first_linears.4.bias"), r"lacks 1 of 26 tensors, .*first_linears\.4\.bias"),
        ("encoder", drop_all("first_linears.8"), "holds 8 first_linears .* gives 9 tokens"),
        ("encoder", drop_all("first_linears"), "holds no first_linears"),
        ("encoder", put("linear.weight", torch.ones(1)), "besides its 26, the first is linear.weight"),
        ("encoder", put("feature_linear.weight", torch.ones(8, 8)), r"\(8, 8\) in place of \(8, 16\)"),
        ("encoder", put("final_linear.bias", torch.full((6,), float("inf"))), "NaN or infinity"),
        ("encoder", drop("clip_vision.ln_post.bias"), r"lacks 1 of 31 tensors, .*clip_vision\.ln_post\.bias"),
        ("encoder", drop("clip_vision.conv1.weight"), r"lacks 1 of 3 tensors, .*clip_vision\.conv1\.weight"),
        ("encoder", put("clip_vision.proj", torch.ones(8, 4)), r"besides its 31, the first is clip_vision\.proj"),
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
    write(tmp_path / "published", **files)
    text = refusal()
    assert re.search(told, text) and f"{name}.pt" in text, text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop(f"{QUERY}.to_q.weight"), "lacks .*to_q.weight, whose offset has the shape"),
        (
            put(f"{QUERY}.to_q.weight", torch.ones(12, 6)),
            r"holds \(12, 6\) as .*to_q.weight, whose offset has the shape \(12, 12\)",
        ),
        (put("conv_in.bias", torch.full((8,), float("nan"))), "NaN or infinity in conv_in.bias"),
        (drop_all(".wo_"), "holds no weight offsets"),
    ],
)
def test_a_tuned_unet_must_fit_its_offsets(
    tmp_path: Path, good: dict[str, State], refusal: Callable[..., str], change: Any, told: str
) -> None:
    unet = dict(good["unet"])
    change(unet)
    write(tmp_path / "published", tuned_config(), encoder=good["encoder"], unet=unet)
    assert re.search(told, refusal())


def test_a_whole_unets_offsets_must_be_all_there(tmp_path: Path, good: dict[str, State], refusal: Any) -> None:
    encoder = encoder_state(make_tower(architecture()), 9, 10880, CONTEXT)
    write(tmp_path / "published", encoder=encoder, weight_offsets=good["weight_offsets"])
    assert "offsets of 6 attention matrices, but the encoder's UNet has 96" in refusal()


def test_files_of_two_checkpoints_are_refused(tmp_path: Path, good: dict[str, State], refusal: Any) -> None:
    encoder = encoder_state(make_tower(architecture()), 9, 32, 5)
    write(tmp_path / "published", encoder=encoder, weight_offsets=good["weight_offsets"])
    assert "words of width 5" in refusal()


# The directory and its config --------------------------------------------------------------------------------------------


def test_a_missing_directory_file_or_offsets_are_named(tmp_path: Path, good: dict[str, State], refusal: Any) -> None:
    assert f"Directory published was not found in {tmp_path}: name one with config.json" in refusal()
    folder = write(tmp_path / "published", encoder=good["encoder"])
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
        ("[1]", "it is no JSON object"),
        ('{"pretrained_args": 3}', "pretrained_args = 3, which must be a JSON object"),
        ('{"domain_embed_scale": "big"}', "domain_embed_scale = 'big' must be a number"),
        ('{"domain_embed_scale": 0}', "domain_embed_scale = 0 "),
        ('{"domain_embed_scale": NaN}', "domain_embed_scale = nan "),
        ('{"resolution": 12.5}', "resolution = 12.5 "),
        (f'{{"resolution": {"9" * 400}}}', "resolution = 99.* must be at least 32 and at most 4096"),
        ("[" * 100_000, "could not be read as JSON"),
        ('{"domain_class_token": 7}', "domain_class_token = 7 must be a text"),
        ('{"placeholder_token": " "}', "placeholder_token = ' ' "),
        ('{"resolution": 1}', "resolution = 1 "),
        ('{"resolution": 99999999}', "resolution = 99999999 must be at least 32 and at most 4096"),
        ('{"resolution": ' + "9" * 5000 + "}", "could not be read as JSON"),
        ('{"domain_embed_scale": 1e300}', "domain_embed_scale = 1e[+]300 "),
        ('{"clip_model_name_or_path": "::"}', "clip_model_name_or_path = '::' must name"),
        ('{"clip_model_name_or_path": "ViT-H-14::"}', "must name architecture and version"),
        ('{"domain_class_token": "two\\nlines"}', "control characters"),
        ('{"domain_class_token": "\\ud800"}', "control characters"),
        ('{"prompt_template": "%s"}' % ("long " * 100), "500 characters"),
        ('{"max_train_steps": 1%s}' % ("0" * 400), "cannot be used"),
        ('{"learning_rate": NaN}', "finite number"),
        ('{"unfreeze_clip_vision": "no"}', "unfreeze_clip_vision = 'no' must be true or false"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(tmp_path: Path, refusal: Any, text: str, told: str) -> None:
    write(tmp_path / "published")
    (tmp_path / "published" / "config.json").write_text(text)
    assert re.search(told, refusal())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--word", "human face"), "word = 'human face' must be one word without spaces"),
        (("--word", "fa\x1bce"), "control characters"),
        (("--name", "n" * 101), "101 characters"),
        (("--name", "\udcff"), "control characters"),
        (("--license", "l" * 2001), "2001 characters"),
    ],
)
def test_what_a_domain_file_may_not_say_is_named(
    tmp_path: Path, good: dict[str, State], refusal: Any, arguments: tuple[str, ...], told: str
) -> None:
    write(tmp_path / "published", encoder=good["encoder"], weight_offsets=good["weight_offsets"])
    assert told in refusal("--backbone", "inside", "--architecture", architecture(), *arguments)


def test_a_domain_word_of_two_words_asks_for_another(tmp_path: Path, good: dict[str, State], refusal: Any) -> None:
    files = {"encoder": good["encoder"], "weight_offsets": good["weight_offsets"]}
    write(tmp_path / "published", CONFIG | {"domain_class_token": "human face"}, **files)
    assert "must be one word without spaces" in refusal()
    target = tmp_path / "named.safetensors"
    assert main([str(tmp_path / "published"), "-o", str(target), "--word", "face"]) == 0


def test_a_file_in_place_of_the_directory_and_the_reverse_are_named(tmp_path: Path, refusal: Any) -> None:
    (tmp_path / "published").write_text("no folder")
    assert "is a file, not a folder: name the folder it lies in" in refusal()
    (tmp_path / "published").unlink()
    (tmp_path / "published" / "config.json").mkdir(parents=True)
    assert "config.json is a folder" in refusal()


def test_a_name_that_is_too_long_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / ("n" * 300))]) == 1
    assert main([str(tmp_path), "-o", str(tmp_path / f"{'n' * 300}.safetensors")]) == 1
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("Not converted: ") and "File name too long" in line and len(line) < 320


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_directory_that_may_not_be_entered_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    # Not below pytest's own folder, which other users may not enter either.
    with tempfile.TemporaryDirectory() as outside:
        folder = write(Path(outside) / "published")
        Path(outside).chmod(0o755)
        folder.chmod(0o644)
        with as_a_plain_user():
            assert main([str(folder)]) == 1
        folder.chmod(0o755)
    assert "may not be entered: check its permissions" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="timers of POSIX")
def test_stopping_it_leaves_no_traceback_and_no_file(
    tmp_path: Path, good: dict[str, State], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "published", encoder=good["encoder"], weight_offsets=good["weight_offsets"])
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert main([str(tmp_path / "published"), "-o", str(tmp_path / "out.safetensors")]) == 130
    finally:
        signal.signal(signal.SIGALRM, before)
    assert capsys.readouterr().err.splitlines()[-1].startswith("Stopped")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_config_may_be_in_any_unicode_encoding(tmp_path: Path, good: dict[str, State], encoding: str) -> None:
    folder = write(tmp_path / "published", encoder=good["encoder"], weight_offsets=good["weight_offsets"])
    (folder / "config.json").write_text(json.dumps(CONFIG | {"placeholder_token": "*ä"}, ensure_ascii=False), encoding)
    assert read_config(folder / "config.json").placeholder == "*ä"


def test_a_backbone_of_another_architecture_does_not_go_inside(
    tmp_path: Path, good: dict[str, State], refusal: Any
) -> None:
    write(tmp_path / "published", encoder=good["encoder"], weight_offsets=good["weight_offsets"])
    other = json.loads(architecture())
    other["vision_cfg"]["mlp_ratio"] = 2.0
    assert "--architecture" in refusal("--backbone", "inside", "--architecture", json.dumps(other))


def test_outputs_that_no_node_would_find_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, told in (
        ("models/e4t_domains", "models/e4t_domains does not exist: make it"),
        ("a.pt", "must end in .safetensors"),
        ("none/a.safetensors", "none was not found: make this folder"),
    ):
        assert main([str(tmp_path), "-o", str(tmp_path / target)]) == 1
        assert told in capsys.readouterr().err
