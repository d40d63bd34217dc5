"""A set-up that was cut off at any phase, or that two checkouts run at once, ends with what one quiet run makes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import small_checkout as checkout
from small_checkout import FILES, finish, make_checkout, start, wait_until

from devtools.lock import UNFINISHED

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="cuts processes off with POSIX signals")

WHOLE = f"installed {FILES} of {FILES}"
MODULES = 500


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `COMFYUI_PATH` may name."""
    folder = tmp_path_factory.mktemp("ComfyUI")
    (folder / "comfy").mkdir()
    for name in ("main.py", "requirements.txt"):
        (folder / name).touch()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, comfyui: Path) -> Path:
    """A checkout whose set-up is done; tests work on copies of it."""
    made = make_checkout(tmp_path_factory.mktemp("finished") / "work")
    assert WHOLE in finish(start(made, comfyui=comfyui))
    return made


@pytest.fixture
def ready(finished: Path, tmp_path: Path) -> Path:
    """A checkout that has nothing left to set up."""
    return shutil.copytree(finished, tmp_path / "ready", symlinks=True)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A fresh checkout."""
    return make_checkout(tmp_path / "work")


def pip_is_half_copied(folder: Path) -> bool:
    return any((folder / ".venv").glob("lib/python3.*/site-packages/pip"))


def a_package_is_half_copied(folder: Path) -> bool:
    return any((folder / ".venv").glob("lib/python3.*/site-packages/tiny/part_0050.txt"))


@pytest.mark.parametrize(
    ("moment", "with_all_it_started"),
    [(pip_is_half_copied, False), (a_package_is_half_copied, False), (a_package_is_half_copied, True)],
)
def test_killed_and_run_again(
    work: Path, comfyui: Path, moment: Callable[[Path], bool], with_all_it_started: bool
) -> None:
    first = start(work, comfyui=comfyui)
    wait_until(lambda: moment(work), first)
    if with_all_it_started:
        os.killpg(first.pid, signal.SIGKILL)
    else:
        # What it started goes on by itself, and must not meet the second run.
        first.kill()
    first.wait()
    second = finish(start(work, comfyui=comfyui))
    assert WHOLE in second
    assert "making the virtual environment .venv anew" in second
    third = finish(start(work, comfyui=comfyui))
    assert WHOLE in third and "·" not in third, "the third run had nothing to do"


@pytest.mark.parametrize("moment", [pip_is_half_copied, a_package_is_half_copied])
def test_ctrl_c_is_one_line_and_leaves_the_note(work: Path, comfyui: Path, moment: Callable[[Path], bool]) -> None:
    running = start(work, comfyui=comfyui)
    wait_until(lambda: moment(work), running)
    os.killpg(running.pid, signal.SIGINT)
    said, _ = running.communicate(timeout=checkout.PATIENCE)
    assert running.returncode == 130
    assert "Traceback" not in said and said.rstrip().endswith("Ended.")
    assert (work / ".venv.lock").read_bytes() == UNFINISHED


def test_ctrl_c_in_what_runs_is_one_line(ready: Path, comfyui: Path) -> None:
    running = start(ready, "bench", "hello", "--wait", comfyui=comfyui)
    assert running.stdout is not None
    while (line := running.stdout.readline()) and line != "waiting\n":
        pass
    # To the one process only, as a supervisor does it.
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=checkout.PATIENCE)
    assert running.returncode == 130
    assert said.strip() == "Ended."


def test_two_checkouts_that_share_an_environment_fill_it_once(work: Path, comfyui: Path, tmp_path: Path) -> None:
    other = make_checkout(tmp_path / "other")
    (other / ".venv").symlink_to(work / ".venv")
    said = [finish(process) for process in (start(work, comfyui=comfyui), start(other, comfyui=comfyui))]
    assert all(WHOLE in text for text in said)
    assert sum("making the virtual environment" in text for text in said) == 1
    assert sum("installing" in text for text in said) == 1
    # The link is still one, and a half-made environment behind it is made anew as well.
    (work / ".venv.lock").write_bytes(UNFINISHED)
    assert "anew" in finish(start(other, comfyui=comfyui))
    assert (other / ".venv").is_symlink()


def test_what_cannot_be_installed_takes_nothing_away(ready: Path, comfyui: Path) -> None:
    requirements = ready / "requirements-dev.txt"
    before = requirements.read_text()
    requirements.write_text(before + "nobody-has-this==1.0\n")
    failed = start(ready, comfyui=comfyui)
    said, _ = failed.communicate(timeout=checkout.PATIENCE)
    assert failed.returncode == 1 and "could not be installed" in said and "Traceback" not in said
    requirements.write_text(before)
    again = finish(start(ready, comfyui=comfyui))
    assert WHOLE in again and "·" not in again


def test_a_comfyui_that_is_not_whole_is_unpacked_again(ready: Path) -> None:
    checkout.put_comfyui_archive(ready, MODULES)
    comfyui = ready / ".dev" / "comfyui"
    file, last = comfyui / "comfy" / "part_00007.py", comfyui / "comfy" / f"part_{MODULES - 1:05}.py"
    first = start(ready)
    wait_until((ready / ".dev" / "comfyui.part" / "comfy" / "part_00100.py").is_file, first)
    first.kill()
    first.wait()
    assert not comfyui.exists(), "it was whole before it was killed, so this proves nothing"
    for harm in (lambda: None, file.unlink, lambda: file.write_bytes(b"")):
        harm()
        assert "unpacking" in finish(start(ready))
        assert file.read_bytes() == last.read_bytes() == b"#"
        assert not (ready / ".dev" / "comfyui.part").exists()
    assert "·" not in finish(start(ready))


def test_the_bootstrap_needs_the_standard_library_only() -> None:
    """`-S` leaves out whatever is installed beside it."""
    command = [sys.executable, "-S", "-E", str(checkout.ROOT / "dev.py"), "--help"]
    assert "usage: dev.py" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
