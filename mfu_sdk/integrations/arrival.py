"""Do something once a module has been imported, without importing it.

A program may set variables before it imports torch that torch reads at that moment. Whoever watches a program that
nobody may edit must not import torch earlier than the program does.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from mfu_sdk.guard import shield


def when_imported(name: str, then: Callable[[], None]) -> Callable[[], None]:
    """Call `then` once module `name` has been imported: now, if it has been. Returns what calls it off."""
    if name in sys.modules:
        then()
        return lambda: None
    watch = _Watch(name, then)
    sys.meta_path.insert(0, watch)
    return watch.leave


class _Watch(MetaPathFinder):
    """Lets the others find the module, and stands in front of its loader for as long as it loads."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then
        self._asking = False

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def arrived(self) -> None:
        self.leave()
        with shield(f"what follows the import of {self._name}"):
            self._then()

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _FirstLoad(spec.loader, self)
        return spec


class _FirstLoad(Loader):
    """Loads as the module's own loader does, and leaves that one in its place."""

    def __init__(self, loader: Loader, watch: _Watch) -> None:
        self._loader = loader
        self._watch = watch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._watch.arrived()
