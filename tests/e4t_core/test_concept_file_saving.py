"""A save is whole or it was not: with two programs at once, with a reader beside it, killed, and where nothing can be written."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kept import places
from saving_child import number_of, numbered
from system_faults import as_a_plain_user, largest_file

from e4t_core.files.concept_file import ConceptFileError, load_concept, read_concept_info
from e4t_core.files.concept_saving import Places, save_concept
from e4t_core.files.file_errors import MESSAGE_LIMIT
from e4t_core.files.file_lock import lock
from e4t_core.files.unfinished import NOTE

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and rights of POSIX")
ROUNDS = 50
KILLS = 40
LOADS = 200
NUMBERS = 1000
EVENTS = 60  # more than one save has


class Child:
    """Another program that saves, see ``saving_child``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    def ask(self, what: str, first: int, last: int, event: int = 0) -> None:
        self.stdin.write(f"{what} {first} {last} {event}\n")
        self.stdin.flush()

    def hears(self) -> str:
        return self.stdout.readline().strip()


@contextlib.contextmanager
def saving(folder: Path, name: str, how: str = "overwrite", size: int = 64) -> Iterator[Child]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("saving_child.py")), folder, name, how, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        child = Child(process)
        assert child.hears() == "ready"
        yield child
    finally:
        process.kill()
        process.communicate()


def killed(child: Child, first: int, after: float) -> None:
    """Let it save numbers from ``first`` on, and kill it after some seconds."""
    child.ask("fork", first, first + NUMBERS)
    process = int(child.hears())
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    assert child.hears() == "ended"


def killed_at(child: Child, first: int, event: int) -> None:
    """Let it save numbers from ``first`` on, and die at so many file events: midway on machines of any speed."""
    child.ask("fork", first, first + NUMBERS, event)
    int(child.hears())
    assert child.hears() == "ended"


