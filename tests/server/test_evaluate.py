"""`python -m commands.evaluate` on a real server: drawn people, a judge of the mini world, a report; resumed, and refused."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from test_batch import cheap

from commands.evaluate.__main__ import main
from devtools.comfyui_client import Client
from devtools.comfyui_server import Server
from miniworld.people import draw_people

PROMPTS = "class,prompt\nplain,a photo of {}\nstyle,{} as pixel art\n"
Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos of each of three people, prompts and a quick workflow."""
    folder = tmp_path_factory.mktemp("people")
    draw_people(folder / "people", people=3, photos=3)
    (folder / "prompts.csv").write_text(PROMPTS, encoding="utf-8")
    (folder / "workflow.json").write_text(json.dumps(cheap()), encoding="utf-8")
    return folder


@pytest.fixture
def evaluate(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Command:
    """Runs the command in this process: `evaluate(url, ...)` gives its exit status and what it said."""

    def run(url: str, *more: str, workflow: Path | None = None) -> tuple[int, str]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            status = main(
                [
                    *("--photos", str(world / "people"), "--people", "3", "--out", str(tmp_path / "out")),
                    *("--identity", "python:miniworld.identity:judge_a", "--prompts", str(world / "prompts.csv")),
                    *("--server", url, "--workflow", str(workflow or world / "workflow.json"), "--wait", "0", *more),
                ]
            )
        return status, capsys.readouterr().err + caplog.text

    return run


def drawn(server: Server) -> int:
    """How many jobs a server has finished."""
    return server.said().count("Prompt executed in")


def test_pictures_are_drawn_scored_and_reported_and_no_name_is_in_it(
    server: Server, client: Client, evaluate: Command, world: Path, tmp_path: Path
) -> None:
    out, before = tmp_path / "out", drawn(server)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        status, said = evaluate(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert (status, "No server answers" in said, (out / "report.md").exists()) == (1, True, False)

    status, said = evaluate(client.url)
    assert status == 0, said
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["person"], row["class"]) for row in rows] == [
        (number, group) for number in (1, 2, 3) for group in ("plain", "style")
    ]
    assert {row["seed"] for row in rows} == {1}
    for row in rows:
        with Image.open(out / row["file"]) as picture:
            assert picture.size == (64, 64)
        assert set(row["identity"]) == {"judge-a"}
        assert -1 <= row["identity"]["judge-a"]["identity"] <= 1
    report = (out / "report.md").read_text(encoding="utf-8")
    # Real photos of the mini world: the judge knows who is who.
    assert "| judge-a | 9 | 0 (0.0 %) | 0." in report
    assert "| all prompts | 6 |" in report
    assert "| style | 3 |" in report
    with Image.open(out / "report.png") as plot:
        plot.load()
    written = [path for path in out.rglob("*") if path.suffix in (".md", ".jsonl", ".json")]
    assert len(written) >= 5
    assert not any("person_0" in path.read_text(encoding="utf-8") for path in written)
    assert not any("person_0" in path.name for path in out.rglob("*"))

    # Again, with another network: nothing is drawn anew; then with one picture gone.
    assert drawn(server) == before + 6
    assert evaluate(client.url, "--identity", "python:miniworld.identity:judge_b")[0] == 0
    assert drawn(server) == before + 6
    assert "Identity by judge-b" in (out / "report.md").read_text(encoding="utf-8")
    (out / rows[0]["file"]).unlink()
    assert evaluate(client.url)[0] == 0
    assert (out / rows[0]["file"]).exists()

    # What would mix two evaluations is refused, and the report stays.
    for more, named in [
        (("--choice", "1"), "other people"),
        (("--word", "face"), "other prompts"),
        (("--trigger", "anna", "--photo", "2.image", "--prompt", "5.text"), "other prompts"),
    ]:
        status, said = evaluate(client.url, *more)
        assert status == 1, said
        assert f"holds a report with {named}: name another with --out." in " ".join(said.split())
    assert "Identity by judge-a" in (out / "report.md").read_text(encoding="utf-8")


def test_photos_alone_need_no_server(world: Path, tmp_path: Path) -> None:
    given = ["--photos", str(world / "people"), "--people", "3", "--identity", "python:miniworld.identity:judge_a"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| judge-a | 9 | 0 (0.0 %) |" in report
    assert not (tmp_path / "out" / "scores.jsonl").exists()
    # A folder of somebody else's results is left alone.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.md").write_text("mine", encoding="utf-8")
    assert main([*given, "--out", str(tmp_path / "other")]) == 1
    assert (tmp_path / "other" / "report.md").read_text(encoding="utf-8") == "mine"


def test_photos_in_which_no_face_is_found_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blind.py").write_text(
        "class Blind:\n    def embed(self, pictures):\n        return [[0.0]] * len(pictures), [False] * len(pictures)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    draw_people(tmp_path / "people", people=2, photos=3)
    given = ["--photos", str(tmp_path / "people"), "--people", "2", "--identity", "python:blind:Blind"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 1
    assert "Blind finds no face in any of the 2 photos that would be learned" in capsys.readouterr().err
