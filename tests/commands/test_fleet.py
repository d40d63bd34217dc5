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

from commands.fleet.cluster import plain, refusal

ROOT = Path(__file__).parents[2]
LEASH = ROOT / "commands" / "fleet" / "leash.py"
OWNER = """
import subprocess, sys, time
held = subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2], sys.executable, "-c", sys.argv[3]], stdin=subprocess.PIPE)
print(held.pid, flush=True)
time.sleep(600)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_DFL); print('up', flush=True); time.sleep(600)"


@pytest.mark.skipif(sys.platform == "win32", reason="ends it with a POSIX signal")
def test_a_server_ends_and_its_folder_goes_when_its_owner_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "input.png").touch()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(LEASH), str(folder), DEAF], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    leash = psutil.Process(int(owner.stdout.readline()))
    assert owner.stdout.readline() == "up\n"
    (program,) = leash.children()
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    _, alive = psutil.wait_procs([leash, program], timeout=20)
    assert not alive
    assert not folder.exists()


def test_a_leash_ends_with_its_program_and_hands_its_status_on(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    command = [sys.executable, str(LEASH), str(folder), sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as leash:
        assert leash.wait(timeout=20) == 7
    assert not folder.exists()


def test_a_cluster_of_other_versions_is_said_in_words() -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as error:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "this process", True)
    said = refusal("auto", error.value)
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


def test_nothing_that_artists_run_imports_ray() -> None:
    code = "import sys, commands.batch.__main__, commands.batch.run, commands.batch.prepared; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
