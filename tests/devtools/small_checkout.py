"""A checkout of `dev.py` in small: the real bootstrap with one tiny package to install, a tiny ComfyUI and no network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = 800
"""Files of the tiny package: enough for a kill in the middle of copying them."""
PATIENCE = 120.0
"""Seconds for anything here; a few are enough unless the machine is busy."""

HELLO = '''"""Counts what was installed."""
import os, sys, time
from pathlib import Path
import tiny
print("installed", len(list(Path(tiny.__file__).parent.glob("part_*.txt"))), "of", tiny.FILES, flush=True)
if "--wait" in sys.argv:
    print("waiting", flush=True)
    time.sleep(60)
'''


def write_wheel(folder: Path) -> None:
    """Writes the package `tiny`; its description comes first, as in some real packages, its code after it."""
    info = "tiny-1.0.dist-info"
    files = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny/__init__.py": f"FILES = {FILES}\n",
        **{f"tiny/part_{i:04}.txt": f"{i}\n" for i in range(FILES)},
    }
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(text)])
    rows.writerow([f"{info}/RECORD", "", ""])
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record.getvalue()}.items():
            wheel.writestr(name, text)


def make_checkout(folder: Path) -> Path:
    """Makes the checkout at `folder`; `dev.py bench hello` there tells how many of the package's files it finds."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "dev.py", folder)
    shutil.copytree(ROOT / "devtools", folder / "devtools", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "hello.py").write_text(HELLO)
    (folder / "wheels").mkdir()
    write_wheel(folder / "wheels")
    (folder / "requirements-dev.txt").write_text("--no-index\n--find-links wheels\ntiny==1.0\n")
    # The tiny checkout needs far less room than the real one.
    environment = folder / "devtools" / "environment.py"
    environment.write_text(environment.read_text().replace("NEEDED_GIB = 9.3", "NEEDED_GIB = 0.1"))
    return folder


def put_comfyui_archive(checkout: Path, files: int) -> None:
    """Puts a ComfyUI of `files` modules where the download would lie, and has the checkout expect exactly that one."""
    from devtools import comfyui_source

    archive = checkout / ".dev" / "dl" / comfyui_source.ARCHIVE
    archive.parent.mkdir(parents=True)
    names = ["main.py", "requirements.txt", *(f"comfy/part_{i:05}.py" for i in range(files))]
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(comfyui_source.INSIDE + name)
            entry.size = 0 if name == "requirements.txt" else 1
            tar.addfile(entry, io.BytesIO(b"#" * entry.size))
    source = checkout / "devtools" / "comfyui_source.py"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    source.write_text(source.read_text().replace(comfyui_source.ARCHIVE_SHA256, digest))


def start(checkout: Path, *arguments: str, comfyui: Path | None = None) -> subprocess.Popen[str]:
    """Starts `dev.py` as a terminal does: in a process group of its own, which Ctrl-C goes to."""
    environment = {k: v for k, v in os.environ.items() if k not in ("COMFYUI_PATH", "PYTHONPATH")}
    if comfyui is not None:
        environment["COMFYUI_PATH"] = str(comfyui)
    return subprocess.Popen(
        [sys.executable, "dev.py", *(arguments or ("bench", "hello"))],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for its end and returns what it said; asserts that it succeeded."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for a moment of a running process."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, f"it ended before that: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
