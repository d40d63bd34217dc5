"""Ctrl-C ends every command with status 130 and without a traceback, whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from commands.interruptible import GOES_ON, NOTHING_HALF, STOPPED, interruptible

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "validate": ["commands.pretrain.validate", "--config", "mini_face"],
    "pretrain": ["commands.pretrain", "--config", "mini_face", "--dry-run"],
    "prepare": ["commands.prepare", "folder", "{0}/raw", "{0}/shards", "--per-shard=10", "--workers=1"],
}


@pytest.mark.parametrize("wait", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_a_command_starts_is_answered(name: str, wait: float, tmp_path: Path) -> None:
    for number in range(60 if name == "prepare" else 0):
        (tmp_path / "raw").mkdir(exist_ok=True)
        Image.effect_noise((1024, 1024), 60).save(tmp_path / "raw" / f"{number}.png")
    # "-X importtime" tells when imports are under way.
    command = [sys.executable, "-X", "importtime", "-m", *(part.format(tmp_path) for part in COMMANDS[name])]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if "numpy" in line:
            break
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED
    assert "Traceback" not in text + errors
    assert GOES_ON in errors


@pytest.mark.parametrize("name", ["commands.concept", "commands.convert"])
def test_ctrl_c_while_a_command_imports_torch_is_answered(name: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", name, "--help"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if "torch." in line:
            break
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED
    assert "Traceback" not in text + errors
    assert NOTHING_HALF in errors


def test_a_press_that_a_library_turns_into_its_own_error_is_a_stop_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @interruptible("Stopped.")
    def main(fails: bool) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            # As Rust code does that calls Python.
            return 1 if fails else 0
        return 0

    assert main(True) == 130 and capsys.readouterr().err == "Stopped.\n"
    assert main(False) == 0 and capsys.readouterr().err == "", "it had ended its work"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
