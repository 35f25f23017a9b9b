"""The folder is the registry: every class with a name in a package's modules is an entry."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import TypeVar

from .errors import ConfigError
from .knobs import nearest

T = TypeVar("T")


@functools.cache
def discover(package: str) -> Mapping[str, type]:
    """{name: class} of all entries, sorted by their order and name.

    Every sibling module is imported; one that fails to import raises, and so does a name twice.
    """
    parent = importlib.import_module(package)
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules(parent.__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            name = value.__dict__.get("name", "") if own else ""
            if isinstance(name, str) and name:
                if name in found:
                    raise ImportError(f"{name} is defined twice under {package}")
                found[name] = value
    return dict(sorted(found.items(), key=lambda item: (getattr(item[1], "order", 99), item[0])))


def pick(catalogue: Mapping[str, T], name: str, field: str) -> T:
    """The entry called `name`; raises ConfigError on `field` with the list of names."""
    try:
        return catalogue[name]
    except KeyError:
        raise ConfigError({field: f"there is no {name!r}; choose one of {', '.join(catalogue)}."
                                  + nearest(name, catalogue)}) from None
