"""Runs functions when modules become loaded, without loading them.

The images' hooks use it: they change Pillow, which a program may import at any time or never.
"""

import importlib.abc
import sys


class _Loader(importlib.abc.Loader):
    """Loads a module by its own loader and then calls the hook."""

    def __init__(self, loader, hook):
        self.loader = loader
        self.hook = hook

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        # The module sees its own loader, as if no hook were there.
        module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        call(self.hook, module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the watched modules by the finders that come after it."""

    def __init__(self):
        self.hooks = {}

    def find_spec(self, name, path=None, target=None):
        hook = self.hooks.get(name)
        if hook is None:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not self else None
            if spec is not None:
                return _watched(spec, hook)
        return None


def _watched(spec, hook):
    """Puts the hook between a module's spec and its loader."""
    if hasattr(spec.loader, "exec_module"):
        spec.loader = _Loader(spec.loader, hook)
    return spec


_FINDER = _Finder()


def call(hook, *arguments):
    """Calls a hook, and tells its success. Its failure never reaches the user's program."""
    try:
        hook(*arguments)
    except Exception:
        return False
    return True


def when_loaded(name, hook):
    """Calls `hook(module)` at once if the module is loaded, else as soon as it is."""
    _FINDER.hooks[name] = hook
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is not None and not getattr(spec, "_initializing", False):
        call(hook, module)
