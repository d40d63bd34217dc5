"""Descriptions in files: frozen dataclasses as JSON, each field with a range or a length that is said beside it.

A dataclass that travels in a file declares its fields with :func:`number`, :func:`text`, :func:`choice` and :func:`switch`, and calls
:func:`check_fields` in ``__post_init__``. So nothing is ever built from a number or a text that was not checked.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .file_errors import shown

JSON_LIMIT = 2**20  # characters of a description; that of a Stable Diffusion domain has 10,000
# Of what is kept for people to read.
FREE_DEPTH, FREE_ENTRIES, FREE_TEXT, FREE_NUMBER = 4, 1000, 2000, 1e18
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class _Rule:
    """What a value, or every value of a tuple, must be."""

    least: float = -math.inf
    most: float = math.inf
    above: float | None = None
    choices: tuple[str, ...] = ()
    lines: bool = False
    pattern: str = ""
    hint: str = ""
    count: tuple[int, int] | None = None
    kind: type | None = None

    def check(self, name: str, value: Any) -> None:
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{name} = {shown(value)} must be one of {', '.join(self.choices)}.")
        elif self.kind is not None:
            if not isinstance(value, self.kind):
                raise ValueError(f"{name} = {shown(value)} must be a {self.kind.__name__}.")
            if isinstance(value, Mapping) and len(value) > self.most:
                raise ValueError(f"{name} has {len(value)} entries: at most {self.most} are read.")
        elif isinstance(value, str):
            self._check_text(name, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            above = -math.inf if self.above is None else self.above
            # NaN fails every comparison.
            if not (self.least <= value <= self.most and value > above):
                low = f"at least {self.least:g}" if self.above is None else f"above {self.above:g}"
                raise ValueError(f"{name} = {shown(value)} must be {low} and at most {self.most:g}.")

    def _check_text(self, name: str, value: str) -> None:
        if not self.least <= len(value) <= self.most:
            raise ValueError(
                f"{name} = {shown(value)} has {len(value)} characters: it must have {self.least:g} to {self.most:g}."
            )
        if not is_plain(value, self.lines):
            raise ValueError(f"{name} = {shown(value)} holds control characters: only readable text is allowed.")
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise ValueError(f"{name} = {shown(value)} must be {self.hint}.")


def number(
    least: float = 0,
    most: float = 1e9,
    *,
    above: float | None = None,
    default: Any = dataclasses.MISSING,
    count: tuple[int, int] | None = None,
) -> Any:
    """A field with a number from ``least`` (or above ``above``) to ``most``; with ``count`` a tuple of so many."""
    return field(default=default, metadata={"rule": _Rule(least, most, above=above, count=count)})


def text(
    most: int,
    *,
    least: int = 0,
    lines: bool = False,
    pattern: str = "",
    hint: str = "",
    default: Any = dataclasses.MISSING,
    count: tuple[int, int] | None = None,
) -> Any:
    """A field with a readable text.

    Args:
        most, least: characters.
        lines: it may have line breaks and tabs.
        pattern: regular expression that it matches as a whole, if not empty; ``hint`` says the same in words.
        count: it is a tuple of so many such texts.
    """
    rule = _Rule(least, most, lines=lines, pattern=pattern, hint=hint, count=count)
    return field(default=default, metadata={"rule": rule})


def choice(choices: tuple[str, ...], default: Any = dataclasses.MISSING) -> Any:
    """A field with one of some texts."""
    return field(default=default, metadata={"rule": _Rule(choices=choices)})


def part(kind: type) -> Any:
    """A field with another dataclass."""
    return field(metadata={"rule": _Rule(kind=kind)})


def table(most: int) -> Any:
    """A field with a table of at most ``most`` entries, which the dataclass looks at itself."""
    return field(metadata={"rule": _Rule(most=most, kind=Mapping)})


def like(kind: Any, name: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with the range or length of another dataclass's field."""
    return field(default=default, metadata=kind.__dataclass_fields__[name].metadata)


def switch(default: bool) -> Any:
    """A field that is true or false."""
    return field(default=default, metadata={"rule": _Rule()})


def is_plain(value: str, lines: bool = False) -> bool:
    """Whether a text has no control characters and no lone surrogates, which no file and no console can show."""
    kept = value.translate({ord(c): None for c in "\n\t"}) if lines else value
    return not _SURROGATES.search(kept) and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in kept)


