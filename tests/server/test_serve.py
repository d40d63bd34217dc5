"""`dev.py serve` as a person meets it: what it prints, what is there to click on, and what it leaves alone."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.comfyui_client import Client
from devtools.comfyui_server import prepare_base
from devtools.comfyui_source import find_or_fetch
from devtools.places import PACK_NAME, REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends it with a POSIX signal")

SERVE = """
import sys
from pathlib import Path
from devtools.serve import serve
serve(*map(Path, sys.argv[1:4]), port=int(sys.argv[4]) if sys.argv[4:] else None)
"""


def start(base: Path, *port: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(find_or_fetch()), str(base), str(base / "comfyui.log"), *port],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_both_domains_and_the_template_are_there_and_a_saved_workflow_stays(tmp_path: Path) -> None:
    prepare_base(tmp_path)
    saved = tmp_path / "user" / "default" / "workflows" / "one_photo.json"
    saved.write_text('{"mine": true}')
    serving = start(tmp_path)
    assert serving.stdout is not None
    try:
        said = []
        while not (found := re.search(r"http://([\d.]+):(\d+)/\?template=(\w+)&source=(\S+)", "".join(said))):
            said.append(serving.stdout.readline())
            assert said[-1], "".join(said)
        host, port, template, source = found.groups()
        client = Client(host, int(port))
        choices = {
            node: json.loads(client.get(f"/object_info/{node}"))[node]["input"]["required"]
            for node in ("E4TLoadDomain", "LoadImage")
        }
        assert {"mini_faces.safetensors", "mini_cats.safetensors"} <= set(names(choices["E4TLoadDomain"]))
        assert {"mini_photo.png", "mini_cat_photo.png"} <= set(names(choices["LoadImage"]))
        assert source == PACK_NAME
        assert template in json.loads(client.get("/api/workflow_templates"))[source]
        assert saved.read_text() == '{"mine": true}'
        second = start(tmp_path, port)
        assert f"Port {port} is taken" in second.communicate()[0]
        assert second.returncode != 0
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait()
    with pytest.raises(OSError):
        client.get("/system_stats")


def names(inputs: dict) -> list[str]:
    """The file names that a node offers, in whichever form ComfyUI writes a list of choices."""
    choices = next(iter(inputs.values()))
    return choices[1]["options"] if choices[0] == "COMBO" else choices[0]
