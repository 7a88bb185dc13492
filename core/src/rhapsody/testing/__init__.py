"""The conformance suite for authors of backends: subclass `BackendConformanceTests` in a test module of yours.

    import pytest
    from rhapsody.testing import BackendConformanceTests
    from my_package.backend import MyBackend

    @pytest.fixture(scope="class")
    def new_backend():
        return lambda: MyBackend(resources={"workers": 2})

    class TestMyBackend(BackendConformanceTests):
        title = "mine"

It needs pytest and psutil: `pip install rhapsody-core[testing]`. Nothing is imported before it is used, for pytest
loads `rhapsody.testing.plugin` at every start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhapsody.testing.suite import BackendConformanceTests as BackendConformanceTests
    from rhapsody.testing.tasks import die as die

_HOMES = {"BackendConformanceTests": "suite", "die": "tasks"}

__all__ = ["BackendConformanceTests", "die"]  # by __getattr__


def __getattr__(name: str) -> Any:
    """Import what an author uses when it is used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rhapsody.testing' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
