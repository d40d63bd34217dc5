import pytest
import torch
import torch.nn.functional as F
from tiny import TinyUNet, tiny_domain

from e4t_core.methods.e4t.concept_encoder import ConceptEncoder, OffsetEncoder
from e4t_core.methods.e4t.patch_token_encoder import PatchTokenEncoder
from e4t_core.methods.e4t.word_predictor import E4TPredictor


def test_it_has_the_papers_size_for_stable_diffusion_and_vit_h() -> None:
    encoder = ConceptEncoder(16, 1280, 10880, 768, device="meta")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 35_574_528
    assert encoder.final.in_features == 12160


def test_its_output_is_the_formula() -> None:
    encoder = ConceptEncoder(2, 3, 4, 5)
    clip, unet = torch.randn(2, 2, 3), torch.randn(2, 4)
    mean = (encoder.first[0](clip[:, 0]) + encoder.first[1](clip[:, 1])) / 2
    expected = encoder.final(torch.cat([F.leaky_relu(mean), F.leaky_relu(unet)], dim=1))
    assert torch.allclose(encoder(clip, unet), expected, atol=1e-6)


def test_one_photo_serves_many_noise_levels() -> None:
    encoder = ConceptEncoder(2, 3, 4, 5)
    clip, unet = torch.randn(1, 2, 3), torch.randn(6, 4)
    assert torch.allclose(encoder(clip, unet), encoder(clip.repeat(6, 1, 1), unet), atol=1e-6)


@pytest.mark.parametrize("clip, unet", [((1, 3, 3), (1, 4)), ((1, 2, 2), (1, 4)), ((1, 2, 3), (1, 5))])
def test_other_widths_are_refused(clip: tuple[int, ...], unet: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit this encoder"):
        ConceptEncoder(2, 3, 4, 5)(torch.zeros(clip), torch.zeros(unet))


def test_a_concepts_word_is_the_domain_word_plus_the_scaled_offset() -> None:
    unet = TinyUNet()
    encoder = tiny_domain(unet).encoder
    clip, word, features = torch.randn(1, 2, 5), torch.randn(6), torch.randn(3, unet.feature_width)
    predictor = E4TPredictor(encoder, clip, word, 0.25)
    expected = word + 0.25 * encoder(clip, features)
    assert torch.equal(predictor.word(features), expected)
    assert not torch.allclose(expected[0], expected[1])


def two_encoders(kind: type[OffsetEncoder]) -> tuple[OffsetEncoder, OffsetEncoder]:
    """A domain's and one that was tuned a little away from it."""
    untuned = kind(3, 5, 7, 4, generator=torch.Generator().manual_seed(1))  # type: ignore[call-arg]
    tuned = kind(3, 5, 7, 4, generator=torch.Generator().manual_seed(1))  # type: ignore[call-arg]
    with torch.no_grad():
        for index, parameter in enumerate(tuned.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter += 0.1 * noise
    return untuned, tuned


@pytest.mark.parametrize("kind", [ConceptEncoder, PatchTokenEncoder])
def test_a_difference_gives_the_tuned_words_back_for_its_photo(kind: type[OffsetEncoder]) -> None:
    untuned, tuned = two_encoders(kind)
    photo, seen = torch.randn(1, 3, 5), torch.randn(6, 7)
    before = {key: value.clone() for key, value in untuned.state_dict().items()}
    difference = tuned.difference_from(untuned, photo)
    assert {name: tuple(value.shape) for name, value in difference.items()} == untuned.difference_shapes()
    again = untuned.plus(difference)
    # Rounding of float32, because parts of the sum are added in another order.
    torch.testing.assert_close(again(photo, seen), tuned(photo, seen), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in untuned.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_for_one_photo_the_papers_encoder_differs_by_few_numbers() -> None:
    encoder = ConceptEncoder(16, 1280, 10880, 768, device="meta")
    assert encoder.difference_shapes() == {"final.features": (768, 10880), "final.bias": (768,)}


def test_a_difference_of_another_encoder_is_refused() -> None:
    untuned, tuned = two_encoders(ConceptEncoder)
    difference = tuned.difference_from(untuned, torch.randn(1, 3, 5))
    with pytest.raises(ValueError, match="does not fit this domain"):
        untuned.plus(difference | {"final.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match="does not fit this domain"):
        untuned.plus({})
