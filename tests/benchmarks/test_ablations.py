"""Each ablation switches what it says and nothing else; what is beside it is the product as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import ablation_domains
from benchmarks.ablation_arms import ARMS, CLAIMS, FROZEN, FULL, SHIPPED, SHORT, SHORTENED, UNHELD, Ablation
from benchmarks.ablation_domains import Unfinished, config, pretrain
from benchmarks.ablation_plot import plot
from benchmarks.ablations import MEASURES, chosen, claims, compared, difference, tables, verdict
from benchmarks.arms import Drawer
from benchmarks.quality_report import ArmScores
from benchmarks.scoring import Sums
from benchmarks.statistics import Interval
from commands.pretrain.config.config_file import to_dict
from commands.pretrain.run.encoder_and_offsets import EncoderAndOffsets
from e4t_core.concept import Concept
from e4t_core.loop_settings import SamplingSettings
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.photos import Photos
from e4t_core.run import BaseModel, StepReport
from e4t_core.training import train
from e4t_core.weight_changes import full_differences
from miniworld.domains import config_of, load_backbone, narrow_domain
from miniworld.heldout import concept_photo, held_out
from miniworld.presets import PRESETS
from miniworld.pretraining import load_base

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "comfyui")
needs_comfyui = pytest.mark.skipif(not (COMFYUI / "comfy").is_dir(), reason="needs ComfyUI")
QUICK = {"steps": 1, "batch": 2, "micro_batch": 2}


def settings_of(arm: Ablation) -> tuple[TuningSettings, SamplingSettings]:
    """As the arm's drawer has them."""
    drawer = Drawer(1, dict(arm.changes))
    return replace(PRESETS["faces"], **drawer.changes), SamplingSettings(**drawer.drawn)


