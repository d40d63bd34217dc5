"""What a self-check says of figures, faults and pictures, without a ComfyUI."""

from __future__ import annotations

import io
import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands.batch.api_workflow import ApiWorkflow
from commands.check.child import ask
from commands.check.drawing import PROMPTS, filled, plain_failure, prompt_of, shots
from commands.check.faults import CheckError, sentence
from commands.check.given import Given, Usable
from commands.check.installed import check_comfyui
from commands.check.measured import Side, difference, load_side, save_side, share
from commands.check.parity import TOLERANCE, _judge
from commands.check.parts import Drawn, Part
from commands.check.privacy import Privacy
from commands.check.report import WITHHELD, write_report
from commands.check.scores import score
from commands.comfyui.own_server import ComfyUI, Installation, PortTaken

GIVEN = Given(Path("models/base.safetensors"), Path("models/faces.safetensors"), Path("me.jpg"))


def side(**values: torch.Tensor) -> Side:
    return Side({"prediction": "epsilon", "parameters": {"a": [2, 3]}}, values, 1.5)


def test_values_are_judged_by_their_own_size(tmp_path: Path) -> None:
    value = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for scale in (1e-6, 1.0, 1e6):
        one, near, far = scale * value, scale * (value + 0.1 * TOLERANCE), scale * (value + 10 * TOLERANCE)
        for other, faults in ((near, 0), (far, 1)):
            part = Part("parity")
            _judge(part, side(denoise=one), side(denoise=other))
            assert len(part.faults) == faults, (scale, faults)
    assert share(value, value) == 0 and share(torch.zeros(3), torch.zeros(3)) == 0
    assert share(torch.zeros(3), torch.ones(3)) > TOLERANCE


@pytest.mark.parametrize(
    "spoiled", [torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")]), torch.ones(3)]
)
def test_what_is_no_number_or_of_another_shape_never_agrees(spoiled: torch.Tensor) -> None:
    whole = torch.tensor([1.0, 2.0])
    for one, other in ((whole, spoiled), (spoiled, whole)):
        assert difference(one, other) == float("inf")
        part = Part("parity")
        _judge(part, side(features=one), side(features=other))
        assert len(part.faults) == 1 and "features differs by" in part.faults[0]


def test_facts_that_differ_are_named_and_a_side_goes_through_a_file(tmp_path: Path) -> None:
    one = side(word=torch.ones(2))
    save_side(tmp_path / "side", one)
    again = load_side(tmp_path / "side")
    assert again.facts == one.facts and again.seconds == 1.5 and torch.equal(again.values["word"], torch.ones(2))
    part = Part("parity")
    _judge(part, one, Side({"prediction": "v", "parameters": {"a": [2, 3]}}, one.values, 1.0))
    assert part.faults == ["The two sides do not agree on: prediction."]


def test_the_same_four_prompts_are_drawn_with_the_word_and_by_the_base_alone() -> None:
    workflow = filled(GIVEN, Usable(), "e4t/photo.png")
    taken = {node["class_type"]: node["inputs"] for node in workflow.nodes.values()}
    assert taken["CheckpointLoaderSimple"]["ckpt_name"] == "base.safetensors"
    assert taken["E4TLoadDomain"]["domain_name"] == "faces.safetensors"
    assert taken["LoadImage"]["image"] == "e4t/photo.png"
    todo = shots(learns=True)
    assert [(shot.prompt, shot.seed) for shot in todo[:4]] == [(shot.prompt, shot.seed) for shot in todo[4:]]
    assert [shot.learned for shot in todo] == [True] * 4 + [False] * 4
    assert [shot.prompt for shot in shots(learns=False)] == list(PROMPTS)

    def needed(nodes: dict, wanted: str) -> set[str]:
        """Classes of the nodes that lead to the one of a class."""
        (number,) = ApiWorkflow(nodes, Path()).of_class(wanted)
        found, todo = {number}, [number]
        while todo:
            for value in nodes[todo.pop()]["inputs"].values():
                if isinstance(value, list) and value[0] not in found:
                    found.add(value[0])
                    todo.append(value[0])
        return {nodes[number]["class_type"] for number in found}

    with_word, without = prompt_of(workflow, todo[0], "S*"), prompt_of(workflow, todo[4], "face")
    assert "E4TPersonalize" in needed(with_word, "SaveImage")
    assert not any(name.startswith("E4T") for name in needed(without, "SaveImage"))
    assert {"CheckpointLoaderSimple", "KSampler"} <= needed(without, "SaveImage")


def test_out_of_memory_is_said_in_one_sentence_wherever_it_happens() -> None:
    raised = {
        "node_type": "E4TPersonalize",
        "exception_type": "torch.OutOfMemoryError",
        "exception_message": "Allocation\n...",
    }
    said = plain_failure({"status": {"messages": [["execution_error", raised]]}}, "a paragraph")
    assert said.startswith("ComfyUI ran out of memory in the node E4TPersonalize: close other programs")
    other = {"node_type": "KSampler", "exception_type": "ValueError", "exception_message": "x"}
    assert plain_failure({"status": {"messages": [["execution_error", other]]}}, "KSampler: x") == "KSampler: x"
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        assert sentence(error).startswith("Memory is used up: close other programs")
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**58)
    assert sentence(failed.value).startswith("Memory is used up")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for Python")
