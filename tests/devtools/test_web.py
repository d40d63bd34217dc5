"""What the browser is given: plain modules that ask nobody but this ComfyUI, and take no text for code or markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "web" / "js").glob("*.js"))
# Markup and code out of texts; prototypes of others; networks beside ComfyUI's own; what leaves the page.
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|\.prototype\b|(?<!\.)\bfetch\(|"
    r"XMLHttpRequest|sendBeacon|WebSocket\(|https?://(?!www\.w3\.org/2000/svg)|localStorage|document\.cookie"
)
IMPORT = re.compile(r'from "([^"]+)"')


def _code(path: Path) -> str:
    return re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_stays_in_its_page(path: Path) -> None:
    assert not FORBIDDEN.findall(_code(path))
    for name in IMPORT.findall(_code(path)):
        there = name in ("../../../scripts/app.js", "../../../scripts/api.js")
        assert there or (path.parent / name).is_file(), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_begins_by_saying_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("/**\n * ")


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js to read scripts with")
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_is_well_formed(path: Path) -> None:
    read = subprocess.run(
        ["node", "--check", "--input-type=module"],
        input=path.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr.decode()


def test_what_is_forbidden_is_found() -> None:
    for fault in ("a.innerHTML = b", "eval(a)", "X.prototype.y = z", 'fetch("/a")', '"https://example.org"'):
        assert FORBIDDEN.search(fault), fault
    assert not FORBIDDEN.search('api.fetchApi("/history")') and MODULES


LANGUAGES = sorted(path.parent for path in (ROOT / "locales").glob("*/main.json"))
SAID = re.compile(r'\bsay\(\s*"((?:[^"\\]|\\.)*)"')
VALUE = re.compile(r"\{\w+\}")


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda path: path.name)
def test_each_text_of_the_panels_is_there_in_other_languages_and_no_other(language: Path) -> None:
    english = {text for module in MODULES for text in SAID.findall(_code(module))}
    assert len(english) > 20, "the texts were not found, so this proves nothing"
    texts = json.loads((language / "main.json").read_text(encoding="utf-8"))["e4t"]
    assert set(texts) == english
    for text, said in texts.items():
        assert sorted(VALUE.findall(said)) == sorted(VALUE.findall(text)), text


def test_no_panel_says_a_text_that_cannot_be_translated() -> None:
    """What a person reads goes through say(): texts that are put into elements or their labels as they stand do not."""
    bare = re.compile(
        r'(?:textContent|title|alt|placeholder)\s*=\s*["`][A-Z]|aria-label",\s*["`]|make\("\w+", "[^"]*", ["`]\w'
    )
    for module in MODULES:
        assert not bare.findall(_code(module)), module.name
    assert bare.search('picture.alt = "The photo"') and bare.search('make("button", "e4t-copy", "Copy")')
