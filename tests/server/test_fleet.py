"""`python -m commands.fleet` on two seats of this machine, real ComfyUIs and a real Ray, of which processes are killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from batch_world import BatchWorld
from test_batch import assert_right, cheap

from devtools.comfyui_server import Server
from devtools.places import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends processes with POSIX signals")
PROMPTS = ["a photo of S*", "S* in oil"]
SEAT = re.compile(r"Seat (\d): node \S+, worker (\d+), server (\d+), ComfyUI 0\.30\.0")


def wait_for(happened: Callable[[], bool], fleet: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + 400
    while not happened():
        assert fleet.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.05)


def of_this_fleet(temporary: str) -> list[psutil.Process]:
    """ComfyUIs and what holds them."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"{temporary}/e4t_own_" in " ".join(process.info["cmdline"] or [])
    ]


def test_every_job_is_one_file_and_one_line_though_a_server_and_a_worker_are_killed(
    server: Server, tmp_path: Path
) -> None:
    workflow = cheap()
    workflow["20"] = {"class_type": "E4TSaveConcept", "inputs": {"concept": ["4", 2], "name": "x", "keeps": "word"}}
    world = BatchWorld(tmp_path / "world", workflow, 4, PROMPTS)
    log = tmp_path / "fleet.log"
    # Temporary files of its own tell what is left of this fleet; a short name, for the sake of Ray's sockets.
    temporary = tempfile.mkdtemp(prefix="fleet", dir="/tmp")
    environment = {**os.environ, "TMPDIR": temporary}
    with log.open("w") as said:
        fleet = subprocess.Popen(
            world.fleet(server.comfyui, server.base, "--seats", "2"),
            cwd=REPOSITORY,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        wait_for(lambda: len(SEAT.findall(log.read_text())) == 2 and len(world.lines()) >= 1, fleet, log)
        seats = {int(number): (int(worker), int(comfyui)) for number, worker, comfyui in SEAT.findall(log.read_text())}
        os.kill(seats[1][1], signal.SIGKILL)
        os.kill(seats[2][0], signal.SIGKILL)
        assert fleet.wait(timeout=500) == 0, log.read_text()
    finally:
        fleet.kill()
        fleet.wait()
    told = log.read_text()
    assert "Seat 2 was lost while it drew" in told
    assert "Seat 1 had to start ComfyUI anew" in told
    assert_right(world, photos=4, prompts=PROMPTS)
    concepts = sorted(path.name for path in (world.out / "concepts").iterdir())
    assert [name[:9] for name in concepts] == [f"person_{number:02}" for number in range(4)]
    # What held the cards ends, also where its worker had no time to say so.
    deadline = time.monotonic() + 60
    while left := [*of_this_fleet(temporary), *Path(temporary).glob("e4t_own_*/")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    shutil.rmtree(temporary)


SEAT_ALONE = """
import os, signal, sys, time
from commands.batch.photos import as_sent
from commands.batch.prepared import prepare
from commands.fleet.__main__ import _options
from commands.fleet.installation import installed
from commands.fleet.seat import Seat

options = _options(sys.argv[1:])
work = prepare(options)
seat = Seat(work.plan.filling, work.results.batch, installed(options))
os.kill(seat.ready().server, signal.SIGKILL)
while seat._comfyui.alive():
    time.sleep(0.1)
for job in work.left:
    drawn = seat.draw(job, as_sent(job.photo.path))
    print(drawn.starts, drawn.outcome.error)
seat._comfyui.stop()
"""


def test_a_comfyui_that_ended_between_two_jobs_is_started_anew_and_told(server: Server, tmp_path: Path) -> None:
    """Ray stays out of the tests' own process."""
    world = BatchWorld(tmp_path / "world", cheap(), 1, PROMPTS)
    arguments = world.fleet(server.comfyui, server.base)[3:]
    seat = subprocess.run(
        [sys.executable, "-c", SEAT_ALONE, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert seat.stdout.splitlines() == ["1 None", "0 None"], seat.stderr


def test_without_a_comfyui_one_sentence_says_so(tmp_path: Path) -> None:
    world = BatchWorld(tmp_path / "world", cheap(), 1, PROMPTS)
    ended = subprocess.run(
        world.fleet(tmp_path, tmp_path, "--seats", "1"), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "main.py is not on the node" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not world.lines()