@pytest.mark.parametrize(
    ("line", "said"),
    [("kill -9 $$", "as it does when memory is short"), ("echo no module x; exit 3", "status 3: no module x")],
)
def test_a_process_that_is_ended_says_why(tmp_path: Path, line: str, said: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{line}\n")
    python.chmod(0o755)
    with pytest.raises(CheckError, match=said.replace("$", r"\$")):
        ask("commands.inside", {"tasks": []}, tmp_path, str(python))


def test_a_comfyui_that_is_none_too_old_or_whose_port_is_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="holds no ComfyUI: name the folder"):
        check_comfyui(tmp_path)
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").write_text("raise SystemExit('torch is not installed')")
    for version in ("0.3.68", "0.29.9", None):
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"' if version else "")
        with pytest.raises(CheckError, match=r"needs 0\.30 or newer: update it"):
            check_comfyui(tmp_path)
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.30.1"')
    assert check_comfyui(tmp_path) == "0.30.1"
    workflow = filled(GIVEN, Usable(), "photo.png")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"Port {port} of this machine cannot be used"):
            ComfyUI(Installation(tmp_path, port=port), "x").start(workflow)
    with pytest.raises(ValueError, match="ComfyUI ended while it started: torch is not installed"):
        ComfyUI(Installation(tmp_path), "x").start(workflow)


def test_a_pack_that_comfyui_refuses_is_named_with_its_reason(tmp_path: Path) -> None:
    server = ComfyUI(Installation(tmp_path, alone={}, packs=("e4t",)), "x")
    server._log = tmp_path / "log"
    refused = "comfyui-e4t needs ComfyUI 0.30 or newer (x is missing): update ComfyUI."
    server._log.write_text(
        f"Cannot import /a/other module for custom nodes: no\nCannot import /a/e4t module for custom nodes: {refused}\n"
    )
    assert server._refused_pack() == refused
    server._log.write_text("all is well\n")
    assert server._refused_pack() == ""


