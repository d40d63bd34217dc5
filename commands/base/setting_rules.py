"""How a settings dataclass says its ranges, field by field, and the one place where they are checked."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence that names the setting and its range."""


def number(
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    return field(default=default, metadata={"least": least, "above": above, "most": most, "below": below})


def choice(choices: tuple[str, ...], default: Any = dataclasses.MISSING) -> Any:
    return field(default=default, metadata={"choices": choices})


def text(default: Any = dataclasses.MISSING) -> Any:
    """A text that may not be empty."""
    return field(default=default, metadata={"filled": True})


def check_ranges(section: str, settings: Any) -> None:
    """Check every field of a section against its range.

    Raises:
        ConfigError: the first that is out of it.
    """
    for item in dataclasses.fields(settings):
        value, rules, name = getattr(settings, item.name), item.metadata, f"{section}.{item.name}"
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, float) and not math.isfinite(part):
                raise ConfigError(f"{name} = {part} must be a finite number.")
            if rules.get("least") is not None and part < rules["least"]:
                raise ConfigError(f"{name} = {part} must be at least {rules['least']:g}.")
            if rules.get("above") is not None and part <= rules["above"]:
                raise ConfigError(f"{name} = {part} must be greater than {rules['above']:g}.")
            if rules.get("most") is not None and part > rules["most"]:
                raise ConfigError(f"{name} = {part} must be at most {rules['most']:g}.")
            if rules.get("below") is not None and part >= rules["below"]:
                raise ConfigError(f"{name} = {part} must be less than {rules['below']:g}.")
        if rules.get("filled") and not value:
            raise ConfigError(f"{name} is empty: give it a value.")
        if "choices" in rules and value not in rules["choices"]:
            raise ConfigError(f"{name} = {value!r} must be one of {', '.join(rules['choices'])}.")


def check_place(section: str, kind: str, path: str, factory: str) -> None:
    if kind == "python":
        module, colon, attribute = factory.partition(":")
        if not (module and colon and attribute):
            raise ConfigError(f"{section}.factory = {factory!r} must be written as 'package.module:function'.")
    elif not path:
        raise ConfigError(f"{section}.path is empty: say where the {kind} data or model lies.")
