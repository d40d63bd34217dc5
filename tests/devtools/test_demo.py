"""The demo's second row is the same workflow without anything of E4T."""

from __future__ import annotations

import json

from devtools.demo import with_prompt, without_personalization
from devtools.places import WORKFLOWS


def shipped() -> dict:
    return json.loads((WORKFLOWS / "api" / "one_photo.json").read_text(encoding="utf-8"))


def test_without_personalization_only_stock_nodes_remain_and_every_link_leads_somewhere() -> None:
    stock = without_personalization(shipped())
    assert not any(node["class_type"].startswith("E4T") for node in stock.values())
    links = [value for node in stock.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert links and all(source in stock for source, _ in links)


def test_a_prompt_and_a_seed_are_set_without_touching_the_original() -> None:
    original = shipped()
    changed = with_prompt(original, "a watercolor of S*", 7)
    assert original == shipped()
    differing = {node for node in original if original[node] != changed[node]}
    assert {original[node]["class_type"] for node in differing} == {"CLIPTextEncode", "KSampler"}
    assert changed["8"]["inputs"]["seed"] == 7