def check_fields(described: Any, name: str) -> None:
    """Check types, ranges and lengths of all fields that were made with one of the functions above.

    Args:
        described: a dataclass instance.
        name: what it is, for messages ("Domain").

    Raises:
        ValueError: the first field that is out of range; one sentence.
    """
    for item in dataclasses.fields(described):
        check_value(type(described), item.name, getattr(described, item.name), f"{name} {item.name}")


def check_value(kind: type, name: str, value: Any, label: str) -> None:
    """Check a value that is to become a dataclass's field, before there is one.

    Args:
        kind: the dataclass.
        name: of its field.
        value: to be checked.
        label: what it is, for messages.

    Raises:
        ValueError: it is out of the field's range; one sentence.
    """
    rule: _Rule | None = kind.__dataclass_fields__[name].metadata.get("rule")  # type: ignore[attr-defined]
    if rule is None:
        return
    hint = _hints(kind)[name]
    if rule.count is None:
        if rule.kind is None:
            _check_type(label, hint, value)
        rule.check(label, value)
        return
    low, high = rule.count
    if not isinstance(value, tuple) or not low <= len(value) <= high:
        raise ValueError(f"{label} = {shown(value)} must be {low if low == high else f'{low} to {high}'} values.")
    for part in value:
        _check_type(label, typing.get_args(hint)[0], part)
        rule.check(label, part)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check_type(label: str, wanted: type, value: Any) -> None:
    accepted = (int, float) if wanted is float else wanted
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{label} = {shown(value)} must be {_KINDS[wanted]}.")


def check_free(name: str, value: Any, depth: int = FREE_DEPTH) -> None:
    """Check what is kept for people to read: texts, finite numbers, switches, and short lists and tables of them.

    Raises:
        ValueError: something of it is too long, too deep, or no plain value.
    """
    if isinstance(value, Mapping | list | tuple):
        if depth == 0 or len(value) > FREE_ENTRIES:
            raise ValueError(
                f"{name} = {shown(value)} is too large: at most {FREE_ENTRIES} entries, {FREE_DEPTH} deep."
            )
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            if isinstance(value, Mapping) and (not isinstance(key, str) or len(key) > FREE_TEXT or not is_plain(key)):
                raise ValueError(f"{name} has an entry {shown(key)}: names must be readable text.")
            check_free(f"{name}.{key}"[:120], part, depth - 1)
    elif isinstance(value, str):
        if len(value) > FREE_TEXT or not is_plain(value, lines=True):
            raise ValueError(f"{name} = {shown(value)} must be readable text of at most {FREE_TEXT} characters.")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= FREE_NUMBER:
            raise ValueError(f"{name} = {shown(value)} must be a finite number of at most {FREE_NUMBER:g}.")
    elif not isinstance(value, bool) and value is not None:
        raise ValueError(f"{name} = {shown(value)} must be a text, a number, a list or a table.")


def read_json(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is none, or too long or too deep to be one of ours.
    """
    if len(text) > JSON_LIMIT:
        raise ValueError(f"it has {len(text)} characters, and at most {JSON_LIMIT} are read")
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists lie too deep in one another") from error
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    return data


def from_json(kind: type, data: Any) -> Any:
    """A frozen dataclass from a JSON object: lists become tuples, whole numbers floats where the field is one.

    Raises:
        ValueError: there is an unknown or a missing field, or a value that the dataclass refuses.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{kind.__name__} = {shown(data)} must be a table")
    hints = _hints(kind)
    unknown = sorted(data.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {shown(unknown[0])}")
    missing = [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is item.default_factory is dataclasses.MISSING and item.name not in data
    ]
    if missing:
        raise ValueError(f"{kind.__name__} lacks the field {missing[0]!r}")
    try:
        return kind(**{name: _value(hints[name], value) for name, value in data.items()})
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{kind.__name__} cannot be made of it ({type(error).__name__}: {error})") from error


def _value(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        element = typing.get_args(hint)[0]
        return tuple(_value(element, part) for part in value)
    if isinstance(value, int) and abs(value) > FREE_NUMBER:
        raise ValueError(f"{shown(value)} is larger than any number of a description")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
