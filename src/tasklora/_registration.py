"""Registers the methods with PEFT as soon as PEFT is there, without importing it.

``import tasklora`` must both be light (``tasklora --help`` answers at once) and make ``PeftModel.from_pretrained`` know
the methods, in whatever order the two packages are imported. So if PEFT is not imported yet, a finder waits for it,
steps aside, and registers right after PEFT's own import is done.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType


def register_with_peft() -> None:
    """Register now if PEFT is imported, else right after it is."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


class _PeftFinder(importlib.abc.MetaPathFinder):
    """Waits for ``import peft`` and wraps its loader.

    It stays until PEFT is imported: others may only ask whether there is a PEFT, as transformers does.
    """

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return PEFT's own spec with a loader that registers afterwards; None for every other module."""
        if name != "peft" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec("peft")
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """PEFT's loader, followed by the registration."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create the module as PEFT's loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute PEFT and register the methods with it."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _PeftFinder)]
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register()


def _register() -> None:
    for home in ("tasklora.tuner", "tasklora.vision.swin.tuner"):
        importlib.import_module(home)