def changed(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of the values that differ."""
    found = set()
    for name in one.keys() | other.keys():
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= changed(a, b, f"{prefix}{name}.")
        elif a != b:
            found.add(prefix + name)
    return found


@pytest.mark.parametrize("arm", ARMS.values(), ids=lambda arm: arm.name)
def test_an_arm_differs_by_the_fields_that_it_names(arm: Ablation) -> None:
    own, whole = (tuple(asdict(part) for part in settings_of(one)) for one in (arm, ARMS[FULL]))
    assert changed(own[0], whole[0]) | changed(own[1], whole[1]) == set(arm.changes)


def test_full_is_the_shipped_preset() -> None:
    assert not ARMS[FULL].changes and not ARMS[SHORT].changes
    assert settings_of(ARMS[FULL]) == (PRESETS["faces"], SamplingSettings())


@pytest.mark.parametrize("arm", (*SHORTENED, *UNHELD), ids=lambda arm: arm.name)
def test_a_pre_training_differs_by_the_fields_that_it_names(arm: Ablation) -> None:
    own, short = to_dict(config(arm)), to_dict(config(ARMS[SHORT]))
    assert arm.pretraining is not None
    named = {f"training.{name}" for name in arm.pretraining}
    assert changed(own, short) == named | (set() if arm.name == SHORT else {"output.folder"})


def test_the_shortened_pre_training_is_the_shipped_one_but_for_its_length() -> None:
    assert changed(to_dict(config(ARMS[SHORT])), to_dict(config_of("faces"))) == {
        "training.steps",
        "training.warmup",
        "output.folder",
        "output.preview_every",
        "output.checkpoint_every",
        "data.cache_folder",
    }


@pytest.mark.parametrize(
    ("name", "kind", "trains"),
    [
        (SHORT, "WeightOffsets", True),
        ("short direct offsets", "DirectOffsets", True),
        ("short no offsets", "WeightOffsets", False),
        ("short HyperNetwork", "HyperOffsets", True),
    ],
)
def test_what_is_pre_trained_is_of_the_form_that_the_arm_says(name: str, kind: str, trains: bool) -> None:
    networks = EncoderAndOffsets(config(ARMS[name]), load_base(), 6, 128, torch.device("cpu"))
    trained = {n.partition(".")[0] for n, p in networks.named_parameters() if p.requires_grad}
    assert type(networks.offsets).__name__ == kind
    assert trained == ({"encoder", "offsets"} if trains else {"encoder"})


@cache
def world() -> tuple[BaseModel, Photos, Any]:
    base = load_base()
    images = concept_photo(held_out("face", "validation", 1)[0])[1][None]
    photos = Photos(base.vae.encode(images), load_backbone().cls_features(images))
    return BaseModel(base.unet, base.text, "mini world"), photos, narrow_domain("faces")


@cache
def learned(name: str) -> tuple[Concept, tuple[StepReport, ...]]:
    """An arm's concept after one step of a small batch, and what was reported."""
    base, photos, domain = world()
    settings = replace(
        settings_of(ARMS[name])[0], **(QUICK | dict(ARMS[name].changes) if name == "no tuning" else QUICK)
    )
    reports: list[StepReport] = []
    return train(E4T(domain), base, photos, settings, 0, on_step=reports.append), tuple(reports)


def moved(name: str) -> dict[str, Tensor]:
    """What tuning changed of the UNet's weights."""
    return {key: kept.value() for key, kept in full_differences(learned(name)[0].weights).items()}


def encoder_step(name: str) -> float:
    """By how much tuning moved the encoder's numbers at most."""
    predictor = learned(name)[0].predictor
    assert predictor is not None
    before = world()[2].encoder.state_dict()
    return max(float((value - before[key]).abs().max()) for key, value in predictor.network.state_dict().items())


def beyond_the_offsets(name: str) -> float:
    """The largest change of an attention projection that the untuned offsets do not explain, in learning rates."""
    base, _, domain = world()
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    scale = domain.offsets.fixed().apply(key, torch.ones(domain.offsets.shapes[key]))
    # AdamW moves a number by one rate at first, and by its own decay.
    weight = base.unet.parameters()[key]
    rate = PRESETS["faces"].learning_rate * (1 + PRESETS["faces"].weight_decay * weight.abs())
    return float((moved(name)[key] / scale).abs().div(rate).max())


def test_no_tuning_leaves_the_domain_as_it_is() -> None:
    assert not moved("no tuning") and encoder_step("no tuning") == 0
    assert moved(FULL) and encoder_step(FULL) > 0


def test_without_the_unet_only_projections_move() -> None:
    projections = set(world()[2].offsets.shapes)
    assert set(moved("encoder and offsets")) == projections < set(moved(FULL))
    assert encoder_step("encoder and offsets") > 0


def test_the_unet_alone_moves_neither_encoder_nor_offsets() -> None:
    assert encoder_step("UNet only") == 0
    assert set(moved("UNet only")) == set(moved(FULL))
    assert beyond_the_offsets("UNet only") < 1.01
    assert beyond_the_offsets(FULL) > 2


def test_without_lambda_the_words_length_costs_nothing() -> None:
    assert learned("no lambda")[0].losses[0] < learned(FULL)[0].losses[0]


def test_without_find_subject_all_of_the_photo_is_learned() -> None:
    def masks(name: str) -> list[bool]:
        return [report.masks is not None for report in learned(name)[1] if report.phase == "tuning"]

    assert masks("no find_subject") == [False] and masks(FULL) == [True]


def test_at_the_full_rate_the_encoder_goes_further() -> None:
    share = PRESETS["faces"].encoder_rate
    assert share < 0.1
    # A number beside AdamW's own decay of it.
    assert encoder_step("encoder rate 1") * share == pytest.approx(encoder_step(FULL), rel=0.02)
    assert encoder_step("feature gradient") == pytest.approx(encoder_step(FULL), rel=0.02)


def test_gradients_of_the_feature_pass_reach_its_half_of_the_unet_only() -> None:
    with_it, without = moved("feature gradient"), moved(FULL)
    assert not torch.equal(with_it["conv_in.weight"], without["conv_in.weight"])
    assert torch.allclose(with_it["conv_out.weight"], without["conv_out.weight"], rtol=0, atol=1e-7)


def test_both_switches_of_the_paper_are_the_two_alone() -> None:
    both = ARMS["both as in the paper"].changes
    assert both == {**ARMS["encoder rate 1"].changes, **ARMS["feature gradient"].changes}


def test_arms_are_compared_with_those_of_their_own_pre_training() -> None:
    assert {arm.beside for arm in (*SHIPPED, *FROZEN)} == {FULL}
    assert {arm.beside for arm in SHORTENED} == {SHORT}
    assert [arm.beside for arm in UNHELD] == ["short no lambda", *["unheld"] * (len(UNHELD) - 1)]


def test_arms_on_one_pre_training_take_the_same_domain_file() -> None:
    files = {ablation_domains.domain_file(arm) for arm in (ARMS["short no lambda"], *UNHELD)}
    assert len(files) == 1 and files != {ablation_domains.domain_file(ARMS[SHORT])}


def test_arms_are_chosen_with_the_one_beside_them() -> None:
    assert [arm.name for arm in chosen("short direct offsets,no lambda")] == [
        FULL,
        "no lambda",
        SHORT,
        "short direct offsets",
    ]
    assert chosen(None) == [arm for arm in ARMS.values() if arm not in FROZEN]
    with pytest.raises(ValueError, match="no arm 'no lamda'"):
        chosen("no lamda")


def scores(level: float, people: int = 5) -> ArmScores:
    """An arm that scores about ``level`` in all; errors are what is missing to 1."""
    rng = np.random.default_rng(0)
    points, ones = level + 0.1 * rng.random(people), np.ones(people)

    def good() -> Sums:
        return Sums(points, ones)

    errors = Sums(1 - points, ones)
    prompt = {edit: good() for edit in ("style", "background", "accessory", "zoom")}
    return ArmScores(good(), errors, errors, prompt, good(), good())


def test_every_measure_is_the_arm_less_the_one_beside_it() -> None:
    scored = {FULL: scores(0.5), "no tuning": scores(0.3)}
    for name in MEASURES:
        found = difference(scored, ARMS["no tuning"], name)
        assert (found.value, found.low, found.high) == pytest.approx((-0.2, -0.2, -0.2)), name


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ([(-0.2, -0.1), (-0.3, -0.05)], "holds"),
        ([(-0.2, -0.1), (-0.3, 0.05)], "falls, but not clearly"),
        ([(0.1, 0.2), (0.05, 0.3)], "does not hold: it rises"),
        ([(-0.1, 0.3), (-0.4, 0.1)], "cannot be seen"),
    ],
)
def test_a_claim_holds_where_both_judges_intervals_say_so(limits: list[tuple[float, float]], said: str) -> None:
    intervals = [Interval((low + high) / 2, low, high) for low, high in limits]
    assert verdict(intervals, 4) == said
    assert verdict(intervals, 3) == "fewer than 4 individuals"


