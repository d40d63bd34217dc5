"""What of a fleet needs no Ray cluster: the leash that ends a server with its owner, and the words for faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from commands.fleet.__main__ import _options
from commands.fleet.cluster import plain, refusal
from commands.fleet.installation import installed

ROOT = Path(__file__).parents[2]
LEASH = ROOT / "commands" / "comfyui" / "leash.py"
OWNER = """
import subprocess, sys, time
held = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(held.stdout.readline().decode().strip(), held.pid, flush=True)
time.sleep(600)
"""
SLEEPS = "import time; print('up', flush=True); time.sleep(600)"


@pytest.mark.skipif(sys.platform == "win32", reason="ends it with a POSIX signal")
@pytest.mark.parametrize("its_children_too", [False, True])
def test_a_server_ends_and_its_folder_goes_when_its_owner_is_killed(tmp_path: Path, its_children_too: bool) -> None:
    """Ray kills the children of a worker as well."""
    folder, log = tmp_path / "own", tmp_path / "log"
    folder.mkdir()
    (folder / "input.png").touch()
    leash = [str(LEASH), str(folder), str(log), sys.executable, "-c", SLEEPS]
    owner = subprocess.Popen([sys.executable, "-c", OWNER, *leash], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    program = psutil.Process(int(owner.stdout.readline().split()[0]))
    holder = program.parent()
    assert holder is not None
    children = psutil.Process(owner.pid).children(recursive=True) if its_children_too else []
    os.kill(owner.pid, signal.SIGKILL)
    for child in children:
        child.kill()
    owner.wait()
    _, alive = psutil.wait_procs([program, holder], timeout=20)
    assert not alive
    assert not folder.exists()
    assert not log.exists()


def test_a_leash_tells_when_its_program_has_ended(tmp_path: Path) -> None:
    folder, log = tmp_path / "own", tmp_path / "log"
    folder.mkdir()
    command = [sys.executable, str(LEASH), str(folder), str(log), sys.executable, "-c", "print('said')"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leash:
        assert leash.stdout is not None
        # To its end, although the other end of standard input is still held.
        assert int(leash.stdout.read()) > 0
    assert log.read_text() == "said\n"
    assert not folder.exists()


def test_a_cluster_of_other_versions_is_said_in_words() -> None:
    code = (
        "from ray._private.utils import check_version_info;"
        'check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "this process", True)'
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    of_ray = ended.stderr[ended.stderr.index("RuntimeError: ") :]
    said = refusal("auto", RuntimeError(of_ray.removeprefix("RuntimeError: ")))
    assert said.startswith(
        "The cluster at auto has another Python or Ray than this command: install the same on all nodes"
    )
    assert "3.9.1" in said
    assert "\n" not in said


def test_a_node_without_the_packs_code_or_a_package_is_said_in_words() -> None:
    with pytest.raises(ModuleNotFoundError) as error:
        import a_module_that_no_node_has  # noqa: F401
    assert plain(error.value) == (
        "A node has no module a_module_that_no_node_has: every node needs the clone of this repository at the same place, and"
        " the packages of docs/fleet.md."
    )


def test_without_ray_one_sentence_says_how_to_get_it(tmp_path: Path) -> None:
    begun = time.monotonic()
    code = (
        "import sys; sys.modules['ray'] = None; from commands.fleet.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [f"--{name}={tmp_path}" for name in ("workflow", "images", "prompts", "out", "comfyui")]
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "This needs Ray, which is installed apart: python -m pip install ray aiohttp filelock pillow tqdm\n"
    )
    assert time.monotonic() - begun < 60


def test_ray_stays_out_of_the_process_of_the_tests() -> None:
    """It puts a folder with modules of its own, psutil among them, before all others on the path; the process crashed later on."""
    assert "ray" not in sys.modules


def test_nothing_that_artists_run_imports_ray() -> None:
    code = "import sys, commands.batch.__main__, commands.batch.run, commands.batch.prepared; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_files_of_the_command_line_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("comfyui/main.py", "venv/bin/python3"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "venv" / "bin" / "python").symlink_to("python3")
    line = ["--workflow=w.json", "--images=photos", "--prompts=p.csv", "--out=results", "--comfyui=comfyui"]
    for given, meant in (("venv/bin/python", str(tmp_path / "venv" / "bin" / "python")), ("python3", "python3")):
        installation = installed(_options([*line, f"--python={given}", "--base-directory=base"]))
        assert installation.python == meant
        assert (installation.folder, installation.base) == (tmp_path / "comfyui", tmp_path / "base")
