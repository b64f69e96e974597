"""Settings of Sphinx, which renders this folder: `make docs`."""

from __future__ import annotations

import re
from typing import Any

import torch_unroll

project = "torch-unroll"
author = "torch-unroll contributors"
version = release = torch_unroll.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = project

#: Docstrings write code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings describe the arguments
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # what stands before the colon in `Returns` is a shape, not a type
#: Types of Python and torch are not linked, so that rendering needs no network.
nitpick_ignore_regex = [("py:.*", ".*")]


def escape_extents(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escapes shapes such as `(H) each`, which reStructuredText would take for the first item of a list."""
    lines[:] = [re.sub(r"((?::\w+ \w+: )|^\s*)\((\w)\) ", r"\1\\(\2) ", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx; the priority puts the function behind napoleon's."""
    app.connect("autodoc-process-docstring", escape_extents, priority=600)
