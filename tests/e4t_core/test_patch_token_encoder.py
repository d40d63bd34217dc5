import pytest
import torch
import torch.nn.functional as F
from tiny import TinyText, TinyUNet, tiny_info
from tuned import tune

from e4t_core.methods.e4t.clip_backbone import normalize, read_vectors
from e4t_core.methods.e4t.domain import Domain, new_encoder
from e4t_core.methods.e4t.domain_info import PATCH_TOKENS, BackboneInfo
from e4t_core.methods.e4t.patch_token_encoder import PatchTokenEncoder
from e4t_core.methods.e4t.settings import TuningSettings
from e4t_core.methods.e4t.weight_offsets import WeightOffsets
from e4t_core.photos import Photos

INFO = BackboneInfo("open_clip", "ViT-tiny", (3,), 5, 32, reading=PATCH_TOKENS, tokens=4)


def test_its_output_is_the_formula() -> None:
    encoder = PatchTokenEncoder(2, 3, 4, 5)
    clip, features = torch.randn(2, 2, 3), torch.randn(2, 4)
    unet = encoder.unet_out(F.leaky_relu(encoder.unet_in(features)))
    each = [first(encoder.feature(torch.cat([clip[:, i], unet], dim=1))) for i, first in enumerate(encoder.first)]
    assert torch.allclose(encoder(clip, features), encoder.final(F.leaky_relu((each[0] + each[1]) / 2)), atol=1e-6)


def test_one_photo_serves_many_noise_levels_and_other_widths_are_refused() -> None:
    encoder = PatchTokenEncoder(2, 3, 4, 5)
    clip, features = torch.randn(1, 2, 3), torch.randn(6, 4)
    assert torch.allclose(encoder(clip, features), encoder(clip.repeat(6, 1, 1), features), atol=1e-6)
    with pytest.raises(ValueError, match="do not fit this encoder"):
        encoder(clip[:, :1], features)
    with pytest.raises(ValueError, match="do not fit this encoder"):
        encoder(clip, features[:, :3])


def test_the_normalized_cls_and_every_second_patch_of_one_block_are_read() -> None:
    blocks = torch.arange(3 * 8.0).view(3, 1, 8, 1).expand(3, 1, 8, 5)
    vectors = read_vectors(INFO, lambda number: blocks[number - 1], lambda cls: cls + 1000)
    # The last block counts from 16: [CLS] there, patches 0, 1, 2, … behind it.
    assert vectors[0, :, 0].tolist() == [1016, 18, 20, 22]


def test_pictures_are_resized_with_aligned_corners_and_overshoot_stays() -> None:
    step = torch.zeros((1, 3, 8, 8))
    step[..., 4:] = 1
    found = normalize(step, INFO)[0, 0]
    black, white = -INFO.mean[0] / INFO.std[0], (1 - INFO.mean[0]) / INFO.std[0]
    assert torch.allclose(found[:, 0], torch.tensor(black)) and torch.allclose(found[:, -1], torch.tensor(white))
    assert found.min() < black - 0.01 and found.max() > white + 0.01


def test_tuning_trains_a_copy_of_it() -> None:
    unet = TinyUNet()
    info = tiny_info(unet, backbone=INFO, preset=TuningSettings(steps=2, learning_rate=1e-3, batch=2, micro_batch=2))
    encoder = new_encoder(info).eval().requires_grad_(False)
    assert isinstance(encoder, PatchTokenEncoder) and encoder.layers == 4
    domain = Domain(encoder, WeightOffsets(info.projections), info)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    photos = Photos(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 5))
    concept = tune(unet, TinyText(), domain, photos, info.preset, seed=1)
    assert isinstance(concept.predictor.encoder, PatchTokenEncoder)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert all(not torch.equal(value, before[key]) for key, value in concept.predictor.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reading": "all"}, "reading = 'all'"),
        ({"reading": PATCH_TOKENS}, "at least 1 token"),
        ({"reading": PATCH_TOKENS, "tokens": 3, "layers": (1, 2)}, "one layer"),
        ({"tokens": 3}, "must be 0"),
    ],
)
def test_a_reading_that_makes_no_sense_is_refused(changes: dict[str, object], told: str) -> None:
    values = {"kind": "open_clip", "architecture": "a", "layers": (1,), "width": 4, "image_size": 8}
    with pytest.raises(ValueError, match=told):
        BackboneInfo(**(values | changes))  # type: ignore[arg-type]
