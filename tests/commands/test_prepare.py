"""``prepare``: every data set's own layout, corrupt files, and going on after an interruption."""

import io
import json
import os
from pathlib import Path

import lmdb
import pytest
import webdataset
from layouts import make_folder, noise, picture
from PIL import Image

from commands.prepare import main
from commands.pretrain.data import prepare_shards as module
from commands.pretrain.data.dataset_layouts import LAYOUTS
from commands.pretrain.data.pictures import DataError
from commands.pretrain.data.preparation import Preparation
from commands.pretrain.data.prepare_shards import prepare
from commands.pretrain.data.shard_source import ShardSource

COUNT = 25
BESIDE = {
    "ffhq": ("thumbnails128x128/00000/00000.png", "in-the-wild-images/00000/00001.png"),
    "celeba-hq": ("CelebAMask-HQ-mask-anno/0/00000_hair.png",),
}


def draw_layout(layout: str, folder: Path) -> Path:
    """``COUNT`` good pictures, 60×40, as the data set has them, and beside them what else comes with it."""
    for beside in BESIDE.get(layout, ()):
        (folder / beside).parent.mkdir(parents=True, exist_ok=True)
        (folder / beside).write_bytes(picture(200, 60, 40))
    for number in range(COUNT):
        if layout == "ffhq":
            place, kind = folder / "images1024x1024" / f"{number // 10 * 1000:05}" / f"{number:05}.png", "PNG"
        elif layout == "celeba-hq":
            name = f"{number}.{'jpg' if number % 2 else 'png'}"
            place, kind = folder / "CelebA-HQ-img" / name, "JPEG" if number % 2 else "PNG"
        else:
            place, kind = folder / ("Cubism", "Pop_Art")[number % 2] / f"a-painter_v.-{number}.jpg", "JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number, 60, 40, kind))
    return folder


