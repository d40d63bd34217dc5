"""The mini world's faces are found in photos that are no portraits; where they are, who drew them knows."""

from __future__ import annotations

import torch

from e4t_core.crop import Square, middle_square
from e4t_core.methods.e4t.redrawing import Redrawing
from e4t_core.methods.e4t.word_model import WordModel
from e4t_core.subject_search import search
from miniworld.attributes import Scene
from miniworld.domains import load_backbone, narrow_domain
from miniworld.heldout import concept_photo, held_out
from miniworld.models import load_unet
from miniworld.pretraining import load_base
from miniworld.renderer import Placed, Thing, render, render_picture
from miniworld.training_unet import TrainingUNet


class View:
    """A photo as the networks see squares of it."""

    def __init__(self, photo: torch.Tensor) -> None:
        self.photo, self.vae, self.backbone = photo, load_base().vae, load_backbone()

    def _cut(self, squares):
        parts = [self.photo[None, :, rows, columns] for rows, columns in (square.window() for square in squares)]
        sized = [torch.nn.functional.interpolate(one, size=(128, 128), mode="bicubic", antialias=True) for one in parts]
        return torch.cat(sized).clamp(0, 1)

    def latents(self, squares):
        return self.vae.encode(self._cut(squares))

    def clip_features(self, squares):
        return self.backbone.cls_features(self._cut(squares))


def found_in(photo: torch.Tensor) -> list[Square]:
    unet, domain = TrainingUNet(load_unet()), narrow_domain("faces")
    offsets, weights, info = domain.offsets.fixed(), unet.parameters(), domain.info
    with unet.using({name: offsets.apply(name, weights[name]) for name in domain.offsets.names}):
        words = WordModel.of(unet, load_base().text, domain.encoder, info.word, info.scale, info.templates)
        size = (photo.shape[-2], photo.shape[-1])
        return [subject.square for subject in search(size, 32, Redrawing(words, View(photo)))]


def test_a_face_at_the_side_is_found_where_it_is() -> None:
    person = held_out("face", "validation")[0]
    place = Placed(person, left=232, top=40, side=150)
    (found,) = found_in(render_picture(384, 256, 4, [place]))
    assert found.overlap(Square(40, 232, 150)) > 0.6
    assert middle_square((256, 384)).overlap(Square(40, 232, 150)) < 0.3


def test_all_who_stand_beside_each_other_are_found_from_left_to_right() -> None:
    people = held_out("face", "validation")[2:5]
    places = [
        Placed(person, left, top, side)
        for person, left, top, side in zip(people, (20, 190, 330), (60, 20, 90), (170, 130, 150), strict=True)
    ]
    found = found_in(render_picture(512, 320, 5, places))
    assert len(found) == 3
    for square, place in zip(found, places, strict=True):
        assert square.overlap(Square(int(place.top), int(place.left), int(place.side))) > 0.55


def test_a_portrait_is_all_of_its_photo() -> None:
    assert found_in(concept_photo(held_out("face", "validation")[0])[1]) == [Square(0, 0, 128)]


def test_nobody_is_found_among_things() -> None:
    things = [Thing(30, 40, 90, 120, 2), Thing(200, 10, 60, 60, 6)]
    assert found_in(render_picture(320, 224, 0, [], things)) == []


def test_who_is_alone_in_a_small_square_is_drawn_as_in_a_portrait() -> None:
    person = held_out("face", "validation")[1]
    alone = render_picture(128, 128, 3, [Placed(person, 0, 0, 128, accessory=2)])
    assert torch.equal(alone, render([person], [Scene(background=3, accessory=2)])[0])
