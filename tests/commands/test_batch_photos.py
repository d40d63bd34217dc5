"""Photos as cameras, phones and printers write them become upright PNGs of 8 bits; what is none costs its own jobs only."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.batch.faults import Rejected
from commands.batch.photos import LONGEST, PhotosError, as_sent, file_name, find_photos

ORIENTATION = 0x0112


def sent(path: Path) -> Image.Image:
    picture = Image.open(io.BytesIO(as_sent(path)))
    assert picture.format == "PNG"
    picture.load()
    return picture


def two_halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), (255, 0, 0))
    picture.paste((0, 0, 255), (width // 2, 0, width, height))
    return picture


def test_a_photo_turned_by_its_camera_is_sent_upright_and_without_its_data(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees, clockwise
    exif[0x010E] = "taken at home"
    two_halves().save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture = sent(tmp_path / "a.jpg")
    assert picture.size == (20, 40)
    top, bottom = picture.getpixel((10, 5)), picture.getpixel((10, 35))
    assert top[0] > 200
    assert top[2] < 60
    assert bottom[2] > 200
    assert bottom[0] < 60
    assert b"at home" not in as_sent(tmp_path / "a.jpg")


def test_a_printers_picture_is_sent_in_its_colors(tmp_path: Path) -> None:
    two_halves().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    picture = sent(tmp_path / "a.jpg")
    assert picture.mode == "RGB"
    assert picture.getpixel((5, 10))[0] > 200
    assert picture.getpixel((5, 10))[2] < 60


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_become_eight_and_are_not_cut_off(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    found = np.asarray(sent(tmp_path / f"a.{suffix}"))[..., 0].ravel()
    assert np.abs(found.astype(int) - np.arange(256)).max() <= 1


def test_numbers_from_0_to_1_are_a_picture_too(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "a.tif")
    found = np.asarray(sent(tmp_path / "a.tif"))[..., 0].ravel()
    assert np.abs(found.astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_what_moves_the_first_picture_is_sent(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert Image.open(tmp_path / f"a.{suffix}").n_frames == 3
    assert sent(tmp_path / f"a.{suffix}").convert("RGB").getpixel((8, 8))[:2] > (200, 0)


def test_transparency_stays_because_it_is_a_mask(tmp_path: Path) -> None:
    cut_out = two_halves().convert("RGBA")
    cut_out.putalpha(Image.linear_gradient("L").resize(cut_out.size))
    cut_out.save(tmp_path / "a.png")
    assert sent(tmp_path / "a.png").getchannel("A").tobytes() == cut_out.getchannel("A").tobytes()
    Image.new("P", (8, 8)).save(tmp_path / "b.gif", transparency=0)
    assert sent(tmp_path / "b.gif").getchannel("A").getextrema() == (0, 0)


def test_a_huge_photo_is_sent_smaller(tmp_path: Path) -> None:
    two_halves(12_000, 9_000).save(tmp_path / "a.jpg")
    picture = sent(tmp_path / "a.jpg")
    assert picture.size == (LONGEST, LONGEST * 3 // 4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no picture"),
        (b"<html>not found</html>", "is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture"),
        (None, "is broken"),
    ],
)
def test_what_is_no_photo_is_refused_by_name(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "anna.png"
    if content is None:
        Image.effect_noise((64, 64), 60).save(file)
        content = file.read_bytes()[:-600]
    file.write_bytes(content)
    with pytest.raises(Rejected, match="anna.png") as error:
        as_sent(file)
    assert said in str(error.value)


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    with pytest.raises(Rejected, match="too many pixels"):
        as_sent(tmp_path / "a.png")


def test_a_folder_gives_each_content_once_by_name_and_says_what_it_passes_over(tmp_path: Path) -> None:
    for name, width in (("b.png", 8), ("Anna Maria.JPG", 9), ("copy of b.png", 8)):
        Image.new("RGB", (width, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "phone.heic").write_bytes(b"cannot be read, and is said later")
    (tmp_path / "folder.png").mkdir()
    photos, others = find_photos(tmp_path)
    assert [photo.path.name for photo in photos] == ["Anna Maria.JPG", "b.png", "phone.heic"]
    assert [photo.concept for photo in photos] == ["Anna-Maria", "b", "phone"]
    assert others == ["copy of b.png (the same as b.png)", "notes.txt"]


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match="holds no picture"):
        find_photos(tmp_path)
    with pytest.raises(PhotosError, match="was not found"):
        find_photos(tmp_path / "none")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(PhotosError, match="is a file, not a folder"):
        find_photos(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Anna Maria (2)", "Anna-Maria-2"),
        ("../../etc/passwd", "etc-passwd"),
        ("con", "photo-con"),
        ("山田 太郎", "山田-太郎"),
        ("***", "photo"),
        ("x" * 500, "x" * 60),
    ],
)
def test_any_text_becomes_a_name_for_a_file(text: str, name: str, tmp_path: Path) -> None:
    assert file_name(text) == name
    (tmp_path / name).touch()
    assert os.listdir(tmp_path) == [name]
