"""`python -m commands.check` from its files to its report: on a real ComfyUI with random weights, and on files that cannot be used."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from check_world import COMFYUI, ROOT, SECRET, CheckWorld
from PIL import Image
from safetensors.torch import load_file, save_file

needs_comfyui = pytest.mark.skipif(not (COMFYUI / "main.py").is_file(), reason="there is no ComfyUI")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> CheckWorld:
    return CheckWorld(tmp_path_factory.mktemp("check"))


def is_private(report: str) -> bool:
    """Whether it names nobody and no folder."""
    text = re.sub(r'src="data:[^"]*"', "", report)
    return not any(part in text for part in (*SECRET.split(), str(ROOT), str(COMFYUI), tempfile.gettempdir() + "/"))


@needs_comfyui
def test_a_check_runs_to_its_end_and_its_report_can_be_sent(world: CheckWorld) -> None:
    ended = world.run()
    assert ended.returncode == 0, ended.stdout
    report = world.report()
    for number, title in enumerate(
        ("What is installed and found", "Both backends on these weights", "Memory plans", "Learning and drawing"), 1
    ):
        assert f"{number}. {title}: all right" in ended.stdout
        assert f"<h2>{number}. {title}</h2>" in report
    assert "Fault:" not in report
    # Every value of both sides, the domain's and the backbone's too.
    for name in ("word embedding", "denoise with offsets", "training loss", "word offset E", "image features"):
        assert f"<td>{name}</td>" in report
    assert all(f"<td>{plan}</td><td>yes</td>" in report for plan in ("fast", "balanced", "lean", "leanest"))
    assert "S* learned in" in report and "Loss of 2 steps" in report
    pictures = sorted(path.name for path in (world.out / "pictures").iterdir())
    assert len(pictures) == 8
    first, fifth = (Image.open(world.out / "pictures" / pictures[number]) for number in (0, 4))
    assert first.size == (128, 128) and list(first.getdata()) != list(fifth.getdata())
    # The base's own pictures are in it, the person's are not, and nobody is named.
    assert report.count("data:image/jpeg") == 4
    assert 'alt="a photo of face"' in report and 'alt="a photo of S*"' not in report
    assert is_private(report)


def test_what_cannot_be_used_is_said_in_a_sentence_each_and_the_rest_goes_on(tmp_path: Path) -> None:
    world = CheckWorld(tmp_path)
    world.checkpoint.unlink()
    world.domain.write_bytes(world.domain.read_bytes()[:-100])
    world.photo.write_text("no picture")
    (tmp_path / "empty").mkdir()
    ended = world.run("--comfyui", str(tmp_path / "empty"), "--clip-vision", str(world.home / "vision.safetensors"))
    assert ended.returncode == 1
    report = world.report()
    for said in (
        "base.safetensors was not found in",
        "is truncated",
        "is no picture that can be read: save it as JPEG or PNG.",
        "holds no ComfyUI: name the folder of its main.py with --comfyui.",
        "vision.safetensors was not found in",
        "The checkpoint cannot be compared with diffusers&#x27;: part 1 says why.",
        "What the plans need is not known, because a file cannot be used: part 1 says why.",
    ):
        assert said in report, said
        assert said.replace("&#x27;", "'") in ended.stdout, said
    assert "Traceback" not in ended.stdout
    # Parts 1 to 4 have faults, and all five were tried.
    assert len(re.findall(r"^\d\. .*: \d+ faults?,", ended.stdout, re.MULTILINE)) == 4
    assert "<h2>5. Scores</h2>" in report
    assert is_private(report)


def test_another_family_is_refused_and_the_base_is_looked_at_all_the_same(world: CheckWorld, tmp_path: Path) -> None:
    from commands.check.given import Given, look_at
    from commands.check.parts import Part

    def looked_at(checkpoint: Path, domain: Path) -> tuple[Part, bool, bool]:
        part = Part("files")
        usable = look_at(Given(checkpoint, domain, world.photo), part)
        return part, usable.checkpoint, usable.learns

    part, base, learns = looked_at(world.checkpoint, world.domain)
    assert (part.faults, base, learns) == ([], True, True)
    tensors = load_file(world.checkpoint)
    save_file(
        tensors | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(4, 4)}, tmp_path / "sdxl.safetensors"
    )
    part, base, learns = looked_at(tmp_path / "sdxl.safetensors", world.domain)
    assert len(part.faults) == 1 and "SDXL" in part.faults[0]
    assert not base and not learns
    wide = domain_of_another_family(world, tmp_path / "sd2.safetensors")
    part, base, learns = looked_at(world.checkpoint, wide)
    assert len(part.faults) == 1 and "has words of width 1024" in part.faults[0]
    assert base and not learns


def domain_of_another_family(world: CheckWorld, path: Path) -> Path:
    """The domain with words as wide as Stable Diffusion 2.x has them."""
    import dataclasses

    from e4t_core.files.domain_file import load_domain, save_domain
    from e4t_core.methods.e4t.domain import new_encoder

    domain = load_domain(world.domain)
    info = dataclasses.replace(domain.info, base_family="sd2", context_width=1024)
    save_domain(path, dataclasses.replace(domain, encoder=new_encoder(info), info=info))
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="presses Ctrl-C with a POSIX signal")
@needs_comfyui
def test_ctrl_c_leaves_nothing_behind(world: CheckWorld, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    out = tmp_path / "out"
    process = subprocess.Popen(
        world.command("--out", str(out)),
        cwd=ROOT,
        env={**world.environment(), "TMPDIR": str(temporary)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 120
    # Its first child is at work.
    while not list(temporary.glob("e4t_check_*/said")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said and "no file is left half written" in said
    assert list(temporary.iterdir()) == []
    assert list(out.iterdir()) == []
