"""The help pages' tables of settings say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from e4t_core.loop_settings import SamplingSettings
from e4t_core.methods.e4t.settings import PRESETS, TuningSettings
from e4t_core.methods.registered import SIBLINGS, node_id
from e4t_core.settings import settings_of, shown, table

PAGES = Path(__file__).resolve().parents[2] / "web" / "docs"


def between(page: str, mark: str) -> str:
    """What stands on a help page between the two lines of a mark."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return text.split(f"<!-- {mark} -->\n")[1].split(f"\n<!-- /{mark} -->")[0].strip()


@pytest.mark.parametrize(
    ("page", "mark", "wanted"),
    [
        ("E4TSettings", "settings", table(TuningSettings, PRESETS)),
        ("E4TSettings", "sampling", table(SamplingSettings)),
        *((node_id(kind), "settings", table(kind.Settings)) for kind in SIBLINGS),
    ],
)
def test_a_help_page_shows_the_settings_of_the_code(page: str, mark: str, wanted: str) -> None:
    """Where this fails, put ``wanted`` between the mark's two lines."""
    assert between(page, mark) == wanted


@pytest.mark.parametrize("kind", [TuningSettings, SamplingSettings, *(kind.Settings for kind in SIBLINGS)])
def test_a_table_has_a_row_for_each_setting_with_its_default_and_its_range(kind: type) -> None:
    rows = table(kind).splitlines()[2:]
    for row, (name, about) in zip(rows, settings_of(kind).items(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert cells[:2] == [f"`{name}`", shown(about.default)] and len(cells) == 3
        assert cells[2].startswith(about.tooltip)
        assert about.kind is bool or about.range_text()[1:] in cells[2]
        assert ("Advanced." in cells[2]) == about.advanced
