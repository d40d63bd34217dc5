"""Settings said once: a frozen dataclass whose fields carry their range, step, unit and explanation.

Widgets, configs, command lines, the docs' tables and the checks are all made from these fields, so that none of them can
say something else. A field is declared by :func:`setting`:

    steps: int = setting(15, "Optimizer steps.", least=0, most=1000)
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is known about one setting.

    Attributes:
        tooltip: what it does, for a person; empty where the dataclass's docstring says it.
        least, most: the range, both ends included.
        above, below: limits that are not included, in place of ``least`` or ``most``.
        step: how far one click of a widget goes.
        unit: of the number ("diffusion timesteps"); empty for a plain number.
        advanced: it hides behind "advanced".
        choices: what a text may be; anything where there are none.
        filled: a text may not be empty.
        name, kind, default: of the field, filled in by :func:`settings_of`.
    """

    tooltip: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    step: float | None = None
    unit: str = ""
    advanced: bool = False
    choices: tuple[str, ...] = ()
    filled: bool = False
    name: str = ""
    kind: Any = float
    default: Any = None

    def range_text(self) -> str:
        """The range in words: "a whole number from 0 to 1000", "true or false", "one of fp32, bf16"."""
        if typing.get_origin(self.kind) is tuple:
            return f"a list, every value of it {self._part().range_text()}"
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            known = f"one of {', '.join(filter(None, self.choices))}" if self.choices else ""
            return known or ("a text that is not empty" if self.filled else "a text")
        high = f" to below {self.below:g}" if self.below is not None else ""
        high = f" to {self.most:g}" if self.most is not None else high
        noun = "a whole number" if self.kind is int else "a number" if high else "a finite number"
        if self.above is not None:
            return f"{noun} above {self.above:g}{high}"
        if self.least is None:
            return noun
        return f"{noun} from {self.least:g}{high}" if high else f"{noun} of {self.least:g} or more"

    def fits(self, value: object) -> bool:
        """Whether a value is of the setting's kind and in its range."""
        if typing.get_origin(self.kind) is tuple:
            part = self._part()
            return isinstance(value, tuple) and all(part.fits(one) for one in value)
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is str:
            known = not self.choices or value in self.choices
            return isinstance(value, str) and known and (bool(value) or not self.filled)
        wanted: tuple[type, ...] = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        limits = (
            self.least is None or value >= self.least,  # type: ignore[operator]
            self.most is None or value <= self.most,  # type: ignore[operator]
            self.above is None or value > self.above,  # type: ignore[operator]
            self.below is None or value < self.below,  # type: ignore[operator]
        )
        return all(limits)

    def _part(self) -> Setting:
        """The same for each value of a list."""
        return dataclasses.replace(self, kind=typing.get_args(self.kind)[0])


def setting(default: Any = dataclasses.MISSING, tooltip: str = "", **limits: Any) -> Any:
    """A dataclass field with its description; ``limits`` are the other fields of :class:`Setting`."""
    return dataclasses.field(default=default, metadata={KEY: Setting(tooltip, **limits)})


def settings_of(kind: type) -> dict[str, Setting]:
    """The settings of a dataclass by name, in the order of its fields; those made without :func:`setting` are none."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: dataclasses.replace(
            field.metadata[KEY], name=field.name, kind=hints[field.name], default=field.default
        )
        for field in dataclasses.fields(kind)
        if KEY in field.metadata
    }


def check_settings(settings: object, section: str = "") -> None:
    """Check every value of a settings object; call it in ``__post_init__``.

    Args:
        settings: an instance of a dataclass.
        section: of a config that it stands in, for messages.

    Raises:
        ValueError: a value is of another kind or out of range; the message names it and the range.
    """
    kind: Any = type(settings)
    for name, about in settings_of(kind).items():
        value = getattr(settings, name)
        if not about.fits(value):
            label = f"{section}.{name}" if section else f"Setting {name}"
            raise ValueError(f"{label} = {repr(value)[:60]} must be {about.range_text()}.")


def with_changes(preset: Any, changes: Mapping[str, Any]) -> Any:
    """A preset with some values changed; every other one stays the preset's.

    Raises:
        ValueError: a name that the settings have not (the message lists those there are), or a value out of range.
    """
    known: dict[str, Setting] = settings_of(type(preset))
    unknown = sorted(changes.keys() - known.keys())
    if unknown:
        raise ValueError(f"There is no setting {unknown[0]!r}: it must be one of {', '.join(known)}.")
    return dataclasses.replace(preset, **changes)


def shown(value: object) -> str:
    """A value as a person reads it: "on", "1e-05", "15"."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(kind: type, presets: Mapping[str, object] | None = None) -> str:
    """A Markdown table of all settings, for the help pages; few columns, because ComfyUI shows them in a narrow panel.

    Args:
        kind: the settings' dataclass.
        presets: name -> settings; a column each, in place of one for the defaults.
    """
    columns = presets or {"default": kind()}
    lines = [f"| setting | {' | '.join(columns)} | what it does |", "| --- |" + " --- |" * (len(columns) + 1)]
    for name, about in settings_of(kind).items():
        values = " | ".join(shown(getattr(preset, name)) for preset in columns.values())
        lines.append(f"| `{name}` | {values} | {about.tooltip}{_limits(about)} |")
    return "\n".join(lines)


def _limits(about: Setting) -> str:
    """Range, unit and whether a setting hides behind "advanced", as the last sentences of its row."""
    limits = "" if about.kind is bool else about.range_text()
    said = [f"{limits}, in {about.unit}" if limits and about.unit else limits, "advanced" if about.advanced else ""]
    sentences = " ".join(f"{text[0].upper()}{text[1:]}." for text in said if text)
    return f" *{sentences}*" if sentences else ""
