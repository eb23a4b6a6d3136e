"""river's detectors without the rest of river, whose import brings scikit-learn and pandas: 160 MiB and a second of CPU
time in every process of a run."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any


class _Later(types.ModuleType):
    """A package that runs what it consists of when something is asked of it that it does not hold yet. Its modules can
    be imported before."""

    def __getattr__(self, name: str) -> Any:
        assert self.__spec__ is not None and self.__spec__.loader is not None, "as `_register` made it"
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _register(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations is not None, "river is a dependency"
    package = _Later(name)
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    package.__file__, package.__package__, package.__loader__ = spec.origin, name, spec.loader
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)


for _name in ("river", "river.drift"):
    if _name not in sys.modules:
        _register(_name)

from river.drift.adwin import ADWIN  # noqa: E402
from river.drift.page_hinkley import PageHinkley  # noqa: E402
from river.stats.mean import Mean  # noqa: E402

__all__ = ["ADWIN", "Mean", "PageHinkley"]
