"""Reads a config: a TOML file, and ``section.key=value`` overrides from the command line.

TOML, because 1e-6 is a number in it (in YAML 1.1 it is a text), because it needs no indentation to be right, and because
Python reads it itself (from 3.11 on; 3.10 uses the package tomli, which is the same code).
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.base.settings import ConfigError
from e4t_core.files.file_errors import shortened

from .sections import Config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parents[1] / "configs"


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """A checked config.

    Args:
        path: of the TOML file; a bare name ("face") means the shipped one. Paths inside are relative to the folder
            that the command is run in.
        overrides: ``"training.steps=100"``, ``"data.sources.0.path=faces"``; values as TOML writes them, a text may
            do without quotes.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown (the nearest is named), a value has the wrong type
            or is out of its range.
    """
    shipped = {file.stem: file for file in sorted(CONFIGS.glob("*.toml"))}
    try:
        if not path.is_file():
            path = shipped.get(str(path), path)
        if not path.is_file():
            raise ConfigError(f"Config {path} does not exist: give a TOML file, or one of {', '.join(shipped)}.")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config {path} is no valid TOML: {error}.") from error
    except OSError as error:
        raise ConfigError(
            f"Config {shortened(str(path))} cannot be read ({error.strerror}): correct the path."
        ) from error
    for override in overrides:
        _apply(data, override)
    config: Config = _build(Config, data, "")
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain data, for logs, checkpoints and domain files."""
    return dataclasses.asdict(config)


def known_keys() -> list[str]:
    """Every key that a config may have, dotted, without numbers ("data.sources.path")."""
    return list(_keys(Config, ""))


def _keys(kind: Any, prefix: str) -> Iterator[str]:
    for name, hint in typing.get_type_hints(kind).items():
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        yield prefix + name
        if dataclasses.is_dataclass(inner):
            yield from _keys(inner, f"{prefix}{name}.")


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip().removeprefix("--")
    if not equals or not key:
        raise ConfigError(f"Override {override!r} must be written as section.key=value.")
    parts = key.split(".")
    place: Any = data
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise ConfigError(
                    f"Override {override!r} names entry {part!r} of {'.'.join(parts[:number])}, which has"
                    f" {len(place)} (counted from 0)."
                )
            entry: Any = int(part)
        else:
            entry = part
        if last:
            place[entry] = _value(text)
            return
        if isinstance(place, dict) and part not in place:
            if part not in typing.get_type_hints(Config):
                raise ConfigError(_unknown(key))
            place[part] = {}
        place = place[entry]
        if not isinstance(place, dict | list):
            raise ConfigError(f"Override {override!r} goes into {'.'.join(parts[: number + 1])}, which is a value.")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text.strip()


def _build(kind: Any, data: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for name in data:
        if name not in hints:
            raise ConfigError(_unknown(prefix + name))
    values = {name: _typed(hints[name], value, prefix + name) for name, value in data.items()}
    for item in dataclasses.fields(kind):
        if item.name not in values and item.default is item.default_factory is dataclasses.MISSING:
            inner = hints[item.name]
            if not dataclasses.is_dataclass(inner):
                raise ConfigError(f"{prefix}{item.name} is missing: the config must say it.")
            values[item.name] = _build(inner, {}, f"{prefix}{item.name}.")
    return kind(**values)


def _typed(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(origin):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} = {value!r} must be a section.")
        return _build(origin, value, f"{name}.")
    if origin is tuple:
        element = typing.get_args(hint)[0]
        if element is str and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise ConfigError(f"{name} = {value!r} must be a list.")
        return tuple(_typed(element, part, name) for part in value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        raise ConfigError(f"{name} = {value!r} must be {_KINDS[origin]}.")
    return value


_KINDS: Mapping[type, str] = types.MappingProxyType(
    {int: "a whole number", float: "a number", bool: "true or false", str: "a text in quotes", dict: "a table"}
)


def _unknown(name: str) -> str:
    nearest = _nearest(name, known_keys())
    return f"The config has no key {name!r}{f': did you mean {nearest!r}?' if nearest else '.'}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """The key whose last word is nearest, if it is near enough; the section breaks ties."""
    known = list(known)
    leaf = name.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(leaf, {key.rsplit(".", 1)[-1] for key in known}, n=1, cutoff=0.6)
    candidates = [key for key in known if near and key.rsplit(".", 1)[-1] == near[0]]
    best = max(candidates, key=lambda key: difflib.SequenceMatcher(None, key, name).ratio(), default=None)
    return best or next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)
