"""Which square of a photo is learned: by a mask, a box, what the domain finds, or the middle; and what is said of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from e4t_pack.nodes.host.learning.boxes import boxes_of
from e4t_pack.nodes.host.learning.crops import AUTO, BOX, CROPS, MIDDLE, SUBJECT, CropChoice, choose
from e4t_pack.nodes.host.learning.numbered import CHOSEN, overview
from e4t_pack.nodes.host.learning.photos import PhotoError, cut, read_photos
from world import photo

from e4t_core.crop import Square, middle_square, square_around
from e4t_core.methods.e4t.subject_finding import coarse_size
from e4t_core.subject_search import CENTERED, Subject

SIZE = (200, 300)
LEFT, RIGHT = Subject(Square(40, 20, 100), 1.0), Subject(Square(60, 170, 120), 2.0)


def whole(count: int = 1, mask=None, size=SIZE):
    images = torch.rand((count, *size, 3), generator=torch.Generator().manual_seed(3))
    return read_photos(images, mask, 64)


def made(photos, follows=SUBJECT, which=0, boxes=None, find=lambda _: (LEFT, RIGHT), size=64, square=""):
    return choose(photos, CropChoice(follows, which, boxes, square), 0.25, size, "face", find)


def test_the_largest_subject_is_learned_and_others_by_number():
    several = made(whole())
    assert several.squares == (RIGHT.square,)
    assert several.notes == (
        "2 subjects were found; number 2 from the left is learned, the largest. Set 'which' to learn another.",
    )
    other = made(whole(), which=1)
    assert other.squares == (LEFT.square,) and other.notes == (
        "2 subjects were found; number 1 from the left is learned.",
    )
    alone = made(whole(), find=lambda _: (LEFT,))
    assert alone.squares == (LEFT.square,) and not alone.notes and not alone.candidates


@pytest.mark.parametrize(
    ("there", "words"), [((), "no subject was found"), ((LEFT,), "1 subject was found"), ((LEFT, RIGHT), "0 to 2")]
)
def test_a_number_that_nobody_has_is_an_error(there, words):
    with pytest.raises(PhotoError, match=words) as error:
        made(whole(2), which=3, find=lambda _: there)
    assert "photo 1" in str(error.value)


def test_where_nothing_is_found_the_middle_is_learned_and_it_is_said():
    nobody = made(whole(), find=lambda _: ())
    assert nobody.squares == (middle_square(SIZE),)
    assert nobody.notes == ("No 'face' was found, so the middle of the photo is learned: paint a mask to choose.",)


def test_a_portrait_is_learned_as_it_came_in():
    square = (200, 200)
    near, off = Subject(Square(10, 8, 185), 1.0), Subject(Square(0, 0, 140), 1.0)
    assert near.square.overlap(middle_square(square)) > CENTERED and near.square != middle_square(square)
    assert made(whole(size=square), find=lambda _: (near,)).squares == (middle_square(square),)
    assert made(whole(size=square), find=lambda _: (off,)).squares == (off.square,)


def test_in_other_photos_the_square_that_was_found_is_learned():
    near = Subject(Square(10, 60, 185), 1.0)
    assert near.square.overlap(middle_square(SIZE)) > CENTERED
    assert made(whole(), find=lambda _: (near,)).squares == (near.square,)


def test_a_square_portrait_is_learned_bit_for_bit_as_without_a_search():
    photos = whole(size=(128, 128))
    squares = made(photos, find=lambda _: (Subject(Square(6, 4, 120), 1.0),)).squares
    assert torch.equal(cut(photos, squares, 128).images[0], photos.photos[0].picture.movedim(0, -1))


def test_a_small_subject_is_said_to_be_small():
    small = made(whole(), find=lambda _: (LEFT,), size=512)
    assert "its crop is only 100 pixels wide, and 512 are learned" in small.notes[0]


def test_a_mask_decides_before_boxes_and_subjects():
    mask = torch.zeros((1, *SIZE))
    mask[:, 20:60, 100:140] = 1
    for follows in CROPS:
        got = made(whole(mask=mask), follows, boxes={"x": 0, "y": 0, "width": 50, "height": 50})
        assert got.squares == (square_around(SIZE, (20, 100, 60, 140), 0.25),) and not got.candidates


def test_of_a_cut_out_what_can_be_seen_is_learned_without_a_search():
    alpha = torch.zeros((*SIZE, 1))
    alpha[20:60, 100:140] = 1
    images = torch.cat([torch.rand((1, *SIZE, 3)), alpha[None]], dim=-1)
    got = made(read_photos(images, None, 64), find=lambda _: pytest.fail("searched"))
    assert got.squares == (square_around(SIZE, (20, 100, 60, 140), 0.25),)


def test_the_middle_is_taken_where_it_is_asked_for_or_nothing_can_be_found():
    assert made(whole(), MIDDLE, find=lambda _: pytest.fail("searched")).squares == (middle_square(SIZE),)
    assert made(whole(), SUBJECT, find=None).squares == (middle_square(SIZE),)


def test_by_itself_a_square_photo_is_left_alone_and_in_any_other_the_subject_is_looked_for():
    searched = pytest.fail
    square, nearly = whole(size=(200, 200)), whole(size=(200, 219))
    assert made(square, AUTO, find=lambda _: searched("a square photo")).squares == (middle_square((200, 200)),)
    assert made(nearly, AUTO, find=lambda _: searched("one that is about square")).squares == (
        middle_square((200, 219)),
    )
    assert made(whole(), AUTO).squares == (RIGHT.square,)
    # Who asks for the second from the left wants it looked for.
    assert made(square, AUTO, which=1, find=lambda _: (Subject(Square(9, 9, 90), 1.0),)).squares == (Square(9, 9, 90),)


def test_in_a_domain_of_styles_nothing_is_looked_for_unless_it_is_asked_for():
    def chosen(follows, which=0, find=lambda _: (LEFT, RIGHT)):
        return choose(whole(), CropChoice(follows, which), 0.25, 64, "art", find, looks_by_itself=False).squares

    assert chosen(AUTO, find=lambda _: pytest.fail("searched")) == (middle_square(SIZE),)
    assert chosen(SUBJECT) == (RIGHT.square,) and chosen(AUTO, which=1) == (LEFT.square,)


def test_where_memory_is_too_little_for_the_search_the_middle_is_learned_and_it_is_said():
    cramped = made(whole(2), AUTO, find=lambda _: None)
    assert cramped.squares == (middle_square(SIZE),) * 2
    (told,) = cramped.notes
    assert told.startswith(
        "There is too little memory to look for the subject, so the middle of the photo is learned: draw"
    )


def test_boxes_take_the_place_of_the_search_with_margin_or_exactly():
    box = {"x": 100, "y": 50, "width": 40, "height": 60, "label": "face", "score": 0.9}
    around = made(whole(), boxes=[box], find=lambda _: pytest.fail("searched"))
    assert around.squares == (square_around(SIZE, (50, 100, 110, 140), 0.25),)
    exact = made(whole(), BOX, boxes={"x": 100, "y": 50, "width": 60, "height": 60})
    assert exact.squares == (Square(50, 100, 60),)
    nearly_all = made(whole(size=(128, 128)), BOX, boxes={"x": 1, "y": 1, "width": 126, "height": 126})
    assert nearly_all.squares == (Square(1, 1, 126),), "who says a box means that box"
    with pytest.raises(PhotoError, match="none is wired in"):
        made(whole(), BOX)


def test_boxes_are_numbered_from_the_left_and_belong_to_their_photo():
    one, two = {"x": 200, "y": 0, "width": 30, "height": 30}, {"x": 10, "y": 20, "width": 20, "height": 20}
    sizes = [SIZE, SIZE]
    assert boxes_of([one, two], [SIZE]) == [[(20, 10, 40, 30), (0, 200, 30, 230)]]
    assert boxes_of([[one], [two]], sizes) == [[(0, 200, 30, 230)], [(20, 10, 40, 30)]]
    assert boxes_of(one, sizes) == boxes_of([one], sizes) == boxes_of([[one]], sizes) == [[(0, 200, 30, 230)]] * 2
    assert boxes_of(None, sizes) is None and boxes_of([], [SIZE]) == [[]]
    beyond = boxes_of({"x": -5.5, "y": 190.2, "width": 20, "height": 50}, [SIZE])
    assert beyond == [[(190, 0, 200, 15)]]


@pytest.mark.parametrize(
    ("wired", "words"),
    [
        ("face", "are a str"),
        ([[{"x": 0, "y": 0, "width": 5, "height": 5}], {"x": 0, "y": 0, "width": 5, "height": 5}], "mixed"),
        ([[], [], []], "3 photos, but 2 photos"),
        ({"x": 0, "y": 0, "width": 5}, "x, y, width and height"),
        ({"x": 0, "y": 0, "width": math.nan, "height": 5}, "cannot be used"),
        ({"x": "1", "y": 0, "width": 5, "height": 5}, "cannot be used"),
        ([3], "cannot be used"),
        ({"x": 300, "y": 0, "width": 5, "height": 5}, "no pixel of photo 1"),
        ({"x": 0, "y": 0, "width": 0, "height": 5}, "no pixel"),
    ],
)
def test_boxes_that_cannot_be_used_are_named(wired, words):
    with pytest.raises(PhotoError, match=words):
        boxes_of(wired, [SIZE, SIZE])


def test_what_is_drawn_decides_before_boxes_and_subjects_exactly_as_it_is():
    for follows in CROPS:
        for boxes in (None, {"x": 0, "y": 0, "width": 50, "height": 50}):
            got = made(whole(), follows, 2, boxes, lambda _: pytest.fail("searched"), square="52, 3, 190")
            assert got.squares == (Square(3, 52, 190),) and not got.candidates and not got.notes
    assert made(whole(), square=" ").squares == (RIGHT.square,), "nothing was drawn"
    assert "only 60 pixels wide" in made(whole(), square="0,0,60", size=256).notes[0]
    assert made(whole(2), square="100;0;200").squares == (Square(0, 100, 200),) * 2


def test_a_mask_decides_before_what_is_drawn_and_it_is_said():
    mask = torch.zeros((1, *SIZE))
    mask[:, 20:60, 100:140] = 1
    got = made(whole(mask=mask), square="0, 0, 100")
    assert got.squares == (square_around(SIZE, (20, 100, 60, 140), 0.25),)
    assert got.notes == ("The mask decides the crop, so the square that was drawn is not used.",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("left", "'left' cannot be read"),
        ("1, 2", "left, top and side"),
        ("-1, 2, 30", "cannot be read"),
        ("1.5, 2, 30", "cannot be read"),
        ("1, 2, 30, 40", "cannot be read"),
        ("1, 2, 1e9", "cannot be read"),
        ("0, 0, 7", "7 pixels wide: 8 are the least"),
        ("101, 0, 200", "left 101, top 0, side 200.*photo 1 of the IMAGE, which is 300×200"),
        ("0, 1, 200", "draw it again"),
        ("999999, 999999, 999999", "does not lie in"),
    ],
)
def test_a_square_that_cannot_be_used_is_named(text, words):
    with pytest.raises(PhotoError, match=words):
        made(whole(2), square=text)


def test_boxes_of_stock_nodes_are_taken():
    """What ComfyUI's own nodes hand over: one box, and a list for each photo."""
    from comfy_extras.nodes_bounding_boxes import CreateBoundingBoxes
    from comfy_extras.nodes_images import BoundingBox

    (one,) = BoundingBox.execute(100, 50, 40, 60).args
    detected = [[{"x": 100.0, "y": 50.0, "width": 40.0, "height": 60.0, "label": "face", "score": 0.98}]]
    drawn = CreateBoundingBoxes.execute(SIZE[1], SIZE[0], bboxes=detected).args[1]
    assert drawn, "the stock node does not take what its detectors give"
    for boxes in (one, detected, drawn):
        got = made(whole(), boxes=boxes, find=lambda _: pytest.fail("searched"))
        assert got.squares == (square_around(SIZE, (50, 100, 110, 140), 0.25),)


