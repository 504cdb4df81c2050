"""How quantlib and its rooms offer their names: loaded on first use, so that importing one costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def offered(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """__getattr__, __dir__ and __all__ of a package whose names live in its modules.

    home  module, as it is called after the package's name -> the names it has, separated by spaces
    """
    module_of = {name: module for module, names in home.items() for name in names.split()}
    there = sorted(module_of)

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(there)}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *there}), there
