"""What a config names as "package.module:attribute": a base, a backbone or a source of pictures of another program."""

from __future__ import annotations

import importlib
from typing import Any


class FactoryError(ValueError):
    """A name that leads to nothing; the message is one sentence."""


def from_factory(name: str) -> Any:
    """The object that "package.module:attribute" names; the config's author answers for what importing it does.

    Raises:
        FactoryError: there is no such thing.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise FactoryError(
            f"Factory {name!r} could not be found ({error}): write 'package.module:function', as Python imports it."
        ) from error