def test_the_overview_shows_the_numbers_where_there_is_a_choice():
    photos = whole(2)
    several = made(photos, find=lambda one: (LEFT, RIGHT) if one is photos.photos[1] else (LEFT,))
    sheet = overview(photos, several)
    assert sheet is not None and sheet.width == 256 and abs(sheet.height - 256 * SIZE[0] / SIZE[1]) <= 1
    scale = 256 / SIZE[1]
    edge = (round(RIGHT.square.left * scale) + 40, round(RIGHT.square.top * scale) + 1)
    assert sheet.getpixel(edge) == CHOSEN
    assert "in photo 2" in several.notes[0]
    assert overview(photos, made(photos, find=lambda _: (LEFT,))) is None


@pytest.mark.parametrize(("learned", "looked"), [(64, 64), (128, 128), (512, 256), (768, 384)])
def test_squares_are_looked_at_in_half_the_size(learned, looked):
    assert coarse_size(learned) == looked


# On the node ---------------------------------------------------------------------------------------------------------


def test_where_the_domain_finds_nothing_the_same_concept_is_learned_as_from_the_middle(run):
    """With the real search, by a random domain, which knows no subject."""
    searched = run(crop=SUBJECT)[2]
    assert run(crop=MIDDLE)[2].fingerprint == searched.fingerprint and run.tunings == 1


