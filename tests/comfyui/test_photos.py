"""Which part of a picture is learned: by its mask, by its transparency, and by a mask that came the other way round."""

from __future__ import annotations

import pytest
import torch
from e4t_pack.nodes.host.learning import masks as meaning
from e4t_pack.nodes.host.learning.masks import AUTO, LEARN_HERE, LEAVE_OUT, marks_surroundings
from e4t_pack.nodes.host.learning.photos import NEUTRAL, PhotoError, cut, read_photos, usual_square
from PIL import Image
from world import photo

HEIGHT, WIDTH = 120, 160
RGB = torch.rand((3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(5))
Y, X = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")


def ellipse(x: float, y: float, width: float, height: float, soft: float = 0.0) -> torch.Tensor:
    """Center, width and height as shares of the photo; ``soft``: how far its rim fades, as a share of its size."""
    radius = torch.hypot((X / WIDTH - x) / (width / 2), (Y / HEIGHT - y) / (height / 2))
    return ((1 + soft / 2 - radius) / soft).clamp(0, 1) if soft else (radius <= 1).float()


def box(left: float, top: float, right: float, bottom: float) -> torch.Tensor:
    x, y = X / WIDTH, Y / HEIGHT
    return ((x >= left) & (x < right) & (y >= top) & (y < bottom)).float()


def bust(x: float = 0.5, shoulders: float = 0.7) -> torch.Tensor:
    """A head, and shoulders that the lower side cuts off."""
    return torch.maximum(ellipse(x, 0.4, 0.36, 0.6), ellipse(x, 1.05, shoulders, 0.7))


def trimmed() -> torch.Tensor:
    """A subject whose picture ends where it does: it touches all four sides."""
    return ellipse(0.5, 0.5, 1.0, 1.0)


SUBJECTS = {
    "in the middle": ellipse(0.5, 0.5, 0.6, 0.8),
    "off center": ellipse(0.3, 0.6, 0.5, 0.7),
    "in a corner, not touching": ellipse(0.3, 0.33, 0.5, 0.58),
    "a bust that the lower side cuts off": bust(),
    "a wide bust": bust(shoulders=1.1),
    "a bust off center": bust(0.42),
    "from the left": torch.maximum(ellipse(0.5, 0.5, 0.4, 0.5), box(0, 0.4, 0.5, 0.6)),
    "trimmed to the subject": trimmed(),
    "with a soft rim": ellipse(0.5, 0.5, 0.6, 0.8, soft=0.3),
}
NORMAL = SUBJECTS | {
    "all of the photo": torch.ones((HEIGHT, WIDTH)),
    "a close-up that fills the photo": ellipse(0.5, 0.5, 1.3, 1.3),
    "a close-up without the clothes below": box(0, 0, 1, 0.7),
    "a close-up without a high collar": box(0, 0, 1, 0.55),
    "a close-up without a scarf up to the eyes": box(0, 0, 1, 0.45),
    "a face in the upper third": box(0, 0, 1, 0.33),
    "a close-up without sunglasses": 1 - torch.maximum(ellipse(0.35, 0.45, 0.2, 0.2), ellipse(0.65, 0.45, 0.2, 0.2)),
    "a painting without a logo in its middle": 1 - box(0.35, 0.35, 0.65, 0.65),
    "a face from the upper to the lower side": ellipse(0.5, 0.5, 0.5, 1.4),
    "a face at the left side": ellipse(0.05, 0.5, 0.6, 0.9),
    "all but a hat": 1 - box(0.2, 0, 0.8, 0.3),
    "the left half": box(0, 0, 0.5, 1),
    "one dot": ellipse(0.5, 0.5, 0.02, 0.02),
    "a faint brush": 0.2 * ellipse(0.5, 0.6, 0.7, 1.0, soft=0.5),
    "a vignette": ellipse(0.5, 0.5, 1.0, 1.0, soft=1.0),
    "hair around a face, to the upper side": box(0.1, 0, 0.9, 0.9) - ellipse(0.5, 0.55, 0.5, 0.6),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_mask_of_a_cut_out_is_recognized(name):
    assert marks_surroundings(1 - SUBJECTS[name], RGB)


@pytest.mark.parametrize("name", NORMAL)
def test_a_normal_mask_is_never_turned_round(name):
    assert not marks_surroundings(NORMAL[name], RGB)


def test_a_painted_frame_counts_by_its_place_not_by_the_brush():
    frame = 1 - box(0.2, 0.2, 0.8, 0.8)
    assert marks_surroundings(0.4 * frame, RGB)
    assert not marks_surroundings(1 - frame, RGB)


@pytest.mark.parametrize(
    "subject",
    [ellipse(0.85, 0.8, 0.25, 0.3), bust(0.2, 0.6), ellipse(0.2, 0.2, 0.1, 0.1), box(0, 0.3, 0.6, 1)],
    ids=["small, in a corner", "a bust at one side", "tiny", "over two sides"],
)
def test_one_color_under_the_mask_tells_a_cut_out_of_any_shape(subject):
    hidden = torch.where(subject > 0, RGB, torch.zeros(()))
    assert marks_surroundings(1 - subject, hidden)
    assert not marks_surroundings(subject, hidden)
    assert not marks_surroundings(1 - subject, torch.zeros_like(RGB)), "a photo of one color tells nothing"


def image_of(*pictures: torch.Tensor) -> torch.Tensor:
    return torch.stack(pictures).movedim(1, -1)


def prepared(image, mask=None, means=AUTO):
    read = read_photos(image, mask, 64, means)
    return cut(read, [usual_square(one, 0.25) for one in read.photos], 64)


def test_alpha_is_the_mask_and_hidden_colors_are_not_learned():
    alpha = SUBJECTS["off center"]
    pictures = [torch.cat([torch.where(alpha > 0, RGB, hidden), alpha[None]]) for hidden in (RGB * 0 + 1, 1 - RGB)]
    white, wild = (prepared(image_of(picture)) for picture in pictures)
    assert torch.equal(white.images, wild.images), "what is under transparent pixels was learned"
    assert white.masks is not None and torch.equal(white.masks, wild.masks)
    assert "only what can be seen" in white.notes[0]
    outside = white.masks[0, 0] == 0
    assert outside.any() and (white.images[0][outside] - NEUTRAL).abs().median() < 0.01
    by_hand = prepared(image_of(RGB), alpha[None])
    assert torch.equal(by_hand.masks, white.masks), "the crop and the mask are not those of alpha"


def test_a_cut_out_from_load_image_is_learned_like_the_same_picture_with_alpha():
    alpha = SUBJECTS["with a soft rim"]
    with_alpha = prepared(image_of(torch.cat([RGB, alpha[None]])))
    from_load_image = prepared(image_of(RGB), 1 - alpha[None])
    assert torch.allclose(with_alpha.images, from_load_image.images, atol=1e-6)
    assert torch.allclose(with_alpha.masks, from_load_image.masks, atol=1e-6)
    assert "what it spares is learned" in from_load_image.notes[0] and LEARN_HERE in from_load_image.notes[0]


def test_an_opaque_picture_and_an_evenly_transparent_one_have_no_mask():
    plain = prepared(image_of(RGB))
    for alpha in (1.0, 0.999, 0.5):
        made = prepared(image_of(torch.cat([RGB, torch.full((1, HEIGHT, WIDTH), alpha)])))
        assert torch.equal(made.images, plain.images) and made.masks is None and not made.notes


def test_a_wired_mask_comes_before_alpha_and_spares_what_is_transparent():
    alpha, mask = box(0.1, 0.1, 0.7, 0.9), box(0.3, 0.2, 0.9, 0.8)
    made = prepared(image_of(torch.cat([RGB, alpha[None]])), mask[None])
    expected = prepared(image_of(RGB), (alpha * mask)[None])
    assert torch.equal(made.masks, expected.masks)
    assert not made.notes
    zero = prepared(image_of(torch.cat([RGB, alpha[None]])), torch.zeros((1, 64, 64)))
    assert torch.equal(zero.masks, prepared(image_of(torch.cat([RGB, alpha[None]]))).masks)


def test_a_mask_of_nothing_but_transparent_pixels_is_turned_round_whatever_its_shape():
    alpha = box(0, 0.3, 0.6, 1)
    picture = image_of(torch.cat([RGB, alpha[None]]))
    made = prepared(picture, 1 - alpha[None])
    assert torch.equal(made.masks, prepared(picture).masks) and "what it spares" in made.notes[0]
    with pytest.raises(PhotoError, match="leaves nothing to learn from in the IMAGE"):
        prepared(picture, 1 - alpha[None], LEARN_HERE)


def test_the_brush_may_be_as_faint_as_it_likes():
    strong, faint = (prepared(image_of(RGB), share * SUBJECTS["with a soft rim"][None]) for share in (1.0, 0.001))
    assert torch.allclose(strong.masks, faint.masks, atol=1e-5) and torch.equal(strong.images, faint.images)


def test_who_means_a_mask_as_it_is_says_so():
    frame = 1 - SUBJECTS["in the middle"][None]
    made = prepared(image_of(RGB), frame, LEARN_HERE)
    assert not made.notes and made.masks[0, 0, 0].min() > 0.99
    left_out = prepared(image_of(RGB), SUBJECTS["off center"][None], LEAVE_OUT)
    assert not left_out.notes and left_out.masks.min() == 0 and left_out.masks[0, 0, 0].min() > 0.99
    with pytest.raises(PhotoError, match="leaves nothing"):
        prepared(image_of(RGB), torch.ones((1, HEIGHT, WIDTH)), LEAVE_OUT)


def test_an_invisible_photo_is_named():
    seen, hidden = (torch.cat([RGB, torch.full((1, HEIGHT, WIDTH), alpha)]) for alpha in (1.0, 0.0))
    with pytest.raises(PhotoError, match="All of photo 2 of the IMAGE is transparent"):
        prepared(image_of(seen, hidden))


def test_a_photo_that_shows_nothing_is_told_and_a_dark_one_is_not():
    flat, grain = torch.full((3, HEIGHT, WIDTH), 0.4), 0.05 * (RGB - 0.5)
    gradient = (X / WIDTH).expand(3, -1, -1)
    made = prepared(image_of(flat, flat + grain, gradient, RGB, bust() * torch.full((3, 1, 1), 0.1)))
    assert made.notes[0].startswith("The photo shows one color or an even gradient (photos 1, 2, 3)")


def test_of_several_photos_each_has_its_own_mask_and_the_note_says_which():
    masks = torch.stack([SUBJECTS["in the middle"], 1 - SUBJECTS["a wide bust"], torch.zeros((HEIGHT, WIDTH))])
    made = prepared(image_of(RGB, RGB, RGB), masks)
    assert made.notes[0].startswith("The mask marks what is around") and "(photo 2)" in made.notes[0]
    assert torch.equal(made.masks[2], torch.ones((1, 64, 64)))
    alone = prepared(image_of(RGB), masks[1:2])
    assert torch.equal(made.masks[1], alone.masks[0]) and torch.equal(made.images[1], alone.images[0])


@pytest.mark.parametrize("means", meaning.MASK_MEANINGS)
def test_a_mask_with_nothing_painted_is_no_mask_and_nothing_is_said(means):
    made = prepared(image_of(RGB), torch.zeros((1, 64, 64)), means)
    assert made.masks is None and not made.notes


@pytest.mark.parametrize("hidden", ["black", "the background"])
def test_a_cut_out_file_through_load_image_is_learned_the_right_way_round(tmp_path, monkeypatch, hidden):
    import folder_paths

    import nodes

    alpha = bust(0.2, 0.6) if hidden == "black" else SUBJECTS["a wide bust"]
    colors = RGB * alpha if hidden == "black" else RGB
    pixels = (torch.cat([colors, alpha[None]]).movedim(0, -1) * 255).round().byte().numpy()
    Image.fromarray(pixels, "RGBA").save(tmp_path / "cut_out.png")
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    image, mask = nodes.LoadImage().load_image("cut_out.png")
    made = prepared(image, mask)
    expected = prepared(image_of(torch.cat([RGB, alpha[None]])))
    assert torch.equal(made.masks, expected.masks) and torch.allclose(made.images, expected.images, atol=0.02)
    assert "what it spares is learned" in made.notes[0]


# On the node ---------------------------------------------------------------------------------------------------------


def test_unplugging_a_mask_with_nothing_painted_learns_nothing_again(run):
    run(mask=torch.zeros((1, 64, 64)))
    run()
    assert run.tunings == 1
    run(mask=torch.ones((1, 64, 64)))
    assert run.tunings == 2, "a mask over all of the photo is not the same as none: the subject is not looked for"


def test_a_cut_out_wired_as_load_image_gives_it_and_the_same_with_alpha_are_one_concept(run):
    picture, alpha = photo(height=HEIGHT, width=WIDTH), SUBJECTS["in the middle"]
    run(image=picture, mask=1 - alpha[None])
    run(image=torch.cat([picture, alpha[None, ..., None]], dim=-1))
    assert run.tunings == 1
    run(image=picture, mask=1 - alpha[None], mask_means=LEARN_HERE)
    assert run.tunings == 2, "who means the mask as it is gets what it marks"
