"""The lanes of a run: which tests one worker of pytest-xdist runs from end to end.

The groups are made from node ids, by a scheduler of our own: with pytest 9.2, `--dist loadgroup` of pytest-xdist 3.8
spreads the tests of one group over all workers (https://github.com/pytest-dev/pytest-xdist/issues/1386).
"""

from __future__ import annotations

import re
from typing import Final

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it has no types

_ENGINES: Final = ("radical", "dragon", "dask")
_LONGEST_FIRST: Final = (  # all that take more than 20 s; the order is that of their times in a whole run
    *_ENGINES,
    "tests/conformance/test_mutants.py",
    "wheels",
    "tests/core/sessions/test_endings.py",
    "tests/conformance/test_concurrent.py",
    "tests/authors/test_spool.py",
    "tests/authors/test_parsl.py",
    "tests/core/cli/test_doctor.py",
    "tests/docs/test_code_blocks.py",
    "tests/core/cli/test_demo.py",
)
_PLUGIN: Final = re.compile(rf"tests/plugins/({'|'.join(_ENGINES)})/")
_PARAMETER: Final = re.compile(rf"tests/(?:docs/|test_notebook).*\[.*?({'|'.join(_ENGINES)})", re.IGNORECASE)


def group_of(nodeid: str) -> str:
    """Return the engine that a test starts, so that at most one of each runs at a time; else its module.

    The wheels are one group: they are built once.
    """
    if engine := _PLUGIN.match(nodeid) or _PARAMETER.match(nodeid):
        return engine[1].lower()
    return "wheels" if nodeid.startswith("tests/wheels/") else nodeid.partition("::")[0]


def rank(nodeid: str) -> int:
    """Return where a test's group belongs: what takes longest begins first, so that no worker is left with it."""
    group = group_of(nodeid)
    return _LONGEST_FIRST.index(group) if group in _LONGEST_FIRST else len(_LONGEST_FIRST)


def is_measured(nodeid: str) -> bool:
    """Whether a test counts for the coverage of the core: it would make those slower that wait for an engine."""
    return nodeid.startswith(("tests/core/", "tests/compat/", "tests/conformance/"))


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # of a module without types
    """Gives each worker one group after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