def test_every_claim_is_about_an_arm_and_a_measure() -> None:
    assert all(claim.arm in ARMS and claim.measure in MEASURES for claim in CLAIMS)
    scored = {judge: {name: scores(0.5 - 0.01 * place) for place, name in enumerate(ARMS)} for judge in ("a", "b")}
    arms = list(ARMS.values())
    assert {arm.name for arm in compared(scored, arms)} == set(ARMS) - {FULL, SHORT}
    said = claims(scored, arms)
    assert all(claim.text in said for claim in CLAIMS) and said.count("holds") == len(CLAIMS)
    assert all(arm.name in "".join(tables(scored, arms)) for arm in arms)


def test_the_picture_has_a_plot_for_each_judge(tmp_path: Path) -> None:
    arms = list(ARMS.values())
    values = {arm.name: {"likeness": 0.5 + 0.01 * n, "PROMPT": 0.9 - 0.02 * n} for n, arm in enumerate(arms)}
    plot({"a": values}, arms, tmp_path / "one.png")
    plot({"a": values, "b": values}, arms, tmp_path / "two.png")
    one, two = (Image.open(tmp_path / f"{name}.png").size for name in ("one", "two"))
    assert two[0] > 1.8 * one[0] and two[1] == one[1] > 500


def test_a_pre_training_stops_in_time_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ablation_domains.overrides
    quick = ["data.sources.0.options.count=64", "training.batch=2", "training.micro_batch=1"]
    monkeypatch.setattr(ablation_domains, "FOLDER", tmp_path)
    monkeypatch.setattr(ablation_domains, "overrides", lambda arm, steps: [*whole(arm, steps), *quick])
    with pytest.raises(Unfinished, match="'short' is not finished"):
        pretrain(ARMS[SHORT], time.monotonic(), 2)
    assert not list(tmp_path.rglob("mini_faces.safetensors"))
    path = pretrain(ARMS[SHORT], float("inf"), 2)
    assert path.is_file() and path.is_relative_to(tmp_path)
    written = path.stat().st_mtime_ns
    assert pretrain(ARMS[SHORT], 0, 2) == path and path.stat().st_mtime_ns == written


SMALL_RUN = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from benchmarks import ablation_pictures
from benchmarks.ablation_arms import ARMS, FULL
from benchmarks.ablation_pictures import Painter
from benchmarks.arms import Drawer
ablation_pictures.FOLDER = Path(sys.argv[1])
quick = {"steps": 1, "batch": 2, "micro_batch": 2}
painter = Painter("validation", 2)
person = replace(painter.people[1], prompts=painter.people[1].prompts[:2])
def drawn(name):
    drawer = painter.drawer(ARMS[name])
    drawer.changes = quick | drawer.changes
    return painter.drawn(ARMS[name], person)
whole = drawn(FULL)
quality = (Drawer(1, quick).draw("e4t", person) * 255).round().to(torch.uint8).float() / 255
assert torch.equal(whole.pictures, quality), "the arm is another one than the quality benchmark's"
assert whole.words.shape == (2, 10, 2)
timesteps, lengths = whole.words.unbind(-1)
assert (timesteps.diff(dim=1) < 0).all() and (lengths > 0).all() and lengths.std() > 0
fixed, frozen = drawn("no refinement"), drawn("frozen at 0 %")
assert fixed.words.numel() == 0 and not torch.equal(fixed.pictures, whole.pictures)
assert torch.equal(frozen.words, whole.words[:, :1]) and not torch.equal(frozen.pictures, whole.pictures)
view = ablation_pictures.host.pack("nodes.host.sampling.word_lengths").live_view
assert view is ablation_pictures.host.pack("nodes.host.live_view"), "words are watched for ever"
files = [path.parent.name for path in Path(sys.argv[1]).rglob("*.safetensors")]
assert len(files) == len(set(files)) == 3, files
painter.until = 0
assert torch.equal(drawn(FULL).pictures, whole.pictures)
try:
    drawn("no tuning")
except ablation_pictures.Unfinished:
    pass
else:
    raise AssertionError("drawn although there is no time")
"""


@needs_comfyui
def test_full_is_the_quality_benchmarks_arm_bit_for_bit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL_RUN, str(tmp_path)],
        check=False, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
