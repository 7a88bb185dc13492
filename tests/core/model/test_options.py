"""Options beside a task find its fields, without an engine."""

from __future__ import annotations

from typing import Any

import pytest
from rhapsody.api import InvalidTaskError, Resources
from rhapsody.model.options import fields_of, shell_line

KNOWN = {"environment", "shell", "resources"}


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({"env": {"A": "1"}, "shell": True}, {"environment": {"A": "1"}, "shell": True}),
        ({"ranks": 4, "gpus_per_rank": 1}, {"resources": Resources(ranks=4, gpus_per_rank=1)}),
        ({"ranks": 2, "mem_per_rank": 3}, {"resources": Resources(ranks=2, memory=6 * 2**20)}),
        ({"resources": {"cores_per_rank": 2}}, {"resources": Resources(cores_per_rank=2)}),
        ({"pre_exec": ["x"], "colour": 1}, {"backend_options": {"pre_exec": ["x"], "colour": 1}}),
    ],
)
def test_options_find_their_fields(options: dict[str, Any], fields: dict[str, Any]) -> None:
    """Fields and resources are taken out; what is left is for the backend."""
    assert fields_of(options, KNOWN, "task.1") == fields


@pytest.mark.parametrize(
    "options",
    [
        {"ranks": "many"},
        {"mem_per_rank": "1G"},
        {"resources": {"colour": 1}},
        {"ranks": 2, "resources": Resources()},
        {"env": {}, "environment": {}},
        ["ranks"],
    ],
)
def test_unusable_options_name_the_task(options: Any) -> None:
    """An option that makes no sense is an error that names the task."""
    with pytest.raises(InvalidTaskError, match=r"task\.1"):
        fields_of(options, KNOWN, "task.1")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-c", "print(1)"], "x -c 'print(1)'"),
        (["a", "&&", "b", "||", "c"], "x a && b || c"),
        (["a", "|", "b", ">>", "c", "2>&1"], "x a | b >> c 2>&1"),
        (["a", ">out.txt", "2>/dev/null", "</tmp/in"], "x a >out.txt 2>/dev/null </tmp/in"),
        (["a;", "b", ";", "c"], "x a; b ; c"),
        (["<b>", "a>b", "import os;", "$HOME", "*", "a & b"], "x '<b>' 'a>b' 'import os;' '$HOME' '*' 'a & b'"),
        ([1, 2.5], "x 1 2.5"),
    ],
)
def test_shell_line_of_split_words(words: list[object], line: str) -> None:
    """Operators and redirections stay; every other word is quoted."""
    assert shell_line("x", words) == line
