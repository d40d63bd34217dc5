"""Which settings of a resumed run are others than its checkpoint's."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from .sections import Config, SourceSettings

FREE_TO_CHANGE = {
    ("training", "steps"),
    ("training", "micro_batch"),
    ("training", "gradient_checkpointing"),
    ("data", "workers"),
    ("data", "prefetch"),
    ("data", "most_corrupt"),
    ("data", "cache_folder"),
    ("data", "cache_features"),
}
"""Settings that a resumed run may have other than its checkpoint; "steps" makes it longer."""


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that decide the result and differ, as text.

    A setting that the checkpoint does not know is younger than it; the default of such a one is what was done before.
    """
    defaults = {
        (section.name, item.name): item.default
        for section in dataclasses.fields(Config)
        for item in dataclasses.fields(typing.get_type_hints(Config)[section.name])
    }
    changes = []
    for section in now:
        if section == "output":
            continue
        for key, value in now[section].items():
            old = before.get(section, {}).get(key, defaults[section, key])
            if (section, key) == ("data", "sources"):
                old = [dataclasses.asdict(SourceSettings(**entry)) for entry in old]
            if old != value and (section, key) not in FREE_TO_CHANGE:
                changes.append(f"{section}.{key} was {old!r} and is {value!r}")
    return changes
