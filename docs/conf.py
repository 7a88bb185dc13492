"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import rhapsody

project = "RHAPSODY"
author = "the RHAPSODY developers"
project_copyright = "2026, the RHAPSODY developers"
release = version = rhapsody.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "hooks_reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]

html_theme = "furo"
html_title = f"RHAPSODY {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # the docstrings write `name` for code, as Markdown does
autodoc_typehints = "none"  # signatures stay short; the docstrings say what is taken
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
