"""Runs a page's blocks of Python one after the other, as a notebook would; given as JSON on standard input.

A block with `await` outside of a function is run on a loop that lasts as long as the page; any other as in a script.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import linecache
import sys
import types


def main() -> None:
    """Run them; the first that raises ends the process with its traceback."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # functions of the page travel as those of a notebook do
    with asyncio.Runner() as runner:
        for block in json.load(sys.stdin):
            filename = f"{block['page']}:{block['line']}"
            linecache.cache[filename] = (len(block["text"]), None, block["text"].splitlines(True), filename)
            code = compile(block["text"], filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(code, module.__dict__))
            else:
                exec(code, module.__dict__)


if __name__ == "__main__":
    main()
