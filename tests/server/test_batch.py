"""`python -m commands.batch` on real servers: every job once, whoever is ended meanwhile, and a report that is right."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_world import BatchWorld, Line
from PIL import Image

from devtools.comfyui_client import Client, Workflow
from devtools.comfyui_server import Server
from devtools.places import WORKFLOWS

PROMPTS = ["a photo of S*", "S* in oil", "a sketch of S*"]


def cheap(**changes: dict[str, object]) -> Workflow:
    """The shipped workflow that learns a word, as quick as it can be."""
    shipped: Workflow = json.loads((WORKFLOWS / "api" / "textual_inversion.json").read_text(encoding="utf-8"))
    quick: dict[str, dict[str, object]] = {
        "E4TTextualInversion": {"steps": 1, "batch": 1, "micro_batch": 1, "image_size": 64},
        "EmptyLatentImage": {"width": 64, "height": 64},
        "KSampler": {"steps": 1},
    }
    kept = {number: node for number, node in shipped.items() if node["class_type"] != "E4TSaveConcept"}
    for node in kept.values():
        node["inputs"] |= quick.get(node["class_type"], {}) | changes.get(node["class_type"], {})
    return kept


def drawn(log: str) -> int:
    """How many jobs a server has finished."""
    return log.count("Prompt executed in")


def wait_for(happened: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def assert_right(world: BatchWorld, photos: int, prompts: list[str] = PROMPTS) -> None:
    """Every job has one line and one picture, in order."""
    lines = world.lines()
    wanted = [(f"person_{number:02}", prompt) for number in range(photos) for prompt in prompts]
    assert [(line["concept"], line["prompt"]) for line in lines] == wanted
    assert {line["error"] for line in lines} == {None}
    assert {line["attempt"] for line in lines} == {1}
    assert sorted(line["file"] for line in lines) == world.pictures()
    for line in lines:
        assert picture(world, line).size == (64, 64)


def picture(world: BatchWorld, line: Line) -> Image.Image:
    opened = Image.open(world.out / line["file"])
    opened.load()
    return opened


@pytest.mark.skipif(sys.platform == "win32", reason="ends them with POSIX signals")
def test_every_job_is_done_once_though_client_and_server_are_killed(server: Server, tmp_path: Path) -> None:
    world = BatchWorld(tmp_path / "world", cheap(), 3, PROMPTS)
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    port = None
    with Server(server.comfyui, server.base, first) as killed:
        port, url = killed.client.port, killed.client.url
        client = world.start(url)
        wait_for(lambda: len(world.lines()) >= 2)
        # The server draws on without it, and keeps what it drew for whoever asks under the same id.
        client.send_signal(signal.SIGKILL)
        client.communicate()
        wait_for(lambda: drawn(killed.said()) >= 4)
        client = world.start(url)
        wait_for(lambda: len(world.lines()) >= 6)
        killed.kill()
    with Server(server.comfyui, server.base, second, port=port):
        said, _ = client.communicate(timeout=240)
        assert client.returncode == 0, said
    assert "Waiting for it" in said
    assert_right(world, photos=3)
    logs = first.read_text(errors="replace"), second.read_text(errors="replace")
    assert sum(map(drawn, logs)) == 9
    # Once for each photo, and once more for the one that the killed server was at.
    assert 3 <= sum(log.count("learned in") for log in logs) <= 4


def test_what_a_server_drew_and_forgot_is_fetched_and_not_drawn_again(
    server: Server, client: Client, tmp_path: Path
) -> None:
    world = BatchWorld(tmp_path, cheap(), 1, PROMPTS)
    before = drawn(server.said())
    assert world.run(client.url).returncode == 0
    whole = world.lines()
    report = world.out / "report.jsonl"
    # As if both had been killed before the command heard of the last two.
    report.write_text(json.dumps(whole[0]) + "\n")
    for line in whole[1:]:
        (world.out / line["file"]).unlink()
    client.post("/history", {"clear": True})
    assert world.run(client.url).returncode == 0
    assert drawn(server.said()) == before + 3
    assert_right(world, photos=1)
    assert [line["seconds"] is None for line in world.lines()] == [False, True, True]


def test_a_picture_that_a_killed_server_had_half_saved_is_drawn_again(
    server: Server, client: Client, tmp_path: Path
) -> None:
    one, other = (BatchWorld(tmp_path / name, cheap(), 1, PROMPTS[:2]) for name in ("one", "other"))
    assert one.run(client.url).returncode == 0
    (other.folder / "prompts.csv").write_text(PROMPTS[0])
    assert other.run(client.url).returncode == 0
    # What a job is called on the server is known, because the same job has the same key in every batch.
    key = one.lines()[1]["job"][:16]
    (whole,) = (server.base / "output" / "e4t_batch" / (one.out / ".batch" / "id").read_text()).glob(f"{key}_*")
    half = server.base / "output" / "e4t_batch" / (other.out / ".batch" / "id").read_text() / whole.name
    half.write_bytes(whole.read_bytes()[:-200])
    (other.folder / "prompts.csv").write_text("\n".join(PROMPTS[:2]))
    before = drawn(server.said())
    assert other.run(client.url).returncode == 0
    assert drawn(server.said()) == before + 1
    assert_right(other, photos=1, prompts=PROMPTS[:2])


def test_failures_stop_nothing_and_are_tried_again_when_asked(server: Server, client: Client, tmp_path: Path) -> None:
    world = BatchWorld(tmp_path, cheap(), 2, ["S*"])
    (world.folder / "photos" / "person_00.png").write_bytes(b"no photo")
    (world.folder / "prompts.csv").write_text(
        "prompt,seed,KSampler.steps,KSampler.sampler_name\nS*,5,1,\nS* in oil,6,,nonsense\nS* at sea,7,,\n"
    )
    ended = world.run(client.url)
    assert ended.returncode == 3, ended.stdout
    assert "4 of 6 jobs failed" in ended.stdout
    lines = world.lines()
    assert [bool(line["error"]) for line in lines] == [True, True, True, False, True, False]
    assert "person_00.png is no picture that can be read" in lines[0]["error"]
    assert "KSampler: Value not in list (sampler_name: 'nonsense' not in" in lines[4]["error"]
    assert (lines[3]["seed"], lines[5]["seed"]) == (5, 7)
    assert lines[3]["inputs"] == {"KSampler.steps": "1"}
    before = drawn(server.said())
    # Nothing is done again unasked, and asked for, what failed alone.
    again = world.run(client.url)
    assert (again.returncode, drawn(server.said())) == (3, before)
    assert "6 of them are done already" in again.stdout
    assert world.run(client.url, "--retry-failed").returncode == 3
    assert [line["attempt"] for line in world.lines()] == [2, 2, 2, 1, 2, 1]


def test_an_error_of_a_node_is_in_the_report(server: Server, client: Client, tmp_path: Path) -> None:
    (server.base / "input" / "broken.latent").write_bytes(b"no latent")
    workflow = cheap(KSampler={"steps": 1, "latent_image": ["50", 0]})
    workflow["50"] = {"class_type": "LoadLatent", "inputs": {"latent": "broken.latent"}}
    world = BatchWorld(tmp_path, workflow, 1, ["S*"])
    assert world.run(client.url).returncode == 3
    (line,) = world.lines()
    assert line["error"].startswith("LoadLatent: ")
    assert line["file"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="ends it with a POSIX signal")
def test_ctrl_c_leaves_the_servers_queue_empty_and_the_same_command_goes_on(
    server: Server, client: Client, tmp_path: Path
) -> None:
    world = BatchWorld(tmp_path, cheap(E4TTextualInversion={"seed": 9}), 2, PROMPTS)
    before = drawn(server.said())
    running = world.start(client.url)
    wait_for(lambda: len(world.lines()) >= 1)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert json.loads(client.get("/queue"))["queue_pending"] == []
    assert world.run(client.url).returncode == 0
    assert_right(world, photos=2)
    assert drawn(server.said()) == before + 6


def test_the_photo_a_server_gets_is_named_by_content_and_sent_once(
    server: Server, client: Client, tmp_path: Path
) -> None:
    world = BatchWorld(tmp_path, cheap(), 1, ["S*"])
    for _ in range(2):
        assert world.run(client.url).returncode == 0
        (world.out / "report.jsonl").unlink()
    names = [path.name for path in (server.base / "input" / "e4t_batch").iterdir()]
    assert all(re.fullmatch(r"[0-9a-f]{16}\.png", name) for name in names)
    assert len(names) == len(set(names))