@pytest.fixture
def privacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Privacy:
    home = tmp_path / "Anna Sørensen"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in ("LOGNAME", "USER", "USERNAME"):
        monkeypatch.setenv(name, "asorensen")
    monkeypatch.setattr(socket, "gethostname", lambda: "annas-desktop")
    return Privacy([home / "models", Path("/opt/comfy ui")], home / "my pictures" / "Grandma.jpg")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("{home}/models/a b/x.safetensors is damaged", "(folder)/a b/x.safetensors is damaged"),
        ("in {home}/other/x", "in (home)/other/x"),
        ("{home!r} and '/opt/comfy ui/main.py'", "'(home)' and '(folder)/main.py'"),
        ("{home}/my pictures/Grandma.jpg is broken, Grandma.jpg!", "(the photo) is broken, (the photo)!"),
        ("File /usr/lib/python3/site.py, line 3", "File (folder)/site.py, line 3"),
        (r"C:\Users\Somebody\x.txt and \\share\of\y.txt", "(folder)/x.txt and (folder)/y.txt"),
        ("Domain file ...ers/Anna Sørensen/a b/x.safetensors is cut", "Domain file (folder)/x.safetensors is cut"),
        ("Sørensen was here ... and went", "(user) was here ... and went"),
        ("asorensen's folder on Annas-Desktop", "(user)'s folder on (machine)"),
        (
            "…rensen, asorensen2, 3/4 of 5 GB/s, and/or, 128 × 128",
            "…rensen, asorensen2, 3/4 of 5 GB/s, and/or, 128 × 128",
        ),
        ("http://127.0.0.1:8188/object_info", "http://127.0.0.1:8188/object_info"),
    ],
)
def test_a_report_names_no_person_and_no_folder(privacy: Privacy, tmp_path: Path, text: str, plain: str) -> None:
    assert privacy.plain(text.format(home=str(tmp_path / "Anna Sørensen"))) == plain


def test_pictures_of_the_person_are_in_the_report_only_where_they_are_asked_for(
    privacy: Privacy, tmp_path: Path
) -> None:
    picture = Image.new("RGB", (600, 400), "red")
    part = Part("Drawing", faults=["a < b"], losses=[0.5, float("nan"), 0.25])
    part.drawn = [
        Drawn("a photo of S*", "a photo of face", picture, True),
        Drawn("a photo of face", "", picture, False),
    ]
    for with_pictures, count in ((False, 1), (True, 2)):
        write_report(tmp_path / "report.html", [part], privacy, with_pictures)
        report = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert report.count("data:image/jpeg") == count
        assert (WITHHELD in report) is not with_pictures
        assert "a &lt; b" in report and "nan" not in report
    with pytest.raises(CheckError, match="could not be written"):
        write_report(tmp_path / "nowhere" / "report.html", [part], privacy, False)


class MeanColor:
    """Sees a face in every picture but black ones."""

    name = "mean color"

    def embed(self, pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        vectors = np.array([np.asarray(picture.resize((1, 1)), np.float32).ravel() for picture in pictures])
        return vectors, vectors.any(axis=1)


def photo(color: str) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(held, "PNG")
    return held.getvalue()


def test_scores_are_of_pictures_with_the_word_beside_those_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("commands.evaluate.networks")
    module = types.ModuleType("mean_color_for_check")
    module.__dict__["MeanColor"] = MeanColor
    monkeypatch.setitem(sys.modules, module.__name__, module)
    colors = (("red", True), ("black", True), ("blue", False))
    drawn = [Drawn(color, "a photo of face", Image.new("RGB", (8, 8), color), learned) for color, learned in colors]
    networks = ["python:mean_color_for_check:MeanColor", "onnx:nowhere.onnx"]
    part = Part("scores")
    score(part, networks, None, photo("red"), drawn)
    # One that is missing does not keep the other from it.
    assert len(part.faults) == 1 and "nowhere.onnx was not found" in part.faults[0]
    assert [row[1] for row in part.tables[0].rows] == ["1.000", "no face found", "0.000", "1.000 of 1", "0.000 of 1"]
    part = Part("scores")
    score(part, networks[:1], None, photo("black"), drawn)
    assert part.said == ["mean color finds no face in the photo, so it has no scores."]


def test_without_networks_a_sentence_says_that_there_are_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("scores")
    score(part, [], None, photo("red"), [])
    monkeypatch.setattr("commands.check.scores.NETWORKS", "commands.nowhere.networks")
    score(part, ["dlib"], None, photo("red"), [])
    assert [said.split(":")[0] for said in part.said] == ["No score was asked for", "There are no scores"]
    assert not part.faults
