"""The pack in this process, as ComfyUI imports it, and its core under one name.

ComfyUI imports a node pack as a package of its own choosing, so the core inside it is ``e4t_pack.e4t_core`` there and
``e4t_core`` everywhere else. Two copies would have two of every class. Where this pack is imported beside commands, tests or
benchmarks, the first name leads to the second one's modules.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

PACK, CORE = "e4t_pack", "e4t_core"


class OneCore(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``e4t_pack.e4t_core.x`` in ``e4t_core.x``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != f"{PACK}.{CORE}" and not fullname.startswith(f"{PACK}.{CORE}."):
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.name.removeprefix(f"{PACK}."))
        # Importing replaces it by the alias's; see exec_module.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        alias = module.__spec__
        assert alias is not None
        module.__spec__ = alias.loader_state


def import_pack(root: Path) -> ModuleType:
    """Imports the repository at ``root`` as ``e4t_pack``; ComfyUI's folder must stand before it on ``sys.path``."""
    if PACK in sys.modules:
        return sys.modules[PACK]
    if not any(isinstance(finder, OneCore) for finder in sys.meta_path):
        sys.meta_path.insert(0, OneCore())
    spec = importlib.util.spec_from_file_location(PACK, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module
