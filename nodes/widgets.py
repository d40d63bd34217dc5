"""Settings as a node's inputs: made from the fields of a dataclass, where ranges and explanations are said once.

Where the settings belong to a preset, every widget begins with "as the preset says": -1 for numbers, "preset" for
switches and choices. What is left so, or left out of an API prompt, is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..e4t_core.settings import Setting, settings_of

PRESET, ON, OFF = "preset", "on", "off"
UNTOUCHED = -1
# What stands between a number and a limit that it may not reach.
NEARLY = 1e-6


def inputs_of(kind: type, leave_out: tuple[str, ...] = ()) -> list[io.Input]:
    """A widget for every setting, with the setting's own default.

    Args:
        kind: the settings' dataclass.
        leave_out: settings that the node has no widget for.
    """
    return [_widget(about, as_preset=False) for name, about in settings_of(kind).items() if name not in leave_out]


def preset_inputs_of(kind: type) -> list[io.Input]:
    """A widget for every setting that begins with "as the preset says"."""
    return [_widget(about, as_preset=True) for about in settings_of(kind).values()]


def touched(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among a node's inputs that a person has set, by name.

    Args:
        kind: the settings' dataclass.
        values: inputs of :func:`preset_inputs_of`; some may be missing.
    """
    found: dict[str, Any] = {}
    for name, about in settings_of(kind).items():
        value = values.get(name, UNTOUCHED if about.kind in (int, float) else PRESET)
        if about.kind is bool:
            if value in (ON, OFF, True, False):
                found[name] = value in (ON, True)
        elif about.kind is str:
            if value != PRESET:
                found[name] = value
        elif value is not None and value >= 0:
            found[name] = value
    return found


def _widget(about: Setting, as_preset: bool) -> io.Input:
    """Every widget is optional, so that API prompts need not name it."""
    common: dict[str, Any] = {"optional": True, "advanced": about.advanced or None}
    unit = f" In {about.unit}." if about.unit else ""
    if as_preset:
        untouched = UNTOUCHED if about.kind in (int, float) else PRESET
        common["tooltip"] = f"{about.tooltip}{unit} {untouched}: as the preset says."
        if about.kind in (bool, str):
            options = [PRESET, *(about.choices or (ON, OFF))]
            return io.Combo.Input(about.name, options=options, default=PRESET, **common)
        default: Any = UNTOUCHED
        least: Any = UNTOUCHED
    else:
        common["tooltip"] = about.tooltip + unit
        if about.kind is bool:
            return io.Boolean.Input(about.name, default=about.default, **common)
        if about.kind is str and not about.choices:
            return io.String.Input(about.name, default=about.default, **common)
        if about.kind is str:
            return io.Combo.Input(about.name, options=list(about.choices), default=about.default, **common)
        default = about.default
        least = about.least if about.least is not None else (about.above or 0) + NEARLY
    most = about.most if about.most is not None else (about.below or 0) - NEARLY
    if about.kind is int:
        return io.Int.Input(about.name, default=default, min=int(least), max=int(most), **common)
    return io.Float.Input(
        about.name, default=float(default), min=float(least), max=most, step=about.step, round=False, **common
    )
