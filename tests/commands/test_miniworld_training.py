"""The configs of the shipped domains, as they are, but for a few steps: Python sources, masks, features kept, widening."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from commands.pretrain.config.config_file import load_config
from commands.pretrain.run.training import Training
from e4t_core.files.domain_file import load_domain
from e4t_core.methods.e4t.domain import Domain
from miniworld.domains import load_mini_domain

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def train(config: str, out: Path, *more: str) -> tuple[Domain, list[float]]:
    """The domain file's content after two steps, and their losses."""
    word = config.removeprefix("mini_")
    options = f'{{domain = "{word}", count = 64, seed = 11}}'
    overrides = [
        f"data.sources.0.options={options}",
        "training.steps=2",
        "training.batch=4",
        "training.micro_batch=4",
        "output.log_every=1",
        "output.preview_every=0",
        f'output.folder="{out.as_posix()}"',
    ]
    path = Training(load_config(Path(config), [*overrides, *more])).run()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert path is not None
    lines = (out / "log.jsonl").read_text().splitlines()
    return load_domain(path), [json.loads(line)["diffusion"] for line in lines]


@pytest.mark.parametrize("config", ["mini_face", "mini_cat"])
def test_the_result_fits_the_base_that_comfyui_loads(config: str, tmp_path: Path) -> None:
    domain, _ = train(config, tmp_path)
    shipped = load_mini_domain("faces")
    assert domain.info.word == config.removeprefix("mini_")
    assert domain.info.step == 2
    assert domain.offsets.shapes == shipped.offsets.shapes
    assert domain.encoder.feature_width == shipped.encoder.feature_width
    assert domain.backbone_state is not None and shipped.backbone_state is not None
    assert domain.backbone_state.keys() == shipped.backbone_state.keys()
    name = domain.offsets.names[0]
    weight = torch.ones(domain.offsets.shapes[name])
    assert not torch.equal(domain.offsets.fixed().apply(name, weight), weight)


def test_masks_count_only_where_they_are_asked_for(tmp_path: Path) -> None:
    _, masked = train("mini_face", tmp_path / "masked")
    _, whole = train("mini_face", tmp_path / "whole", "training.use_mask=false")
    _, live = train("mini_face", tmp_path / "live", "data.cache_features=false")
    assert masked[0] != pytest.approx(whole[0], rel=0.01)
    assert masked == pytest.approx(live, rel=0.02)