def there(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {".e4t.lock"}


def only(folders: Places, *names: str) -> None:
    """Check that the folders hold some concepts with their second files, and nothing else."""
    infos = [read_concept_info(folders.words / name) for name in names]
    assert there(folders.words) == set(names)
    assert there(folders.weights) == {info.weights_file for info in infos}


@pytest.mark.parametrize("how", ["overwrite", "number"])
def test_two_programs_save_one_name_at_once(tmp_path: Path, how: str) -> None:
    folders = places(tmp_path)
    with saving(tmp_path, "a", how) as one, saving(tmp_path, "a", how) as other:
        for number in range(ROUNDS):
            one.ask("save", number, number + 1)
            other.ask("save", 100 + number, 101 + number)
            assert one.hears() == other.hears() == "saved"
            if how == "overwrite":
                only(folders, "a.safetensors")
                found = [number_of(load_concept(folders.words / "a.safetensors", [folders.weights])[0])]
                assert found[0] in (number, 100 + number)
            else:
                names = ["a.safetensors", "a_00002.safetensors"]
                only(folders, *names)
                found = [number_of(load_concept(folders.words / name, [folders.weights])[0]) for name in names]
                assert sorted(found) == [number, 100 + number]
                for file in [*folders.words.glob("a*"), *folders.weights.iterdir()]:
                    file.unlink()


@POSIX
def test_a_killed_save_leaves_the_old_concept_or_the_new_one_and_the_next_save_tidies_up(tmp_path: Path) -> None:
    folders = places(tmp_path)
    path = folders.words / "a.safetensors"
    save_concept(folders, "other", numbered(7), "exact")
    save_concept(folders, "a", numbered(0), "exact")
    draw, before, littered = random.Random(0), 0, 0
    with saving(tmp_path, "a", size=256) as child:
        for kill in range(KILLS):
            if kill % 2:
                killed(child, before, draw.uniform(0, 0.1))
            else:
                killed_at(child, before, draw.randint(1, EVENTS))
            number = number_of(load_concept(path, [folders.weights])[0])
            assert before - 1 <= number < before + NUMBERS
            littered += len(there(folders.words)) > 2 or len(there(folders.weights)) > 2
            save_concept(folders, "a", numbered(number + 1), "exact", overwrite=True)
            only(folders, "a.safetensors", "other.safetensors")
            before = number + 2
    assert number_of(load_concept(folders.words / "other.safetensors", [folders.weights])[0]) == 7
    assert littered > KILLS / 4, "nearly no save was killed midway, so this test is blind"


@POSIX
def test_the_save_of_another_name_tidies_up_as_well(tmp_path: Path) -> None:
    folders = places(tmp_path)
    save_concept(folders, "a", numbered(0), "exact")
    with saving(tmp_path, "a", size=256) as child:
        for event in range(1, EVENTS):
            killed_at(child, 1, event)
            if len(there(folders.weights)) > 1:
                break
        else:
            pytest.fail("no save was killed midway")
    save_concept(folders, "b", numbered(1), "word")
    assert there(folders.words) == {"a.safetensors", "b.safetensors"} and len(there(folders.weights)) == 1
    load_concept(folders.words / "a.safetensors", [folders.weights])


def test_a_reader_beside_a_writer_always_finds_one_whole_concept(tmp_path: Path) -> None:
    folders = places(tmp_path)
    save_concept(folders, "a", numbered(0), "exact")
    found = set()
    with saving(tmp_path, "a", size=8) as child:
        child.ask("save", 1, 20_000)
        for _ in range(LOADS):
            concept, info = load_concept(folders.words / "a.safetensors", [folders.weights])
            assert info.fingerprint == concept.fingerprint
            found.add(number_of(concept))
            assert read_concept_info(folders.words / "a.safetensors").body == "exact"
    assert len(found) > LOADS / 10, "the writer hardly wrote anything, so this test is blind"


@POSIX
@pytest.mark.parametrize("limit", [100, 2000, 5000, 20_000])
def test_a_full_disk_is_told_and_the_old_concept_stays(tmp_path: Path, limit: int) -> None:
    folders = places(tmp_path)
    saved = save_concept(folders, "a", numbered(1), "exact")
    for overwrite in (True, False):
        with largest_file(limit), pytest.raises(ConceptFileError, match="could not be written") as caught:
            save_concept(folders, "a", numbered(2, 128), "exact", overwrite=overwrite)
        assert len(str(caught.value)) <= MESSAGE_LIMIT and "the disk has room" in str(caught.value)
        only(folders, "a.safetensors")
        assert number_of(load_concept(saved.path, [folders.weights])[0]) == 1


@POSIX
@pytest.mark.parametrize("closed", ["words", "weights"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_may_not_be_written_to_is_told(tmp_path: Path, closed: str, overwrite: bool) -> None:
    folders = places(tmp_path)
    saved = save_concept(folders, "a", numbered(1), "exact")
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == os.geteuid() and place != Path(place.anchor):
            place.chmod(place.stat().st_mode | 0o055)
    for place in (folders.words, folders.weights):
        place.chmod(0o777)
        for file in place.iterdir():
            file.chmod(0o666)
    getattr(folders, closed).chmod(0o555)
    with as_a_plain_user(), pytest.raises(ConceptFileError, match="could not be written") as caught:
        save_concept(folders, "a", numbered(2), "exact", overwrite=overwrite)
    assert len(str(caught.value)) <= MESSAGE_LIMIT and "may be written to" in str(caught.value)
    getattr(folders, closed).chmod(0o777)
    only(folders, "a.safetensors")
    assert number_of(load_concept(saved.path, [folders.weights])[0]) == 1


@pytest.mark.parametrize("gone", ["words", "weights"])
def test_a_folder_that_is_not_there_is_told(tmp_path: Path, gone: str) -> None:
    folders = places(tmp_path)
    getattr(folders, gone).rmdir()
    with pytest.raises(ConceptFileError, match="could not be written"):
        save_concept(folders, "a", numbered(1), "exact")
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".e4t.lock"]


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    folders = places(tmp_path)
    save_concept(folders, "a", numbered(0), "word")
    writer = threading.Thread(target=save_concept, args=(folders, "b", numbered(1), "exact"))
    with lock(folders.words / ".e4t.lock") as held:
        writer.start()
        time.sleep(0.2)
        assert held and there(folders.words) == {"a.safetensors"} and not there(folders.weights)
    writer.join(20)
    assert there(folders.words) == {"a.safetensors", "b.safetensors"} and len(there(folders.weights)) == 1


@pytest.mark.parametrize(
    "noted",
    [
        "",
        "{",
        "[]",
        '{"names": 3}',
        '{"names": ["../outside.safetensors", "mine.txt", 3, null]}',
        "[" * 10_000,
        "\0" * 100,
    ],
)
def test_a_damaged_note_of_a_save_removes_nothing(tmp_path: Path, noted: str) -> None:
    folders = places(tmp_path)
    save_concept(folders, "a", numbered(0), "exact")
    before = there(folders.weights)
    for file in (folders.words / "mine.txt", folders.words.parent / "outside.safetensors"):
        file.write_text("mine")
    (folders.words / NOTE).write_text(noted)
    save_concept(folders, "b", numbered(1), "word")
    assert there(folders.words) == {"a.safetensors", "b.safetensors", "mine.txt"} and there(folders.weights) == before
    assert (folders.words.parent / "outside.safetensors").read_text() == "mine"
