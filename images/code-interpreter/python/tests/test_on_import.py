"""Hooks that run when a module becomes loaded."""

import sys

import pytest
from wrenn_kernel import on_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that no test has loaded, by its name."""
    (tmp_path / "late_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "late_module"
    sys.modules.pop("late_module", None)
    on_import._FINDER.hooks.pop("late_module", None)


def test_hook_runs_once_module_is_loaded(module):
    seen = []
    on_import.when_loaded(module, lambda loaded: seen.append(loaded.value))
    assert seen == []
    __import__(module)
    assert seen == [1]


def test_hook_runs_at_once_if_module_is_loaded(module):
    __import__(module)
    seen = []
    on_import.when_loaded(module, lambda loaded: seen.append(loaded.value))
    assert seen == [1]


def test_failing_hook_does_not_break_import(module):
    on_import.when_loaded(module, lambda loaded: 1 / 0)
    assert __import__(module).value == 1


def test_module_that_does_not_exist_is_not_found():
    on_import.when_loaded("no_such_module_at_all", lambda loaded: None)
    with pytest.raises(ModuleNotFoundError):
        __import__("no_such_module_at_all")
