"""docs/what_can_go_wrong.md quotes what the nodes say: each sentence has to be in the code, or nobody finds it there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "what_can_go_wrong.md"
QUOTED = re.compile(r"^\* “([^”]+)”$", re.MULTILINE)
# What stands for a value, in the page and here.
HOLE = "…"
FILLED = re.compile(r"\{\w*\}")


def _said_by_python(path: Path) -> list[str]:
    """All texts of a module, with a hole for each value."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values]
            found.append(FILLED.sub(HOLE, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(FILLED.sub(HOLE, node.value))
    return found


def _said_by_panels(path: Path) -> list[str]:
    return [FILLED.sub(HOLE, text) for text in re.findall(r'\bsay\(\s*"([^"]*)"', path.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def said() -> list[str]:
    python = [path for room in ("nodes", "e4t_core") for path in sorted((ROOT / room).rglob("*.py"))]
    texts = [text for path in python for text in _said_by_python(path)]
    return texts + [text for path in sorted((ROOT / "web" / "js").glob("*.js")) for text in _said_by_panels(path)]


QUOTES = QUOTED.findall(PAGE.read_text(encoding="utf-8"))


def test_the_page_quotes_many_sentences() -> None:
    assert len(QUOTES) > 30 and len(QUOTES) == len(set(QUOTES))


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote[:40])
def test_each_quoted_sentence_is_in_the_code(said: list[str], quote: str) -> None:
    assert any(quote in text for text in said), f"no node says: {quote}"


def test_a_sentence_that_nobody_says_is_found_out(said: list[str]) -> None:
    assert not any("The moon is made of …" in text for text in said)
