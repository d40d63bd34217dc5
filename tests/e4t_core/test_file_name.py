"""What a file may be called, where a link may lead, and which files a save may touch."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from kept import e4t, equal, places, tensors_of, word_only

from e4t_core.files import file_name
from e4t_core.files.concept_file import ConceptFileError, Places, load_concept, read_concept_info, save_concept
from e4t_core.files.file_errors import MESSAGE_LIMIT
from e4t_core.files.file_name import MOST_BYTES, FileNameError, checked_name

LINKS = pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
DEVICES = [
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{kind}{n}" for kind in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"),
]


@pytest.mark.parametrize(
    "name",
    [
        "", " ", ".", "..", "../a", "..\\a", "a/../../b", "a/b", "a\\b", "/a", "/etc/passwd", "\\\\server\\share\\a", "~/a", "~",
        "C:", "C:a", "c:\\a", "a:stream", "a\0", "\0", "a\0.safetensors", "a\nb", "a\tb", "a\x1b[2J", "a\x7f", "a\x85b",
        "\u202eanna", "an\u202ena", "anna\u200f", "a\u200bb", "a\u2066b", "\ufeffa", "a\u2028b", "a\xa0b", "a b", " a", "a ",
        "a.", "a..", "a. ", "...", ".a", ".hidden", "-a", "_a", "a?", "a*", 'a"', "a<b", "a>b", "a|b", "a,b", "a;b", "(a:1.2)",
        "a[b]", "{a}", "$a", "%TEMP%", "a'b", "a`b", "a&b", "a=b", "\U0001f600", "a\U0001f600", "\u2764\ufe0f", "1\ufe0f\u20e3",
        "a\ufe0f", "a\U000e0101", "\u3164", "a\u3164", "a\u115f", "\uffa0", "a\u034f", "\u0301", "\u0301a", "a\u0301\u0301\u0301\u0301\u0301\u0301",
        "1\u0308", "a.\u0308", "\ue000", "a\ue000", "a\ud800", "\ud800", "\u0378", "x" * 300, "x" * (MOST_BYTES + 1),
        "\u4e2d" * 61, "e\u0301" * 91, "\u2800", "\u00b7a", "a\u20dd", None, 3, b"a", ["a"],
    ],
)  # fmt: skip
def test_what_no_file_may_be_called_is_one_sentence(name: object) -> None:
    with pytest.raises(FileNameError) as caught:
        checked_name(name)  # type: ignore[arg-type]
    message = str(caught.value)
    assert len(message) <= MESSAGE_LIMIT and message.isprintable() and message.endswith(".")


@pytest.mark.parametrize("ending", ["", ".txt", ".safetensors", ".a.b", ".."])
@pytest.mark.parametrize("device", DEVICES)
def test_no_file_is_called_as_a_device_of_windows(device: str, ending: str) -> None:
    for name in (device, device.upper(), device.title()):
        with pytest.raises(FileNameError):
            checked_name(name + ending)


@pytest.mark.parametrize(
    "name",
    [
        "a", "1", "anna", "Anna-2", "anna_00002", "a.b", "a.12345678", "a..b", "v1.5-final", "a-", "a_", "x" * MOST_BYTES,
        "\u4e2d" * 60, "\u5b89\u5a1c", "\u05d0\u05e0\u05d4", "\u0645\u0631\u064a\u0645", "\u0410\u043d\u043d\u0430", "Zo\u00eb", "Bj\u00f6rk", "\u00c5ngstr\u00f6m", "\uc548\ub098",
        "\u3042\u3093\u306a", "\u30a2\u30f3\u30ca", "\u0e2d\u0e31\u0e19\u0e19\u0e32", "\u0905\u0928\u0941", "\u0924\u093e\u0930\u093e", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "\u05d0\u05b7\u05e0\u05b8\u05bc\u05d4", "console", "com", "com10",
        "lpt1a", "nullable", "aux1", "\uff21\uff22", "\u1e9e", "stra\u00dfe", "i\u0307a", "\u0130",
    ],
)  # fmt: skip
def test_names_of_all_scripts_work_whatever_way_they_are_composed(tmp_path: Path, name: str) -> None:
    folders = places(tmp_path)
    whole = unicodedata.normalize("NFC", name)
    assert checked_name(name) == checked_name(unicodedata.normalize("NFD", name)) == whole
    path = save_concept(folders, unicodedata.normalize("NFD", name), word_only(1.0, "f"), "word").path
    assert path == folders.words / f"{whole}.safetensors" and load_concept(path, [])[1].title == whole


@pytest.mark.parametrize("name", ["anna.safetensors", "anna.SAFETENSORS", "anna.safetensors.safetensors"])
def test_a_name_may_be_given_with_its_ending(tmp_path: Path, name: str) -> None:
    assert save_concept(places(tmp_path), name, word_only(1.0, "f"), "word").path.name == "anna.safetensors"


def test_a_name_as_long_as_is_allowed_still_takes_a_number_and_a_second_file(tmp_path: Path) -> None:
    folders = places(tmp_path)
    for name in ("x" * MOST_BYTES, "\u4e2d" * (MOST_BYTES // 3)):
        for _ in range(2):
            saved = save_concept(folders, name, e4t(), "exact")
            assert equal(tensors_of(load_concept(saved.path, [folders.weights])[0]), tensors_of(e4t()))


def contents(folders: Places) -> dict[str, bytes]:
    files = [*folders.words.iterdir(), *folders.weights.iterdir()]
    return {file.name: file.read_bytes() for file in files if not file.name.startswith(".e4t.")}


def test_a_save_touches_its_own_files_only(tmp_path: Path) -> None:
    folders = places(tmp_path)
    names = ["a", "a.b", "a.12345678", "a_00002", "aa", "A.b", "b"]
    saved = {name: save_concept(folders, name, e4t(seed=number), "exact") for number, name in enumerate(names)}
    for name in names:
        before = contents(folders)
        old = saved[name]
        saved[name] = save_concept(folders, name, e4t(seed=50), "exact", overwrite=True)
        after = contents(folders)
        assert old.weights is not None and saved[name].weights is not None and saved[name].path == old.path
        gone, new = before.keys() - after.keys(), after.keys() - before.keys()
        assert gone == {old.weights.name} and new == {saved[name].weights.name}
        assert [key for key in before.keys() & after.keys() if before[key] != after[key]] == [old.path.name]
        for one in saved.values():
            load_concept(one.path, [folders.weights])
    save_concept(folders, "a", e4t(), "word", overwrite=True)
    assert sum(file.name.startswith("a.") for file in folders.weights.iterdir()) == 2


def test_a_second_file_stays_as_long_as_a_copied_or_renamed_concept_needs_it(tmp_path: Path) -> None:
    folders = places(tmp_path)
    first = save_concept(folders, "my_concept", e4t(seed=1), "exact")
    first.path.rename(folders.words / "anna.safetensors")
    second = save_concept(folders, "my_concept", e4t(seed=2), "exact")
    shutil.copy(second.path, folders.words / "copy.safetensors")
    third = save_concept(folders, "my_concept", e4t(seed=3), "exact", overwrite=True)
    for name, seed in (("anna", 1), ("copy", 2), ("my_concept", 3)):
        loaded, _ = load_concept(folders.words / f"{name}.safetensors", [folders.weights])
        assert equal(tensors_of(loaded), tensors_of(e4t(seed=seed)))
    away = tmp_path / "elsewhere.safetensors"
    shutil.move(third.path, away)
    save_concept(folders, "my_concept", e4t(seed=4), "exact", overwrite=True)
    assert equal(tensors_of(load_concept(away, [folders.weights])[0]), tensors_of(e4t(seed=3)))


def test_a_second_file_beside_the_first_is_removed_with_it(tmp_path: Path) -> None:
    folders = places(tmp_path)
    saved = save_concept(folders, "a", e4t(), "exact")
    assert saved.weights is not None
    shutil.move(saved.weights, folders.words / saved.weights.name)
    save_concept(folders, "a", e4t(), "word", overwrite=True)
    assert contents(folders).keys() == {"a.safetensors"}


def test_a_file_that_is_no_second_file_is_never_removed(tmp_path: Path) -> None:
    folders = places(tmp_path)
    folders = Places(folders.words, folders.words)
    first = save_concept(folders, "a", e4t(), "exact")
    assert first.weights is not None
    save_concept(folders, first.weights.name, word_only(1.0, "f"), "word", overwrite=True)
    save_concept(folders, "a", e4t(seed=2), "exact", overwrite=True)
    assert read_concept_info(first.weights).body == "word"


def test_without_overwriting_nothing_is_replaced_and_numbers_end_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = places(tmp_path)
    monkeypatch.setattr(file_name, "MOST_NUMBERS", 4)
    for number in range(4):
        save_concept(folders, "a", word_only(float(number), "f"), "word")
    before = contents(folders)
    with pytest.raises(FileNameError, match="choose another name"):
        save_concept(folders, "a", word_only(9.0, "f"), "word")
    assert contents(folders) == before and len(before) == 4


@LINKS
@pytest.mark.parametrize("there", [True, False])
def test_a_link_out_of_the_folder_is_not_written_to(tmp_path: Path, there: bool) -> None:
    folders = places(tmp_path)
    outside = tmp_path / "outside.safetensors"
    if there:
        outside.write_bytes(b"mine")
    (folders.words / "a.safetensors").symlink_to(outside)
    with pytest.raises(FileNameError, match="is a link to .*choose another name"):
        save_concept(folders, "a", word_only(1.0, "f"), "word", overwrite=True)
    assert outside.exists() == there and (not there or outside.read_bytes() == b"mine")
    assert save_concept(folders, "a", word_only(1.0, "f"), "word").path.name == "a_00002.safetensors"


@LINKS
def test_a_link_to_another_type_of_file_is_not_written_to(tmp_path: Path) -> None:
    folders = places(tmp_path)
    (folders.words / "notes.txt").write_text("mine")
    (folders.words / "a.safetensors").symlink_to("notes.txt")
    with pytest.raises(FileNameError, match="is a link to"):
        save_concept(folders, "a", word_only(1.0, "f"), "word", overwrite=True)
    assert (folders.words / "notes.txt").read_text() == "mine"


@LINKS
def test_a_link_inside_the_folder_is_followed_and_both_names_stay_whole(tmp_path: Path) -> None:
    folders = places(tmp_path)
    first = save_concept(folders, "b", e4t(seed=1), "exact")
    link = folders.words / "a.safetensors"
    link.symlink_to("b.safetensors")
    saved = save_concept(folders, "a", e4t(seed=2), "exact", overwrite=True)
    assert link.is_symlink() and saved.path == first.path and first.weights is not None and not first.weights.exists()
    for path in (link, first.path):
        assert equal(tensors_of(load_concept(path, [folders.weights])[0]), tensors_of(e4t(seed=2)))
    link.unlink()
    save_concept(folders, "a", e4t(seed=3), "exact")
    assert equal(tensors_of(load_concept(first.path, [folders.weights])[0]), tensors_of(e4t(seed=2)))


@LINKS
def test_a_folder_that_is_a_link_itself_is_fine(tmp_path: Path) -> None:
    real = places(tmp_path / "disk")
    (tmp_path / "models").symlink_to(tmp_path / "disk", target_is_directory=True)
    folders = places(tmp_path / "models")
    saved = save_concept(folders, "a", e4t(), "exact")
    save_concept(folders, "a", e4t(), "exact", overwrite=True)
    assert len(list(real.weights.iterdir())) == 1 and saved.path.exists()


def test_a_folder_under_the_name_is_told(tmp_path: Path) -> None:
    folders = places(tmp_path)
    (folders.words / "a.safetensors").mkdir()
    with pytest.raises(ConceptFileError, match="could not be written"):
        save_concept(folders, "a", e4t(), "exact", overwrite=True)
    assert not list(folders.weights.iterdir())
    assert save_concept(folders, "a", e4t(), "exact").path.name == "a_00002.safetensors"