def draw_lsun(folder: Path, count: int = COUNT) -> Path:
    with lmdb.open(str(folder / "cat"), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for number in range(count):
            kind = "WEBP" if number % 2 else "JPEG"
            transaction.put(f"{number * 7919 % 1000:040x}".encode(), picture(number, 60, 40, kind))
    return folder


def names_of(target: Path) -> list[str]:
    """What webdataset's own reader finds, in file order."""
    shards = sorted(str(path) for path in target.glob("*.tar"))
    found = webdataset.WebDataset(shards, shardshuffle=False)
    return [json.loads(sample["json"])["name"] for sample in found]


@pytest.mark.parametrize("layout", ["ffhq", "celeba-hq", "lsun-cat", "wikiart"])
def test_a_data_set_as_downloaded_becomes_shards(layout: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source = draw_lsun(tmp_path / "raw") if layout == "lsun-cat" else draw_layout(layout, tmp_path / "raw")
    manifest = prepare(source, tmp_path / "shards", Preparation(layout, side=32, per_shard=10))
    assert [shard["samples"] for shard in manifest["shards"]] == [10, 10, 5]
    assert manifest["samples"] == COUNT
    assert (manifest["corrupt"], manifest["shortest_side"], manifest["longest_side"]) == (0, 32, 48)
    assert manifest["licence"]
    names = names_of(tmp_path / "shards")
    assert len(set(names)) == COUNT
    assert names != sorted(names)
    reader = ShardSource(tmp_path / "shards", window=2)
    assert reader.parts == (10, 10, 5)
    reds = sorted(int(reader.read(row, 32).image[0, 5, 5]) for row in range(COUNT))
    assert all(abs(red - number) <= 3 for number, red in enumerate(reds)), "JPEG changes values by a little only"


def test_corrupt_files_are_skipped_counted_and_named(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "raw", 30, corrupt=[4, 21])
    manifest = prepare(source, tmp_path / "shards", Preparation("folder", side=32, per_shard=20))
    assert (manifest["samples"], manifest["corrupt"]) == (28, 2)
    assert {entry["name"] for entry in manifest["corrupt_names"]} == {"00/00004.png", "02/00021.png"}
    assert all("truncated" in entry["reason"] for entry in manifest["corrupt_names"])
    assert not {"00/00004.png", "02/00021.png"} & set(names_of(tmp_path / "shards"))


def test_an_interrupted_run_goes_on_and_makes_no_shard_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, preparation = make_folder(tmp_path / "raw", 30), Preparation("folder", side=32, per_shard=10)
    whole = prepare(source, tmp_path / "whole", preparation, workers=1)
    real, made = module.encode, []

    def interrupted(original: bytes, how: Preparation) -> module.Encoded:
        made.append(original)
        if len(made) == 17:
            raise KeyboardInterrupt
        return real(original, how)

    monkeypatch.setattr(module, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "shards", preparation, workers=1)
    assert not (tmp_path / "shards" / "manifest.json").exists()
    first = tmp_path / "shards" / "folder-000000.tar"
    assert [path.name for path in (tmp_path / "shards").glob("*.tar")] == [first.name]
    before = first.stat().st_mtime_ns
    made.clear()
    monkeypatch.setattr(module, "encode", lambda original, how: made.append(original) or real(original, how))
    resumed = prepare(source, tmp_path / "shards", preparation, workers=1)
    assert first.stat().st_mtime_ns == before
    assert len(made) == 20
    assert resumed == whole
    assert not list((tmp_path / "shards").glob("*.part"))


def test_mended_pictures_are_taken_in_when_that_is_asked_for(tmp_path: Path) -> None:
    make_folder(tmp_path / "raw", 20, corrupt=range(8))
    arguments = ["folder", str(tmp_path / "raw"), str(tmp_path / "shards"), "--per-shard=10", "--seed=3"]
    assert main(arguments) == 1, "two fifths are corrupt"
    make_folder(tmp_path / "raw", 20)
    assert main(arguments) == 1
    assert main([*arguments, "--retry-corrupt"]) == 0
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["samples"] == 20


def test_a_data_set_without_a_whole_picture_says_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path / "raw", 5, corrupt=range(5))
    arguments = ["folder", str(tmp_path / "raw"), str(tmp_path / "shards")]
    assert main(arguments) == 1 and "--retry-corrupt" in caplog.text
    make_folder(tmp_path / "raw", 5)
    assert main([*arguments, "--retry-corrupt"]) == 0


def test_names_with_digits_of_any_sort_are_prepared(tmp_path: Path) -> None:
    make_folder(tmp_path / "raw", 3)
    first = next((tmp_path / "raw").rglob("*.png"))
    first.rename(first.with_name("1²3.png"))
    assert main(["folder", str(tmp_path / "raw"), str(tmp_path / "shards")]) == 0
    assert main(["folder", str(tmp_path / "raw"), str(tmp_path / "other"), "--workers=-1"]) == 1


def test_a_finished_preparation_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, preparation = make_folder(tmp_path / "raw", 12), Preparation("folder", side=32, per_shard=10)
    manifest = prepare(source, tmp_path / "shards", preparation)
    monkeypatch.setattr(module, "encode", None)
    assert prepare(source, tmp_path / "shards", preparation) == manifest


def test_a_shard_that_was_cut_afterwards_is_made_again(tmp_path: Path) -> None:
    source, preparation = make_folder(tmp_path / "raw", 12), Preparation("folder", side=32, per_shard=10)
    manifest = prepare(source, tmp_path / "shards", preparation)
    shard = tmp_path / "shards" / "folder-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    assert prepare(source, tmp_path / "shards", preparation) == manifest
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("change", ["setting", "files"])
def test_going_on_with_something_else_is_refused(change: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "raw", 12)
    prepare(source, tmp_path / "shards", Preparation("folder", side=32))
    if change == "files":
        make_folder(source, 13)
    says = "setting side" if change == "setting" else "files of the data set"
    with pytest.raises(DataError, match=says):
        prepare(source, tmp_path / "shards", Preparation("folder", side=16 if change == "setting" else 32))


def test_files_can_be_stored_as_they_are(tmp_path: Path) -> None:
    data = noise(3, 50)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jpg").write_bytes(data)
    prepare(tmp_path / "raw", tmp_path / "shards", Preparation("folder", side=0))
    (sample,) = webdataset.WebDataset([str(tmp_path / "shards" / "folder-000000.tar")], shardshuffle=False)
    assert sample["jpg"] == data


def test_small_pictures_are_not_enlarged(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "raw", 3)
    assert prepare(source, tmp_path / "shards", Preparation("folder", side=512))["longest_side"] == 40


def test_shards_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source, preparation = make_folder(tmp_path / "raw", 30), Preparation("folder", side=32, per_shard=10)
    one, three = (prepare(source, tmp_path / str(n), preparation, workers=n) for n in (1, 3))
    assert one == three


@pytest.mark.parametrize(
    ("layout", "says"), [("ffhq", "is it FFHQ"), ("wikiart", "is it WikiArt"), ("lsun-cat", "no data.mdb")]
)
def test_another_data_set_than_named_is_noticed(layout: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "raw" / "me.jpg")
    with pytest.raises(DataError, match=says):
        prepare(tmp_path / "raw", tmp_path / "shards", Preparation(layout))


def test_the_command_says_what_is_wrong_in_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["folder", str(tmp_path / "none"), str(tmp_path / "shards")]) == 1
    assert "does not exist" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_database_that_was_cut_is_named(tmp_path: Path) -> None:
    file = draw_lsun(tmp_path, count=200) / "cat" / "data.mdb"
    with file.open("r+b") as opened:
        opened.truncate(20480)
    with pytest.raises(DataError, match=r"data\.mdb (is cut|could not be read)"):
        LAYOUTS["lsun-cat"](tmp_path)


