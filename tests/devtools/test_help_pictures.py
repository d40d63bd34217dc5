"""Pictures that help pages and documents show are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devtools.places import REPOSITORY

HELP = REPOSITORY / "web" / "docs"
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
PAGES = sorted([*HELP.rglob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_picture_of_a_page_is_there(page: Path) -> None:
    # ComfyUI looks for a help page's pictures beside the English page, whatever the language.
    folder = HELP if page.is_relative_to(HELP) else page.parent
    for name in PICTURE.findall(page.read_text(encoding="utf-8")):
        assert name.startswith("https://") or (folder / name).is_file(), name


def test_pictures_are_found_in_a_page() -> None:
    assert PICTURE.findall("text ![a (b)](c.jpg) and ![](d/e.png)") == ["c.jpg", "d/e.png"]