def test_the_photo_is_searched_once(run, monkeypatch):
    from e4t_pack.nodes.host.learning import learn

    finders = []
    original = learn.Finder.__call__
    monkeypatch.setattr(learn.Finder, "__call__", lambda self, one: finders.append(one) or original(self, one))
    run(crop=SUBJECT, seed=1)
    run(crop=SUBJECT, seed=2)
    assert len(finders) == 1 and run.tunings == 2


@pytest.fixture
def out_of_memory(monkeypatch):
    """How many squares may be looked at together: more than that do not fit. Gives how many were tried."""
    from e4t_pack.e4t_core.methods.e4t.redrawing import Redrawing

    tried = []

    def place(most):
        original = Redrawing.__call__

        def looked(self, squares, care):
            if tried[-1:] != [self.at_once]:
                tried.append(self.at_once)
            if self.at_once > most:
                raise torch.OutOfMemoryError("out of memory")
            return original(self, squares, care)

        monkeypatch.setattr(Redrawing, "__call__", looked)
        return tried

    return place


def test_out_of_memory_squares_are_looked_at_one_by_one(run, out_of_memory):
    tried = out_of_memory(1)
    run(crop=SUBJECT, seed=11)
    assert tried == [16, 1] and run.tunings == 1


@pytest.fixture
def of_subjects(domain):
    """The domain, whose preset learns subjects only; or, with ``use_mask`` off, whole pictures."""

    def made(use_mask=True):
        preset = dataclasses.replace(domain.info.preset, use_mask=use_mask, find_subject=True)
        return dataclasses.replace(domain, info=dataclasses.replace(domain.info, preset=preset))

    return made


