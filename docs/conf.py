"""The documentation site: ``make docs`` writes it to docs/_build/html."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from written_from_code import WRITTEN, gather_notebooks  # noqa: E402

import bharateo  # noqa: E402

project = "BharatEO"
author = "the BharatEO authors"
project_copyright = "the BharatEO authors; Apache-2.0"
version = release = bharateo.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

smartquotes = False  # else --option becomes a dash and a word

html_theme = "furo"
html_title = "BharatEO"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` has run them
nb_merge_streams = True  # lines of progress are one output
copybutton_exclude = ".linenos, .gp"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes such as Float[Tensor, "batch band"] are in the signatures' text
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Raises", "Raises")]


gather_notebooks()


def fill(_app, _page: str, source: list[str]) -> None:
    """Put what is written from the code in the place of its mark."""
    for mark, write in WRITTEN.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, write())


def property_as_written(_app, what: str, _name, obj, _options, lines: list[str]) -> None:
    """Take back what napoleon made of a property: a colon in its first line starts no type."""
    if what == "property":
        lines[:] = [*(inspect.getdoc(obj) or "").splitlines(), ""]


def setup(app) -> None:
    """Connect both to Sphinx."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", property_as_written, priority=900)
