"""The paper's table 1 and figures: kinds of layers, scores, curves, and photos from outside the domain."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.ablation_arms import ARMS, FULL
from benchmarks.ablation_pictures import Drawn
from benchmarks.layer_changes import PHOTOS, SETTINGS, by_kind, kind_of, measure, photos_of, scores
from benchmarks.out_of_domain import own_and_others, toy
from benchmarks.paper_figures import draw_curves, lengths_of
from benchmarks.photo_fit import Judge
from benchmarks.picture_sheet import sheet
from miniworld.heldout import concept_photo, held_out


@pytest.mark.parametrize(
    ("name", "dimensions", "kind"),
    [
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 2, "cross-attention"),
        ("up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0.weight", 2, "self-attention"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias", 1, "biases"),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", 2, "feed-forward"),
        ("mid_block.attentions.0.transformer_blocks.0.norm2.bias", 1, "norms"),
        ("mid_block.attentions.0.proj_in.weight", 4, "in and out of attention"),
        ("mid_block.attentions.0.proj_in.weight", 2, "in and out of attention"),
        ("down_blocks.0.resnets.0.time_emb_proj.weight", 2, "timestep"),
        ("time_embedding.linear_1.weight", 2, "timestep"),
        ("down_blocks.0.resnets.0.conv_shortcut.weight", 4, "convolutions"),
        ("down_blocks.0.downsamplers.0.conv.weight", 4, "convolutions"),
        ("conv_in.weight", 4, "convolutions"),
        ("conv_norm_out.weight", 1, "norms"),
    ],
)
def test_a_parameter_is_of_its_kind(name: str, dimensions: int, kind: str) -> None:
    assert kind_of(name, dimensions) == kind


def test_a_matrix_of_no_kind_is_told() -> None:
    with pytest.raises(ValueError, match="'class_embedding.weight' is of no known kind"):
        kind_of("class_embedding.weight", 2)


def test_the_papers_score_is_the_mean_step_over_the_mean_size() -> None:
    found = scores(torch.tensor([[3.0, -4.0]]), torch.tensor([[0.0, -1.0]]))
    assert (found["paper"], found["norm"], found["step"]) == pytest.approx((0.5 / 3.5, 1 / 5, 0.5))
    assert math.isnan(scores(torch.zeros(2), torch.ones(2))["paper"])


def test_layers_are_averaged_within_a_network_and_attention_also_by_projection() -> None:
    key, value = (f"mid_block.attentions.0.transformer_blocks.0.attn2.to_{part}.weight" for part in "kv")
    networks = [
        {key: {"paper": 1.0}, value: {"paper": 3.0}, "conv_in.weight": {"paper": n}, "": {"loss": 9.0}}
        for n in (5.0, 7.0)
    ]
    found = by_kind(networks, {key: 2, value: 2, "conv_in.weight": 4})
    assert found["cross-attention"]["paper"].tolist() == [2, 2]
    assert found["cross-attention to_v"]["paper"].tolist() == [3, 3]
    assert found["convolutions"]["paper"].tolist() == [5, 7]
    assert set(found) == {"cross-attention", "cross-attention to_k", "cross-attention to_v", "convolutions"}


def test_a_tuned_network_has_a_score_for_each_weight_and_none_moves_further_than_its_rate() -> None:
    identity = held_out("face", "validation", 1)[0]
    settings = replace(SETTINGS, steps=2, batch=2, micro_batch=2)
    found = measure(identity, settings)
    losses = found.pop("")
    assert losses["first loss"] > 0
    assert len(found) == 206 and all(one["step"] > 0 for one in found.values())
    # Two steps of AdamW, with its decay; masters are kept in float32, differences in half precision.
    assert max(one["step"] for one in found.values()) < 2.1 * settings.learning_rate


def test_photos_of_one_individual_are_its_own_and_different() -> None:
    identity = held_out("face", "validation", 2)[1]
    photos = photos_of(identity, PHOTOS)
    assert torch.equal(photos[0], concept_photo(identity)[1])
    assert all((photos[a] - photos[b]).abs().mean() > 0.01 for a in range(PHOTOS) for b in range(a))
    assert torch.equal(photos, photos_of(identity, PHOTOS))


def test_a_curve_is_the_mean_over_prompts_and_individuals() -> None:
    words = torch.tensor([[[900.0, 1.0], [100.0, 2.0]], [[900.0, 3.0], [100.0, 4.0]]])
    drawn = [Drawn(torch.zeros(0), words), Drawn(torch.zeros(0), words + torch.tensor([0.0, 2.0]))]
    assert lengths_of(drawn) == [(900.0, 3.0), (100.0, 4.0)]


def test_curves_and_sheets_are_pictures(tmp_path: Path) -> None:
    draw_curves({FULL: [(999.0, 0.5), (0.0, 1.2)]}, [ARMS[FULL]], tmp_path / "curve.png")
    curve = np.array(Image.open(tmp_path / "curve.png"))
    assert (curve == (43, 138, 62)).all(-1).sum() > 100  # the line's green
    red = torch.zeros(3, 128, 128)
    red[0] = 1
    sheet([[red, None], [None, red]], ["one", "two"], ["first", "second"], tmp_path / "sheet.png")
    pixels = np.array(Image.open(tmp_path / "sheet.png"))
    assert (pixels == (255, 0, 0)).all(-1).sum() == 2 * 128 * 128


def test_toys_are_different_and_the_same_every_time() -> None:
    assert torch.equal(toy(1), toy(1)) and toy(1).shape == (3, 128, 128)
    assert (toy(1) - toy(2)).abs().mean() > 0.02


def test_own_photos_are_told_from_others() -> None:
    assert own_and_others(torch.tensor([[1.0, 4.0], [6.0, 3.0]])) == (2.0, 5.0)


def test_the_face_domain_explains_a_face_better_than_a_toy() -> None:
    domain = Judge("face")
    assert domain.gain(concept_photo(held_out("face", "validation", 1)[0])[1]) > domain.gain(toy(0))