def test_out_of_memory_altogether_the_middle_is_learned_and_the_base_is_unharmed(
    run, of_subjects, out_of_memory, untouched
):
    tried = out_of_memory(0)
    picture, domain = photo(height=80, width=120), of_subjects()
    learned = run(image=picture, crop=AUTO, seed=12, of=domain)[2]
    assert tried == [16, 1] and run.tunings == 1
    assert run(image=picture, crop=MIDDLE, seed=12, of=domain)[2].fingerprint == learned.fingerprint
    assert run.tunings == 1
    untouched()


def test_a_domain_whose_preset_learns_whole_pictures_looks_for_nothing_by_itself(run, of_subjects, monkeypatch):
    from e4t_pack.nodes.host.learning import learn

    looked = []
    monkeypatch.setattr(learn.Finder, "__call__", lambda self, one: looked.append(one) or [])
    picture = photo(height=80, width=120)
    run(image=picture, crop=AUTO, of=of_subjects(use_mask=False))
    assert not looked
    run(image=picture, crop=AUTO, of=of_subjects())
    assert len(looked) == 1


def test_a_box_is_learned_as_the_same_picture_cut_by_hand(run):
    picture = photo(height=80, width=120)
    run(image=picture, crop=BOX, boxes={"x": 30, "y": 10, "width": 64, "height": 64})
    run(image=picture[:, 10:74, 30:94], crop=MIDDLE)
    assert run.tunings == 1


def test_a_drawn_square_is_learned_as_the_same_picture_cut_by_hand(run):
    picture = photo(height=80, width=120)
    run(image=picture, crop=SUBJECT, square="30, 10, 64")
    run(image=picture[:, 10:74, 30:94], crop=MIDDLE)
    assert run.tunings == 1


def test_cancelling_the_search_says_so_and_learns_nothing(run, untouched):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(crop=SUBJECT)
    assert run.tunings == 0
    untouched()