def test_only_pictures_are_opened_and_their_faults_are_the_same_at_every_run(tmp_path: Path) -> None:
    make_folder(tmp_path / "raw", 3)
    drawing = io.BytesIO()
    Image.new("RGB", (8, 8)).save(drawing, "EPS")  # Pillow would start Ghostscript for it
    (tmp_path / "raw" / "drawing.jpg").write_bytes(drawing.getvalue())
    (tmp_path / "raw" / "text.png").write_bytes(b"no picture at all")
    manifests = [prepare(tmp_path / "raw", tmp_path / out, Preparation("folder", side=32)) for out in ("a", "b")]
    assert manifests[0] == manifests[1]
    reasons = {entry["name"]: entry["reason"] for entry in manifests[0]["corrupt_names"]}
    assert reasons == dict.fromkeys(("drawing.jpg", "text.png"), "it is no JPEG, PNG, WEBP, BMP picture")
    assert manifests[0]["samples"] == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_among_the_pictures_is_skipped(tmp_path: Path) -> None:
    make_folder(tmp_path / "raw", 3)
    os.mkfifo(tmp_path / "raw" / "pipe.jpg")
    manifest = prepare(tmp_path / "raw", tmp_path / "shards", Preparation("folder", side=32))
    assert manifest["samples"] == 3
    assert manifest["corrupt_names"] == [{"name": "pipe.jpg", "reason": "it is no ordinary file"}]
    os.mkfifo(tmp_path / "shards" / "pipe.tar")
    (tmp_path / "shards" / "manifest.json").unlink()
    assert ShardSource(tmp_path / "shards", window=2).parts == (3,)


def test_a_phones_jpeg_is_stored_as_jpeg(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 40), "red")
    (tmp_path / "raw").mkdir()
    picture.save(tmp_path / "raw" / "a.jpg", "MPO", save_all=True, append_images=[picture])
    prepare(tmp_path / "raw", tmp_path / "shards", Preparation("folder", side=0))
    (sample,) = webdataset.WebDataset([str(tmp_path / "shards" / "folder-000000.tar")], shardshuffle=False)
    assert Image.open(io.BytesIO(sample["jpg"])).format == "MPO"


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_name_that_no_folder_can_have_is_told(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([layout, str(tmp_path / ("a" * 300)), str(tmp_path / "shards")]) == 1
    assert "cannot be looked at (File name too long)" in caplog.text


def test_what_a_killed_run_left_is_taken_away(tmp_path: Path) -> None:
    make_folder(tmp_path / "raw", 3)
    prepare(tmp_path / "raw", tmp_path / "shards", Preparation("folder", side=32))
    (tmp_path / "shards" / ".folder-000000.tar.1-a.tmp").write_bytes(b"half")
    prepare(tmp_path / "raw", tmp_path / "shards", Preparation("folder", side=32))
    assert not list((tmp_path / "shards").glob(".*"))
